"""Feature extractors: each turns images into vectors, and knows its name and the hash of what it computes with."""

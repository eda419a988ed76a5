"""Images: pure metrics over features, feature extractors, readers, and their meeting with torch-fidelity."""

"""Judges of pairs of answers behind one protocol: a reward model, an OpenAI-compatible endpoint, people's records."""

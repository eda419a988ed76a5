"""The `evaluate` module inception_score."""

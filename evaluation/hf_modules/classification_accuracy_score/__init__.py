"""The `evaluate` module classification_accuracy_score."""

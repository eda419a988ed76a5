"""The `evaluate` module precision_recall_density_coverage."""

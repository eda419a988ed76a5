"""The `evaluate` module kernel_distance."""

"""The `evaluate` module frechet_distance."""

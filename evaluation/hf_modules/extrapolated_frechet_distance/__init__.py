"""The `evaluate` module extrapolated_frechet_distance."""

"""The `evaluate` module cmmd."""

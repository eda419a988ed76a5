"""The `evaluate` module mind."""

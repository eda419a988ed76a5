"""Telling generated images from real ones: scores, spectral features, a linear detector and its protocol."""

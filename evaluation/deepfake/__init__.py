"""Telling generated images from real ones: detectors, their protocol and treatments, files, watermark, credentials."""

"""Detectors of generated images, all with one interface: see base.py."""

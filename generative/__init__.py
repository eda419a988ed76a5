"""Generative models of images: a variational autoencoder, a GAN and a diffusion model, with one trainer and one sampler.

Names are resolved when they are first used: torch and diffusers are imported then, not before.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "vae": ("VAE",),
    "gan": ("GAN",),
    "diffusion": ("DiffusionModel",),
    "folders": ("load_model",),
    "sampling": ("sample_images",),
    "images": ("load_training_images",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'generative' has no attribute '{name}'")
    return getattr(importlib.import_module(f"generative.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

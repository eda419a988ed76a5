"""Reading a model folder, whichever kind it holds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from generative.diffusion import DiffusionModel
from generative.gan import GAN
from generative.vae import VAE
from generative.weights import load_weights
from launch.errors import UserError
from launch.files import read_json

REMEDY = "give a folder that `alignkit train-generative` wrote"


class GenerativeModel(Protocol):
    """What sampling asks of a model: noise of `noise_shape` for each image, and images in [-1, 1] from it."""

    @property
    def noise_shape(self) -> tuple[int, ...]: ...

    def generate(self, noise: Tensor) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def to(self, device: torch.device) -> Any: ...


def load_model(folder: str | Path) -> VAE | GAN | DiffusionModel:
    """The VAE, GAN or diffusion model in a folder, ready to generate; UserError when there is none or it is damaged."""
    kind = _kind_of(Path(folder))
    try:
        model = kind.from_pretrained(folder) if kind is DiffusionModel else load_weights(kind, folder)
    except (OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: the {kind.__name__} there cannot be loaded ({reason}); {REMEDY}") from None
    return model.eval()


def _kind_of(folder: Path) -> type[VAE] | type[GAN] | type[DiffusionModel]:
    if (folder / "model_index.json").is_file():
        name = read_json(folder / "model_index.json").get("_class_name")
        if name != "DDPMPipeline":
            raise UserError(f"{folder}: holds a {name}, not a DDPMPipeline; {REMEDY}")
        return DiffusionModel
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: holds no model (neither model_index.json nor config.json); {REMEDY}")
    name = read_json(folder / "config.json").get("_class_name")
    kinds: dict[str, type[VAE] | type[GAN]] = {"VAE": VAE, "GAN": GAN}
    if name not in kinds:
        raise UserError(f"{folder}: config.json is of {name or 'another library'}, not of a VAE or a GAN; {REMEDY}")
    return kinds[name]

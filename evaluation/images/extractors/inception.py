"""torch-fidelity's Inception, the network that FID is defined by. Nothing is downloaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.utils import create_feature_extractor

from evaluation.images.extractors.base import Extractor, FeatureFunction, as_rgb
from launch.errors import UserError
from launch.files import sha256_file, sha256_text

REGISTERED, LAYERS = "inception-v3-compat", ("2048", "logits_unbiased")
FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
BYTES = 95_628_359
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PREPROCESSING = "bilinear to 299x299 as TensorFlow 1 does it, (x - 128) / 128, float32"


def prepare_inception(weights: str) -> Extractor:
    """torch-fidelity's Inception from a path, or from its usual place in TORCH_HOME.

    The file is opened with `weights_only=True` first: torch-fidelity itself unpickles it without that guard. Weights
    other than the published ones are taken, but scores with them are no FID and are named by their hash.
    """
    path = Path(weights) if weights else Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        raise UserError(
            f"{path}: no Inception weights there; fetch {FILE} ({BYTES:,} bytes, sha256 {SHA256}) from {URL} "
            "and put it there, or give --inception_weights PATH"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: is no plain file of tensors ({reason}); fetch {FILE} again") from None
    sha256 = sha256_file(path)
    published = sha256 == SHA256
    name = "inception" if published else f"inception_{sha256[:8]}"
    which = "" if published else f", with weights that are not the published ones (sha256 {sha256[:8]}...)"
    return Extractor(
        name,
        sha256_text(f"{sha256} {PREPROCESSING}"),
        f"2048 pooled features of the 2015 TensorFlow Inception-v3, through torch-fidelity{which}",
        partial(_load, path),
        defines_fid=published,
    )


def _load(path: Path, device: torch.device) -> FeatureFunction:
    try:
        module = create_feature_extractor(
            REGISTERED, list(LAYERS), cuda=False, feature_extractor_weights_path=str(path), verbose=False
        )
    except (RuntimeError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{path}: holds other weights than Inception's ({reason}); fetch {FILE} again") from None
    module = module.to(device)

    def features(images: Tensor) -> tuple[Tensor, Tensor | None]:
        found = module(as_rgb(images).to(device))
        return found[0], found[1]

    return features

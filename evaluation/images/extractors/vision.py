"""Image models of transformers as extractors: DINOv2, CLIP, and any other, from a folder or a name of the hub.

Images go through the model's own processor (size, crop, mean and deviation as it was trained). Weights are float32.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    CLIPVisionModelWithProjection,
)

from evaluation.images.extractors.base import Extractor, FeatureFunction, as_rgb, weights_hash
from evaluation.loading import load_merged, named_errors
from launch.errors import UserError
from launch.files import canonical_json, sha256_text

Family = Literal["dinov2", "clip", "model"]
USUAL = {"dinov2": "hub:facebook/dinov2-large", "clip": "hub:openai/clip-vit-large-patch14-336"}
"""The models that FD-DINOv2 (Stein et al. 2023, arXiv 2306.04675) and CMMD are usually given with."""
TYPES = {"dinov2": ("dinov2", "dinov2_with_registers"), "clip": ("clip", "clip_vision_model")}
FEATURES = {
    "dinov2": "class token of {name} after its last norm",
    "clip": "image embedding of {name}",
    "model": "pooled output of {name}",
}


def prepare_vision(family: Family, source: str) -> Extractor:
    """An image model of transformers. UserError names what is missing or of another kind."""
    source = source or USUAL[family]
    with named_errors("model", source, "an image model") as name:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        _check_type(family, source, config.model_type)
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        model, missing = load_merged("model", name, _class_of(family, config), dtype=torch.float32)
    missing -= _unused(model)
    if missing:
        raise UserError(
            f"model: {source}: the weights lack {min(missing)}, so this is no trained image model; give one whose weights are whole"
        )
    model = model.eval().requires_grad_(False)
    about = canonical_json({"model": config.to_dict(), "processor": processor.to_dict()})
    sha256 = sha256_text(f"{weights_hash(model.state_dict())} {_without_places(about)}")
    description = f"{FEATURES[family].format(name=source.removeprefix('hub:'))}, through transformers"
    name = family if family != "model" else _word(source)
    return Extractor(name, sha256, description, partial(_load, model, processor))


def _without_places(about: str) -> str:
    """A configuration without what says where it lay or which version wrote it."""
    return re.sub(r'"(_name_or_path|transformers_version|name_or_path)":("[^"]*"|null),?', "", about)


def _word(source: str) -> str:
    """The last part of a path or hub name as one word, for the name of a score."""
    return re.sub(r"\W+", "_", source.rstrip("/").removeprefix("hub:").split("/")[-1]).strip("_").lower() or "model"


def _check_type(family: Family, source: str, found: str) -> None:
    if family in TYPES and found not in TYPES[family]:
        raise UserError(
            f"model: {source}: is a model of type '{found}', not {family}; give --extractor model for any other"
        )


def _class_of(family: Family, config: Any) -> Any:
    if family == "clip":
        return CLIPVisionModelWithProjection
    classifies = any(a.endswith("ForImageClassification") for a in config.architectures or [])
    return AutoModelForImageClassification if family == "model" and classifies else AutoModel


def _unused(model: Any) -> set[str]:
    """Weights that no feature depends on: a pooler or a mask token may be absent from a file."""
    return {name for name, _ in model.named_parameters() if name.endswith("mask_token")}


def _load(model: Any, processor: Any, device: torch.device) -> FeatureFunction:
    model = model.to(device)
    seen: list[Any] = []
    if hasattr(model, "base_model") and model.base_model is not model:  # a classifier: its body's output is caught
        model.base_model.register_forward_hook(lambda _module, _inputs, output: seen.append(output))

    def features(images: Tensor) -> tuple[Tensor, Tensor | None]:
        pixels = processor(images=list(as_rgb(images)), return_tensors="pt")["pixel_values"].to(device)
        seen.clear()
        output = model(pixel_values=pixels)
        return _pooled(seen[0] if seen and not hasattr(output, "image_embeds") else output), getattr(
            output, "logits", None
        )

    return features


def _pooled(output: Any) -> Tensor:
    """One vector for each image (B, D): the projected embedding, the pooled output, or the first token."""
    for name in ("image_embeds", "pooler_output"):
        if getattr(output, name, None) is not None:
            return getattr(output, name).flatten(1)
    hidden = output.last_hidden_state
    return hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=tuple(range(2, hidden.ndim)))

"""LoRA adapters in the folder format of peft: found, read, and merged into the weights of their base.

A folder holds `adapter_config.json` and `adapter_model.safetensors`. Only plain LoRA of linear layers is read (Hu et al.
2021): W + scale B A, with A (r, in) and B (out, r), scale = alpha / r, or alpha / sqrt(r) with rsLoRA. A reward model or
critic also has its head, `score`, whole.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from launch.errors import UserError
from launch.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
HEAD = "score.weight"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the base's weights as they are; PiSSA and its kin change them."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter, in float32 on the CPU."""

    source: str
    """The folder or hub name that it was read from."""
    base: str
    """The model that it belongs to: a folder or hub name."""
    factors: dict[str, tuple[Tensor, Tensor]]
    """Path of a linear layer in the base -> (A (r, in), B (out, r))."""
    scale: float
    """Factor of B A."""
    head_LD: Tensor | None
    """Weight of `score`, one row a label."""

    @property
    def rank(self) -> int:
        """The largest rank of its layers."""
        return max(len(a_rI) for a_rI, _ in self.factors.values())


def adapter_folder(source: str) -> str | None:
    """Where a model's adapter lies: the folder (or hub repository) itself, its subfolder `adapter`, or nowhere: None.

    PPO with LoRA writes merged weights into the folder, which any program reads, and the adapter below it.
    """
    if is_adapter(source):
        return source
    below = Path(source) / "adapter"
    return str(below) if (below / CONFIG).exists() else None


def is_adapter(source: str) -> bool:
    """Whether a folder or hub repository is an adapter and no model of its own."""
    return _file_of(source, CONFIG) is not None


def split_adapter(field: str, source: str) -> tuple[str, Adapter | None]:
    """(base model, adapter) of a model: of one that is no adapter, itself and None."""
    folder = adapter_folder(source)
    if folder is None:
        return source, None
    adapter = read_adapter(field, folder)
    return adapter.base, adapter


def same_base(one: str, other: str) -> bool:
    """Whether two names mean the same base model."""
    return base_name(one) == base_name(other)


def base_name(source: str) -> str:
    """A base as adapters record it: the absolute path of a folder, or the hub's name."""
    bare = str(source).removeprefix("hub:")
    return str(Path(bare).resolve()) if Path(bare).is_dir() else bare


def read_adapter(field: str, source: str) -> Adapter:
    """Read an adapter. UserError, which begins with `field`, for what is not plain LoRA of linear layers."""
    config_file, weights_file = _file_of(source, CONFIG), _file_of(source, WEIGHTS)
    if config_file is None or weights_file is None:
        raise UserError(f"{field}: {source}: no adapter ({CONFIG} and {WEIGHTS}) is here; give a peft folder")
    config = json.loads(Path(config_file).read_text(encoding="utf-8"))
    _check_config(field, source, config)
    pairs: dict[str, dict[str, Tensor]] = {}
    head_LD = None
    try:
        weights = load_file(weights_file)
    except SafetensorError as error:
        raise UserError(
            f"{field}: {source}: {WEIGHTS} is damaged or was not written to its end ({error}); copy or make the folder again"
        ) from None
    for key, value in weights.items():
        path, _, part = key.removeprefix(PREFIX).rpartition(".lora_")
        if path and part in ("A.weight", "B.weight"):
            pairs.setdefault(path, {})[part[0]] = value.float()
        elif key == f"{PREFIX}{HEAD}":
            head_LD = value.float()
        else:
            raise UserError(
                f"{field}: {source}: it holds {key}, and only plain LoRA of linear layers (with a head `score`) is "
                "read; train the adapter with `alignkit sft --lora.rank` or merge it with peft"
            )
    factors = {path: (pair["A"], pair["B"]) for path, pair in sorted(pairs.items())}
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Adapter(str(source), config["base_model_name_or_path"], factors, scale, head_LD)


def _check_config(field: str, source: str, config: dict[str, Any]) -> None:
    """UserError when the factors would mean something else than W + scale B A."""
    odd = [key for key in ("rank_pattern", "alpha_pattern", "use_dora", "lora_bias") if config.get(key)]
    if config.get("peft_type") != "LORA":
        odd.append(f"peft_type {config.get('peft_type')}")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        odd.append(f"init_lora_weights {config['init_lora_weights']}")
    if odd:
        raise UserError(
            f"{field}: {source}: an adapter with {odd[0]}; only plain LoRA of one rank is read: merge it with peft first"
        )
    _check_base(field, source, config.get("base_model_name_or_path") or "")


def _check_base(field: str, source: str, base: str) -> None:
    """UserError when the base is gone, or was made anew by a later run: the adapter would change other weights."""
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"{field}: {source}: its base {base} is not there; put it back, or mend base_model_name_or_path in its {CONFIG}"
        )
    records = [Path(folder) / "provenance.json" for folder in (source, base)]
    if not all(path.is_file() for path in records):
        return
    adapter, model = (read_json(path) for path in records)
    entry = adapter["inputs"].get("model", {})
    if base_name(entry.get("path", "")) == base_name(base) and entry["sha256"] != model["content_sha256"]:
        raise UserError(
            f"{field}: {source}: its base {base} has changed since the adapter was trained; train the adapter again"
        )


def merge(field: str, model: nn.Module, adapter: Adapter) -> None:
    """Add an adapter to the weights of its base, in place, and set the head where both have one."""
    for path, (a_rI, b_Or) in adapter.factors.items():
        weight = linear_layer(field, model, path, adapter.source).weight
        delta_OI = adapter.scale * (b_Or @ a_rI)
        transposed = isinstance(model.get_submodule(path), Conv1D)
        weight.data += (delta_OI.T if transposed else delta_OI).to(weight)
    head = getattr(model, "score", None)
    if adapter.head_LD is not None and isinstance(head, nn.Linear):
        with torch.no_grad():
            head.weight.copy_(adapter.head_LD)


def write_head(folder: Path, head_LD: Tensor) -> None:
    """Replace the head of an adapter's folder."""
    weights = load_file(folder / WEIGHTS)
    weights[f"{PREFIX}{HEAD}"] = head_LD.detach().cpu().contiguous()
    save_file(weights, folder / WEIGHTS, {"format": "pt"})


def linear_layer(field: str, model: nn.Module, path: str, source: str) -> Any:
    """The linear layer at a path. UserError when the model has none there: the adapter belongs to another base."""
    try:
        layer = model.get_submodule(path)
    except AttributeError:
        layer = None
    if not isinstance(layer, (nn.Linear, Conv1D)):
        raise UserError(f"{field}: {source}: its base has no linear layer {path}; the adapter belongs to another model")
    return layer


def _file_of(source: str, name: str) -> str | None:
    """A file of a folder or hub repository; None where there is none."""
    bare = str(source).removeprefix("hub:")
    path = Path(bare) / name
    if path.is_file() or Path(bare).is_dir() or not _HUB_NAME.fullmatch(bare):
        return str(path) if path.is_file() else None
    return cached_file(
        bare,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )

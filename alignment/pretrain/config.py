"""The config of the stage `pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.pretrain.schedule import DecayShape
from data.sources import TextSplit
from launch.config import artefact, operational
from launch.stage import StageConfig


@dataclass(kw_only=True)
class PretrainConfig(StageConfig):
    """Pretrain a GPT (Qwen3 architecture) from raw text; `depth` is the one size dial, null values follow from it."""

    data: str = artefact("embedded:python-prose::train")
    """The text: embedded:python-prose, a file or folder (.txt, .jsonl, .json, .csv, .tsv, .parquet), or hub:org/name;
    `::train` leaves out the split that evaluations are made on."""
    text_field: str = "text"
    """Column of the text in tables."""
    split_text: TextSplit = "file"
    """What one document of a text file is: the file, a paragraph (blank-line), or the text between <|endoftext|> marks."""
    heldout: str = "hash:0.05"
    """Text never trained on: hash:SHARE of the documents of `::train`, by content, and all of `::eval`; or last:SHARE of
    the characters of the one document."""
    tokenizer: str | None = artefact(None)
    """Folder of a tokenizer, or hub:org/name; null trains a byte-level BPE on the training text."""
    vocab_size: int = 1024
    """Size of the trained tokenizer; 261 gives plain bytes."""
    context: int = 128
    """Tokens in a training row, and the longest input of the model."""

    depth: int = 3
    """Layers: the size dial."""
    width: int | None = None
    """Width of the model; null: 64 times the depth."""
    heads: int | None = None
    """Attention heads; null: one for each 64 of the width."""
    mlp_width: int | None = None
    """Inner width of the SwiGLU; null: 8/3 of the width."""
    tie_embeddings: bool = False
    """Whether embedding and head share their weights."""
    rope_theta: float = 1000.0
    """Base of the rotary wavelengths; small, for contexts of hundreds of tokens."""

    tokens: int | None = None
    """Training tokens; null: 20 for each parameter in matrix products."""
    batch_tokens: int | None = None
    """Tokens in a global batch, rounded to whole rows; null: grows as tokens^0.383."""
    micro_batch_tokens: int = 16384
    """Most tokens that a process puts through the model at once; gradients are accumulated over the rest of its share."""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """muon: Muon for hidden matrices, AdamW for the rest; adamw: AdamW for all, the only one under DeepSpeed ZeRO."""
    learning_rate: float | None = None
    """Peak rate of AdamW for embeddings, head and norms; null: by batch and width."""
    matrix_learning_rate: float | None = None
    """Peak rate of the hidden matrices; null: by batch (and width, for AdamW)."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the hidden matrices."""
    warmup: float = 0.02
    """Share of the steps over which the learning rate rises."""
    decay: float = 0.6
    """Share of the steps over which it falls to zero."""
    decay_shape: DecayShape = "linear"
    """How it falls."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm."""

    log_steps: int = operational(20)
    """Steps between log lines."""
    eval_steps: int = operational(0)
    """Steps between evaluations on the held-out text; 0: at the end alone."""

    def check(self) -> None:
        """ValueError on values that cannot work, naming the key."""
        positive = ("context", "depth", "width", "heads", "mlp_width", "tokens", "batch_tokens", "micro_batch_tokens")
        for name in (*positive, "learning_rate", "matrix_learning_rate", "rope_theta", "max_grad_norm", "log_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: {value} must be above 0; give a positive number")
        for name in ("warmup", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is a share of the steps; give a number from 0 to 1")
        if self.weight_decay < 0 or self.eval_steps < 0:
            name = "weight_decay" if self.weight_decay < 0 else "eval_steps"
            raise ValueError(f"{name}: {getattr(self, name)} is below 0; give 0 or more")
        parse_heldout(self.heldout)


def parse_heldout(text: str) -> tuple[str, float]:
    """("hash" or "last", share) of a `heldout` value; ValueError when it has another form."""
    kind, _, share = text.partition(":")
    try:
        value = float(share)
    except ValueError:
        value = 0.0
    if kind not in ("hash", "last") or not 0 < value < 1:
        raise ValueError(f"heldout: {text!r} is not hash:SHARE or last:SHARE; give for example hash:0.05")
    return kind, value

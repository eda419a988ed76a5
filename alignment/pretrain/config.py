"""The config of the stage `pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignment.pretrain.schedule import DecayShape
from data.sources import TextSplit
from launch.config import artefact, operational
from launch.ranges import Count, NotNegative, Positive, PositiveInt, Share
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
    vocab_size: PositiveInt = 1024
    """Size of the trained tokenizer; 261 gives plain bytes."""
    context: PositiveInt = 128
    """Tokens in a training row, and the longest input of the model."""

    depth: PositiveInt = 3
    """Layers: the size dial."""
    width: PositiveInt | None = None
    """Width of the model; null: 64 times the depth."""
    heads: PositiveInt | None = None
    """Attention heads; null: one for each 64 of the width."""
    mlp_width: PositiveInt | None = None
    """Inner width of the SwiGLU; null: 8/3 of the width."""
    tie_embeddings: bool = False
    """Whether embedding and head share their weights."""
    rope_theta: Positive = 1000.0
    """Base of the rotary wavelengths; small, for contexts of hundreds of tokens."""

    tokens: PositiveInt | None = None
    """Training tokens; null: 20 for each parameter in matrix products."""
    batch_tokens: PositiveInt | None = None
    """Tokens in a global batch, rounded to whole rows; null: grows as tokens^0.383."""
    micro_batch_tokens: PositiveInt = 16384
    """Most tokens that a process puts through the model at once; gradients are accumulated over the rest of its share."""
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    """muon: Muon for hidden matrices, AdamW for the rest; adamw: AdamW for all, the only one under DeepSpeed ZeRO."""
    learning_rate: Positive | None = None
    """Peak rate of AdamW for embeddings, head and norms; null: by batch and width."""
    matrix_learning_rate: Positive | None = None
    """Peak rate of the hidden matrices; null: by batch (and width, for AdamW)."""
    weight_decay: NotNegative = 0.0
    """Decoupled weight decay of the hidden matrices."""
    warmup: Share = 0.02
    """Share of the steps over which the learning rate rises."""
    decay: Share = 0.6
    """Share of the steps over which it falls to zero."""
    decay_shape: DecayShape = "linear"
    """How it falls."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this global norm."""

    log_steps: PositiveInt = operational(20)
    """Steps between log lines."""
    eval_steps: Count = operational(0)
    """Steps between evaluations on the held-out text; 0: at the end alone."""

    def check(self) -> None:
        """ValueError on values that cannot work, naming the key."""
        if not self.data:
            raise ValueError("data: is empty; name a file or folder of text, embedded:python-prose or hub:org/name")
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

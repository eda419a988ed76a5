"""From the config to a plan: every number of a run that the config leaves open, derived before the first step."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from alignment.pretrain import dial
from alignment.pretrain.config import PretrainConfig
from launch.errors import UserError

Algorithm = Literal["muon", "adamw"]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes, batch, horizon and rates of a run. `batch_rows` is the global batch, `tokens` what `steps` of it hold."""

    shape: dial.Shape
    tokens: int
    batch_rows: int
    steps: int
    warmup_steps: int
    decay_steps: int
    optimizer: Algorithm
    learning_rate: float
    matrix_learning_rate: float

    @property
    def batch_tokens(self) -> int:
        """Cells of the global batch."""
        return self.batch_rows * self.shape.context

    def as_dict(self) -> dict[str, Any]:
        """For the provenance."""
        return dataclasses.asdict(self)


def plan_shape(config: PretrainConfig, vocab_size: int) -> dial.Shape:
    """The shape that the config's depth and overrides give; UserError where they do not fit each other."""
    width = config.width or dial.model_width(config.depth)
    heads = config.heads or dial.head_count(width)
    if width % heads or (width // heads) % 2:
        raise UserError(
            f"width, heads: {width} over {heads} heads is not an even number for each head (rotary embeddings turn pairs); "
            "change one of them"
        )
    mlp_width = config.mlp_width or dial.mlp_width(width)
    return dial.Shape(config.depth, width, heads, mlp_width, vocab_size, config.context, config.tie_embeddings)


def choose_optimizer(wanted: str, zero_stage: int) -> Algorithm:
    """Muon unless the job runs under DeepSpeed ZeRO, where no process has whole matrices or gradients."""
    if wanted == "muon" and zero_stage > 0:
        raise UserError(
            f"optimizer: muon needs whole matrices, which DeepSpeed ZeRO-{zero_stage} splits over the processes; "
            "give adamw or auto, or launch without DeepSpeed"
        )
    return "adamw" if wanted == "adamw" or zero_stage > 0 else "muon"


def derive_plan(config: PretrainConfig, vocab_size: int, zero_stage: int = 0) -> Plan:
    """All derived numbers; a value that the config gives wins over its formula."""
    shape = plan_shape(config, vocab_size)
    tokens = config.tokens or dial.token_budget(shape.product_parameters)
    rows = _batch_rows(config, tokens)
    batch = rows * config.context
    steps = round(tokens / batch)
    if steps < 1:
        raise UserError(
            f"tokens: {tokens} do not fill one batch of {batch}; give more tokens or a smaller batch_tokens"
        )
    algorithm = choose_optimizer(config.optimizer, zero_stage)
    if algorithm == "muon":
        matrix_lr = dial.muon_lr(batch)
    else:
        matrix_lr = dial.adamw_lr(dial.REFERENCE_MATRIX_ADAMW_LR, shape.width, batch)
    return Plan(
        shape=shape,
        tokens=steps * batch,
        batch_rows=rows,
        steps=steps,
        warmup_steps=round(config.warmup * steps),
        decay_steps=round(config.decay * steps),
        optimizer=algorithm,
        learning_rate=config.learning_rate or dial.adamw_lr(dial.REFERENCE_ADAMW_LR, shape.width, batch),
        matrix_learning_rate=config.matrix_learning_rate or matrix_lr,
    )


def _batch_rows(config: PretrainConfig, tokens: int) -> int:
    """Rows in the global batch: as given, or by the formula in multiples of 8, which 2, 4 and 8 processes can share."""
    if config.batch_tokens is not None:
        return max(1, round(config.batch_tokens / config.context))
    return max(8, 8 * round(dial.batch_tokens(tokens) / config.context / 8))

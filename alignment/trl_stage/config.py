"""What the three stages' configs share, and the transformers TrainingArguments that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from data import Pair, Preference, named_splits
from launch.config import artefact
from launch.errors import UserError
from launch.ranges import Count, NotNegative, Positive, PositiveInt, Range, ShareBelowOne
from launch.seeding import derive_seed
from launch.stage import Job, StageConfig

if TYPE_CHECKING:
    from transformers import TrainingArguments

T = TypeVar("T", Pair, Preference)
Arguments = TypeVar("Arguments", bound="TrainingArguments")


@dataclass(kw_only=True)
class TrainerConfig(StageConfig):
    """What every stage on a TRL trainer has."""

    model: str = artefact()
    """The model to start from: a folder, or hub:org/name."""
    data: str = artefact()
    """Training data: a file, a folder, embedded:... or hub:org/name."""
    eval_data: str | None = artefact(None)
    """Held-out data; when not given, `eval_fraction` of `data` is held out."""
    eval_fraction: ShareBelowOne = 0.05
    """Share of the prompts of `::train` that is held out, by content, besides all of `::eval`; 0 holds out nothing."""
    max_length: Annotated[int, Range(2)] | None = None
    """Longest row in tokens; longer ones are left out and counted, never cut. The model's context when not given."""

    epochs: Positive = 1.0
    """Passes over the training data."""
    batch_size: PositiveInt = 32
    """Rows (or pairs) in one optimizer step, over all processes."""
    micro_batch_size: Count = 0
    """Rows (or pairs) in one forward and backward pass on each process; 0 for all of a process's share."""
    learning_rate: Positive = 5e-4
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up; all but `constant` end at 0."""
    warmup_fraction: ShareBelowOne = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: NotNegative = 0.0
    """AdamW's weight decay (not on norms and biases)."""
    adam_beta2: ShareBelowOne = 0.999
    """AdamW's decay of the squared gradients."""
    max_grad_norm: Positive = 1.0
    """Gradients are clipped to this norm."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    eval_steps: Count = 0
    """Steps between evaluations on the held-out data; 0 for at the end alone."""

    def check(self) -> None:
        for name in ("model", "data"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; add --{name} PATH")
        if self.eval_steps and not self.eval_data and not self.eval_fraction:
            raise ValueError("eval_steps: nothing is held out; give eval_data or an eval_fraction above 0")


def hold_out(items: list[T], config: TrainerConfig) -> tuple[list[T], list[T]]:
    """(items to train on, held-out items) of one source, see data/named_splits.py; UserError when none is left."""
    train, held = named_splits.hold_out(items, config.eval_fraction)
    if not train:
        raise UserError(
            f"data: {config.data}: all {len(items)} rows are held out; give more rows, or --eval_fraction 0"
        )
    return train, held


def divide_batch(batch_size: int, micro_batch_size: int, world: int) -> tuple[int, int]:
    """(rows of a micro-batch, micro-batches of a step) on each process, so that their product times `world` is the batch.

    Without `micro_batch_size` a process takes its whole share at once; a larger one than the share is the share.
    """
    if batch_size % world:
        raise UserError(f"batch_size: {batch_size} does not divide by {world} processes; give a multiple of {world}")
    share = batch_size // world
    micro = min(micro_batch_size or share, share)
    if share % micro:
        raise UserError(
            f"micro_batch_size: {micro} does not divide the {share} rows of each process (batch_size {batch_size} over "
            f"{world}); give a divisor of {share}"
        )
    return micro, share // micro


def training_arguments(cls: type[Arguments], config: TrainerConfig, job: Job, **own: Any) -> Arguments:
    """A trainer's arguments: ours mapped onto its, everything that reports, uploads or saves by itself switched off.

    `use_configured_state` keeps the process group that the runtime made. Without it, TrainingArguments makes its own,
    and under DeepSpeed on the CPU every rank then believes that it is the only one.
    """
    micro, accumulation = divide_batch(config.batch_size, config.micro_batch_size, job.runtime.world)
    seed = derive_seed(config.seed, "trainer") % 2**31
    return cls(
        output_dir=str(job.output_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=2 * micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=config.warmup_fraction,
        weight_decay=config.weight_decay,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=config.gradient_checkpointing,
        bf16=job.runtime.accelerator.mixed_precision == "bf16",  # else the runtime's own autocast, see StageTrainer
        use_cpu=job.runtime.device.type == "cpu",  # for a check of bf16 alone: the state is configured already
        seed=seed,
        data_seed=seed,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # checkpoints are ours
        eval_strategy="steps" if config.eval_steps else "no",
        eval_steps=config.eval_steps or None,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=job.runtime.device.type == "cuda",
        accelerator_config={"use_configured_state": True},
        **own,
    )

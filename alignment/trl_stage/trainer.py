"""A TRL trainer under our stage contract: our checkpoints, log, progress, watchdog, precision and row order.

`class SFT(StageTrainer, SFTTrainer)` keeps TRL's loss and loop and replaces what a stage owns. A checkpoint is
written by the ten-point protocol of launch/checkpoint.py into a folder that the transformers Trainer can resume from;
the Trainer's own way writes in place, deletes first and detects no damage.
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import DistributedType
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl.trainer import utils as trl_utils

from alignment.trl_stage.order import EpochSampler
from launch.checkpoint import Checkpoint
from launch.engine import check_weights, local_weights
from launch.errors import UserError
from launch.progress import Meter
from launch.stage import Job

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object

Batch = dict[str, Tensor]
PROBE_ROWS = 8

# transformers warns at each start of a name that TRL still uses; users can do nothing about it.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated", category=FutureWarning)

# TRL runs the output head on completion tokens alone where Triton runs, and on every position elsewhere (a shape that
# changes makes Neuron compile again). On the CPU that costs a fifth of an SFT step, so it is switched on there, too.
assert hasattr(trl_utils, "_use_triton"), "trl has changed: look at add_fused_lm_head"
trl_utils._use_triton = lambda device: device.type != "neuron"


class StageTrainer(Base):
    """Mixin in front of a TRL trainer class. `lengths` are the rows' lengths in tokens, for grouping."""

    eval_names: tuple[str, ...]
    """What `eval_sums` sums."""
    _total_train_tokens: int

    def eval_sums(self, batch: Batch, real: int) -> Tensor:
        """Sums over the first `real` rows of a batch, (len(eval_names),)."""
        raise NotImplementedError

    def eval_metrics(self, sums: list[float]) -> dict[str, float]:
        """Metrics from the sums over all ranks and batches."""
        raise NotImplementedError

    def __init__(self, *, job: Job, lengths: list[int], **rest: Any) -> None:
        self.job, self.lengths = job, lengths
        open_deepspeed_settings(job)
        super().__init__(**rest)
        self.remove_callback(PrinterCallback)
        self.add_callback(StageCallback(self))
        world = dist.get_world_size() if dist.is_initialized() else 1
        assert self.accelerator.num_processes == world, "accelerate's world is not torch.distributed's"
        exchanges = self.accelerator.distributed_type != DistributedType.NO
        assert exchanges or world == 1, "accelerate would train each process alone: set ACCELERATE_USE_CPU=true"
        self.can_return_loss = True

    # ------------------------------------------------------------------------------------ what a stage owns

    def _send_telemetry(self) -> None:
        """TRL reports each trainer to the hub; a stage reports to nobody."""

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        """DeepSpeed is configured in the runtime's accelerator, which all others share; a second plugin is refused."""
        return {**super()._build_accelerator_args(**kwargs), "deepspeed_plugin": None}  # type: ignore[misc]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """The runner writes the model card."""

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        steps = math.ceil(len(self.lengths) / batch)
        sampler = EpochSampler(self.lengths, batch, self.job.config.seed, lambda: self.state.global_step // steps)
        if dataset is not None:  # else accelerate drops rows from the metrics of an epoch's last batch, which is full
            dataset.total_dataset_length = len(sampler)
        return sampler

    def compute_loss_context_manager(self) -> contextlib.ExitStack:
        """The runtime's precision; the Trainer's own bf16 option fixes it before it can be measured."""
        stack = contextlib.ExitStack()
        stack.enter_context(self.job.runtime.autocast())
        return stack

    # ------------------------------------------------------------------------------------ checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        check_weights(local_weights(model), self.job.runtime)
        self.job.checkpoints.save_with(
            self.state.global_step, self._write_checkpoint, {"zero_stage": self.job.runtime.zero_stage}
        )

    def _write_checkpoint(self, folder: Path) -> None:
        """What `train(resume_from_checkpoint=folder)` reads. All ranks call this."""
        self.state.num_input_tokens_seen = self._total_train_tokens  # TRL forgets its count at a resume
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def check_resumable(self, checkpoint: Checkpoint) -> None:
        """UserError when a checkpoint cannot be continued by this job: DeepSpeed's are bound to stage and world."""
        runtime = self.job.runtime
        before = (checkpoint.meta.get("zero_stage", 0), checkpoint.meta["world"])
        now = (runtime.zero_stage, runtime.world)
        if before != now and (before[0] or now[0]):
            raise UserError(
                f"{checkpoint.folder}: saved by {before[1]} processes under ZeRO stage {before[0]}, this job has {now[1]} "
                f"under stage {now[0]}; resume with the launcher configuration that the run was started with"
            )

    # ------------------------------------------------------------------------------------ evaluation

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Metrics over the whole held-out set: sums of every rank's rows over their counts, never means of means."""
        totals = torch.zeros(len(self.eval_names), dtype=torch.float64)
        model: Any = self.model
        model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for rows, real in self._eval_batches():
                sums = self.eval_sums(self._prepare_inputs(self.data_collator(rows)), real)
                totals += sums.double().cpu()
                self.job.beat(self.state.global_step)
        model.train()
        metrics = self.eval_metrics(self.job.runtime.sum(totals).tolist())
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.job.log(self.state.global_step, metrics)
        self.control.should_evaluate = False  # or the end of an epoch would evaluate the same step again
        return metrics

    def _eval_batches(self) -> list[tuple[list[dict[str, Any]], int]]:
        """This rank's batches and their number of real rows; ranks with fewer rows repeat one that does not count.

        Under ZeRO-3 every forward pass is a collective: all ranks must make the same number.
        """
        rank, world, size = self.job.runtime.rank, self.job.runtime.world, self.args.per_device_eval_batch_size
        rows: list[dict[str, Any]] = list(self.eval_dataset)  # type: ignore[arg-type]
        rows.sort(key=lambda row: -sum(len(v) for v in row.values() if isinstance(v, list)))
        mine = rows[rank::world]
        count = math.ceil(math.ceil(len(rows) / world) / size)
        batches = [mine[i * size : (i + 1) * size] for i in range(count)]
        return [(batch or rows[:1], len(batch)) for batch in batches]


def open_deepspeed_settings(job: Job) -> None:
    """Let the launcher's DeepSpeed configuration take batch sizes and clipping from the stage's config.

    The transformers Trainer refuses a configuration that says otherwise, and accelerate's files state these always.
    """
    if not job.runtime.uses_deepspeed:
        return
    settings = job.runtime.accelerator.state.deepspeed_plugin.deepspeed_config
    names = ("gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu", "train_batch_size")
    settings.update(dict.fromkeys(names, "auto"))
    if job.runtime.zero_stage == 3:  # or nothing but partitions would be saved
        settings["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True


class StageCallback(TrainerCallback):
    """Feeds the job: log, progress, watchdog, checkpoints and orderly stops."""

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.job = trainer, trainer.job
        self.meter = Meter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer._total_train_tokens = state.num_input_tokens_seen

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.job.beat(state.global_step)
        last = state.global_step == state.max_steps  # so that what comes after training can be redone alone
        control.should_save = self.job.checkpoint_due(state.global_step) or last

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs is None or "loss" not in logs:
            return  # the Trainer's closing summary; ours is in the stage's result
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"learning_rate: the loss is {logs['loss']} at step {state.global_step}; lower it, or look at the data"
            )
        self.job.log(state.global_step, {k: v for k, v in logs.items() if isinstance(v, (int, float))})
        self.meter.advance(1, loss=logs["loss"])

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.job.stop_if_requested(state.global_step)


def train(trainer: Any, job: Job) -> dict[str, float]:
    """Run or resume a trainer to its end. Returns {steps, and of this run perf/tokens_per_second and perf/train_seconds}."""
    checkpoint = job.resume()
    if checkpoint is not None:
        trainer.check_resumable(checkpoint)
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, StageCallback))
    steps = planned_steps(trainer)
    start, first = time.perf_counter(), checkpoint.step if checkpoint else 0
    with job.progress(steps, job.stage.name, done=first) as callback.meter:
        trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    seconds, made = time.perf_counter() - start, steps - first
    rows_per_step = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps * trainer.args.world_size
    tokens = made * rows_per_step * sum(trainer.lengths) / len(trainer.lengths)
    return {"steps": steps, "perf/tokens_per_second": tokens / seconds if made else 0.0, "perf/train_seconds": seconds}


def planned_steps(trainer: Any) -> int:
    """Optimizer steps of the whole run, as the Trainer counts them."""
    args = trainer.args
    batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return math.ceil(args.num_train_epochs * math.ceil(len(trainer.lengths) / batch))


def settle_precision(trainer: Any, job: Job) -> None:
    """`Job.settle_precision` by one small step of a TRL trainer, whose counts of it are forgotten."""
    if not job.precision_is_open:
        return
    rows = [trainer.train_dataset[i] for i in range(min(PROBE_ROWS, len(trainer.train_dataset)))]
    batch = trainer.data_collator(rows)

    def step() -> None:
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        trainer.model.zero_grad()

    job.settle_precision(step)
    trainer._metrics["train"].clear()
    trainer._total_train_tokens = 0

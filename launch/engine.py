"""A trained module and its optimizer, the same to use on one process, under DDP and under DeepSpeed ZeRO 1, 2, 3.

The loop that uses it owns the batches: it gives losses that are already divided by the count of the GLOBAL batch,
says which micro-batch is the last, and sets the learning rate. So the gradient is the same for every number of
ranks and micro-batches. A loop may have several engines, one for each network that it trains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from launch.checkpoint import Checkpoint, CheckpointStore, read_tree, write_tree
from launch.errors import UserError
from launch.runtime import Runtime


def check_weights(weights: Mapping[str, Tensor], runtime: Runtime) -> None:
    """UserError on every rank when some rank holds a weight that is NaN or infinite. All ranks call this together.

    A loss is looked at before its update, so nothing else sees what the last update did: before weights are written.
    """
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.isfinite().all()]
    found = next((name for names in runtime.gather_objects(broken[:1]) for name in names), None)
    if found is not None:
        raise UserError(
            f"the last update made weights that are not finite ({found}), and nothing was written; start over in another "
            "folder with a lower learning_rate (the checkpoints before this update are intact)"
        )


def local_weights(module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a module as far as this rank holds them: under ZeRO-3 its part of each, elsewhere all of it."""
    return {name: _held(value) for name, value in module.named_parameters()}


def _held(parameter: Any) -> Tensor:
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    part = parameter.ds_tensor
    # all ranks have equally long parts: DeepSpeed fills the last ones up with what happens to lie in memory
    filled = parameter.ds_numel - parameter.ds_zero_partition_rank * part.ds_numel
    return part.reshape(-1)[: max(0, filled)]  # one that lies on a disk is a number here


class Engine:
    """`engine(*inputs)` runs the module; `backward` and `step` train it; `save` and `load` keep its whole state."""

    def __init__(
        self,
        runtime: Runtime,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        micro_batch: int,
        whole: bool = False,
    ) -> None:
        """`whole`: under ZeRO-3 train this module by ZeRO-2, which splits gradients and optimizer but not the weights.

        For a module that takes derivatives of itself: ZeRO-3 frees the weights after the first of two backward passes.
        """
        self.runtime, self.max_grad_norm = runtime, max_grad_norm
        self.zero_stage = min(2, runtime.zero_stage) if whole else runtime.zero_stage
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        if runtime.uses_deepspeed:
            self._configure_deepspeed(micro_batch)
        self.wrapped, self.optimizer = runtime.accelerator.prepare(module, optimizer)
        # Without its wrappers; asked for many times a step, and accelerate reads DeepSpeed's package metadata each time.
        self.module: Any = runtime.accelerator.unwrap_model(self.wrapped, keep_torch_compile=False)

    def _configure_deepspeed(self, micro_batch: int) -> None:
        """What accelerate gives to the DeepSpeed engine that it makes next."""
        accelerator = self.runtime.accelerator
        accelerator.deepspeed_engine_wrapped = None  # it keeps one for its own `backward`, which is not used here
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings |= {
            "train_micro_batch_size_per_gpu": micro_batch,  # there is no DataLoader to read it from
            "train_batch_size": "auto",
            "gradient_accumulation_steps": 1,  # the loop says which micro-batch is the last, and scales its losses
            "gradient_clipping": self.max_grad_norm,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        settings["zero_optimization"]["stage"] = self.zero_stage

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        with self._precision():
            return self.wrapped(*inputs, **named)

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast, but not under DeepSpeed, whose weights are in bf16 themselves: it switches autocast off on a GPU alone."""
        if self.runtime.uses_deepspeed:
            return torch.autocast(self.runtime.device.type, enabled=False)
        return self.runtime.autocast()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Accumulate gradients. `loss` is this rank's share of the global loss: ranks are summed, not averaged.

        Gradients are exchanged on the `last` micro-batch of a step only, where the ZeRO stage allows that.
        """
        loss = loss * self.runtime.world  # DDP and DeepSpeed average over ranks
        if self.runtime.uses_deepspeed:
            self.wrapped.set_gradient_accumulation_boundary(last)
            self.wrapped.backward(loss)
        else:
            loss.backward()  # accelerate's would divide by the gradient accumulation steps of the launcher

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Around the forward and backward pass of a micro-batch: DDP must know before the forward that it need not exchange."""
        skip = not last and not self.runtime.uses_deepspeed
        with self.runtime.accelerator.no_sync(self.wrapped) if skip else contextlib.nullcontext():
            yield

    def set_lr(self, *factors: float) -> None:
        """Learning rates of the next step: the base rates times one factor, or times one for each parameter group."""
        each = factors * len(self.base_lrs) if len(factors) == 1 else factors
        for group, base, factor in zip(self.optimizer.param_groups, self.base_lrs, each, strict=True):
            group["lr"] = base * factor

    def restart_optimizer(self, role: str) -> None:
        """Forget the optimizer's moments and step counts of the parameter groups of a `role`, as if it were new.

        A step with gradients and rate 0 moves nothing, but it counts: Adam's bias correction would be gone, and the first
        real steps several times the learning rate. In place, since DeepSpeed keeps references to the tensors.
        """
        for parameters in self._flat_parameters(role):
            state = self.optimizer.state.get(parameters, {})
            for name, value in state.items():
                state[name] = value.zero_() if isinstance(value, Tensor) else type(value)(0)

    def _flat_parameters(self, role: str) -> list[Tensor]:
        """What the optimizer keeps state for, of the groups of a `role`: parameters, or DeepSpeed's flat parts of them.

        Each group has flat parts of its own under every ZeRO stage; ZeRO-3 lists them in the groups only while it steps.
        """
        groups = self.optimizer.param_groups
        if self.runtime.uses_deepspeed and self.zero_stage == 3:
            inner = self.wrapped.optimizer
            parts = enumerate(inner.fp32_partitioned_groups_flat)
            return [part for i, part in parts if groups[inner.sub_group_to_group_id[i]].get("role") == role]
        return [parameter for group in groups if group.get("role") == role for parameter in group["params"]]

    @property
    def can_set_aside(self) -> bool:
        """Whether `set_aside` can be called: not where DeepSpeed moves the gradients to the CPU, or keeps no parts of them."""
        if not self.runtime.uses_deepspeed:
            return True
        inner = self.wrapped.optimizer
        offloads = getattr(inner, "cpu_offload", False) or getattr(inner, "offload_optimizer", False)
        return hasattr(inner, "averaged_gradients") and not offloads

    def set_aside(self, role: str) -> list[Tensor]:
        """Take out the gradients so far of the parameter groups of a `role`, as `gradients` has them, and start from 0.

        Between two losses of one step, to tell their gradients apart; add them to `gradients` before the step. The backward
        pass before must have been a `last` one: DeepSpeed exchanges gradients then. DDP is spared it (it would miss
        those of the parameters that this loss does not reach), so without DeepSpeed they are exchanged here.
        """
        parts, world = self.gradients(role), self.runtime.world
        aside = [part.clone() if self.runtime.uses_deepspeed else self.runtime.sum(part) / world for part in parts]
        for part in parts:
            part.zero_()
        return aside

    def gradients(self, role: str) -> list[Tensor]:
        """This rank's parts of the gradients of the groups of a `role` after a `last` backward pass, to be changed in place.

        Under ZeRO each rank has others, elsewhere every rank has all of them.
        """
        groups = self.optimizer.param_groups
        if self.runtime.uses_deepspeed:
            inner = self.wrapped.optimizer
            group_of = inner.sub_group_to_group_id if self.zero_stage == 3 else range(len(groups))
            parts = inner.averaged_gradients.items()
            return [part for i, own in parts if groups[group_of[i]].get("role") == role for part in own]
        trained = [parameter for group in groups if group.get("role") == role for parameter in group["params"]]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in trained]

    def gradient_norm(self, parts: list[Tensor]) -> Tensor:
        """The norm of the gradients whose parts on this rank are given, over all ranks; a scalar, the same on each."""
        norms = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts]
        squares = torch.stack(norms).square().sum()
        return (self.runtime.sum(squares) if self.runtime.uses_deepspeed else squares).sqrt()

    def step(self) -> float:
        """Clip, make the optimizer step and clear the gradients. Returns the gradient norm before clipping."""
        if self.runtime.uses_deepspeed:
            self.wrapped.step()
            if self.zero_stage == 3:
                # It overwrites old gradients in the first backward pass of a step, and adds to them afterwards: those that the
                # first pass does not reach (a critic's, where that pass is PTX) would count again.
                self.wrapped.optimizer.grad_partitions_flat_buffer.zero_()
            norm = self.wrapped.get_global_grad_norm()
            return float(norm) if norm is not None else float("nan")
        norm = torch.nn.utils.clip_grad_norm_(self.wrapped.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    # ------------------------------------------------------------------------------------ state

    def save(self, store: CheckpointStore, step: int, extra: dict[str, Any]) -> bool:
        """Save weights, optimizer and `extra` (a tree, the same on every rank) as the checkpoint of `step`.

        Frozen weights are left out: they are those that the module was made with.
        """
        return save_engines({"engine": self}, store, step, extra)

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Restore weights and optimizer from a verified checkpoint; returns `extra`."""
        return load_engines({"engine": self}, checkpoint)

    def frozen_names(self) -> set[str]:
        """Parameters that are not trained; tied ones by all their names."""
        named = self.module.named_parameters(remove_duplicate=False)
        return {name for name, parameter in named if not parameter.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """The module's state dict without its frozen parameters."""
        frozen = self.frozen_names()
        return {name: value for name, value in self.module.state_dict().items() if name not in frozen}

    @contextlib.contextmanager
    def gathered(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Inside, these parameters are whole on every rank (ZeRO-3 keeps each rank's part alone)."""
        if self.zero_stage == 3:
            import deepspeed

            with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None):
                yield
        else:
            yield

    def state_dict_of(self, module: nn.Module) -> dict[str, Tensor]:
        """The whole state dict of a submodule, copied to the CPU. All ranks call this together."""
        with self.gathered(module.parameters()):
            return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}

    def export(self, module: Any, folder: Path) -> None:
        """Write a submodule that is a Hugging Face model as a plain `from_pretrained` folder, from any ZeRO stage."""
        state = self.state_dict_of(module)
        check_weights(state, self.runtime)
        if self.runtime.is_main:
            module.save_pretrained(folder, state_dict=state)
        self.runtime.barrier()


def save_engines(engines: Mapping[str, Engine], store: CheckpointStore, step: int, extra: dict[str, Any]) -> bool:
    """Save weights and optimizers of all engines and `extra` (a tree, the same on every rank) as one checkpoint."""
    runtime = store.runtime
    for engine in engines.values():
        check_weights(local_weights(engine.module), runtime)
    if not runtime.uses_deepspeed:
        states = {n: {"module": e.trained_state(), "optimizer": e.optimizer.state_dict()} for n, e in engines.items()}
        return store.save(step, {"engines": states, "extra": extra})

    def write(folder: Path) -> None:
        for name, engine in engines.items():
            engine.wrapped.save_checkpoint(str(folder), tag=name, exclude_frozen_parameters=True)
        if runtime.is_main:
            write_tree(folder, "extra", extra)

    return store.save_with(step, write, {"zero_stage": runtime.zero_stage})


def load_engines(engines: Mapping[str, Engine], checkpoint: Checkpoint) -> dict[str, Any]:
    """Restore what `save_engines` saved from a verified checkpoint; returns `extra`.

    A checkpoint of DeepSpeed can be resumed with the same number of processes and ZeRO stage only.
    """
    runtime = next(iter(engines.values())).runtime
    _check_same_launch(checkpoint, runtime)
    if runtime.uses_deepspeed:
        for name, engine in engines.items():
            strict = not engine.frozen_names()
            engine.wrapped.load_checkpoint(str(checkpoint.folder), tag=name, load_module_strict=strict)
        return read_tree(checkpoint.folder, "extra")
    state = checkpoint.state()
    for name, engine in engines.items():
        missing, unexpected = engine.module.load_state_dict(state["engines"][name]["module"], strict=False)
        assert not unexpected and set(missing) <= engine.frozen_names(), (missing, unexpected)
        engine.optimizer.load_state_dict(state["engines"][name]["optimizer"])
    return state["extra"]


def _check_same_launch(checkpoint: Checkpoint, runtime: Runtime) -> None:
    """UserError when this job's launcher configuration cannot read the checkpoint."""
    meta = checkpoint.meta
    if meta.get("zero_stage", 0) != runtime.zero_stage:
        raise UserError(
            f"{checkpoint.folder}: saved under ZeRO stage {meta.get('zero_stage', 0)}, this job runs stage {runtime.zero_stage}; "
            "resume with the launcher configuration that the run was started with"
        )
    if runtime.uses_deepspeed and meta["world"] != runtime.world:
        raise UserError(
            f"{checkpoint.folder}: saved by {meta['world']} processes under DeepSpeed, this job has {runtime.world}; "
            "resume with the same number of processes"
        )

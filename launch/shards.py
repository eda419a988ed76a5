"""DeepSpeed's shards, which are pickles, read without executing anything.

DeepSpeed 0.19 opens them by `torch.load(weights_only=False)`, which runs whatever a pickle names. The hash of a
checkpoint is no defence: it has no key, so whoever changes a shard can write the hash that fits. Here a shard may name
tensors and the few classes below, which are what DeepSpeed's checkpoints of ours hold.
"""

from __future__ import annotations

import copyreg
import pickle
import re
from typing import Any

import torch

from launch.errors import UserError


def allowed_classes() -> list[Any]:
    """What the optimizer states of ZeRO 1, 2 and 3 hold besides tensors and plain values; none acts when it is made."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, ZeroStageEnum, fragment_address]


def read_shard(path: str, map_location: Any = None) -> Any:
    """The content of one shard; UserError names the file and what in it is neither a tensor nor an allowed class."""
    try:
        with torch.serialization.safe_globals(allowed_classes()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        named = f"it names `{found[1]}`" if found else str(error).splitlines()[0]
        raise UserError(
            f"{path}: this shard holds more than tensors ({named}), and reading it could run a program; nothing was "
            "executed; restore the checkpoint from a copy that you trust, or remove it to resume from an earlier one"
        ) from None


def guard_deepspeed() -> None:
    """Let DeepSpeed read every shard by `read_shard`, whoever asks it to: our engines, or the transformers Trainer."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from deepspeed.runtime.zero.config import ZeroStageEnum

    # Python 3.11.0 to 3.11.3 write an Enum as a call of `getattr`, which no reader should allow
    copyreg.pickle(ZeroStageEnum, lambda stage: (ZeroStageEnum, (stage.value,)))

    def load(_self: Any, path: str, map_location: Any = None) -> Any:
        return read_shard(path, map_location)

    TorchCheckpointEngine.load = load

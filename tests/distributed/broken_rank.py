"""Program of test_finite_weights_distributed.py: one rank's part of a weight becomes NaN; is a checkpoint written?"""

from pathlib import Path

import torch
from torch import nn

from launch.checkpoint import CheckpointStore
from launch.engine import Engine
from launch.runtime import running, start_runtime


def main(words: list[str]) -> None:
    runtime = start_runtime("fp32")
    with running(runtime):
        torch.manual_seed(0)
        # fills with NaN what is not initialised: the end of DeepSpeed's last part of the weight, and all of that of the bias
        torch.use_deterministic_algorithms(True)
        module = nn.Linear(63, 1)
        engine = Engine(runtime, module, torch.optim.AdamW(module.parameters()), 1.0, 1)
        store = CheckpointStore(Path(words[0]), runtime, 2)
        engine.save(store, 1, {})
        if runtime.rank == 1:
            weight = next(iter(engine.module.parameters()))
            getattr(weight, "ds_tensor", weight).data[0] = float("nan")
        engine.save(store, 2, {})

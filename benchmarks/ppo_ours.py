"""One run of alignkit's PPO on a case: `python -m benchmarks.ppo_ours FOLDER`. Prints one JSON object."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.trainer import PPOTrainer
from alignment.reward.sources.build import build_source
from benchmarks.ppo_case import read_case
from launch.runtime import choose_precision, start_runtime


class TimeIsUp(Exception):
    """The benchmark's time is over."""


def main(folder: Path) -> None:
    """Run the case and print its figures."""
    case, prompts = read_case(folder)
    runtime = start_runtime(case.precision)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    config = PPOConfig(
        policy=str(folder / "policy"),
        reward=str(folder / "reward"),
        prompts="-",
        updates=case.warmup + case.updates,
        batch_size=case.batch,
        epochs=case.epochs,
        minibatches=1,
        micro_batch_size=case.micro_batch,
        forward_batch_size=64,
        max_new_tokens=case.response,
        max_prompt_tokens=case.prompt,
        missing_eos="none",
        learning_rate=case.learning_rate,
    )
    roles = load_roles(config)
    tokenizer = roles.tokenizer
    rows = [{"prompt": tokenizer.decode(ids), "prompt_ids": ids} for ids in prompts]
    source = build_source(config.sources, runtime.device, tokenizer, batch_tokens=64 * (case.prompt + case.response))
    trainer = PPOTrainer(config, roles, source, rows, runtime)
    if case.precision == "auto":
        runtime.precision = choose_precision(runtime, trainer.trial_step, repeats=2)
    updates: list[dict[str, float]] = []
    clock = [time.perf_counter()]

    def sink(number: int, metrics: dict[str, float]) -> None:
        clock.append(time.perf_counter())
        phases = {k: v for k, v in metrics.items() if k.startswith("perf/") and k.endswith("_seconds")}
        updates.append(
            {
                "seconds": clock[-1] - clock[-2],
                "generate": phases["perf/rollout_seconds"],
                "score": phases["perf/score_seconds"],
                "update": phases["perf/update_seconds"],
                "reward": metrics["reward/score"],
                "length": metrics["rollout/length"],
            }
        )

        if case.seconds and clock[-1] - clock[0] > case.seconds:
            raise TimeIsUp

    trainer.sink = sink
    clock[0] = time.perf_counter()
    with contextlib.suppress(TimeIsUp):
        trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {
                "case": asdict(case),
                "threads": torch.get_num_threads(),
                "precision": runtime.precision,
                "updates": updates[case.warmup :],
                "peak_mib": peak / 1024,
                "imports_mib": base / 1024,
                "pid": os.getpid(),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

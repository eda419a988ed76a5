"""One run of alignkit's PPO on a case: `python -m benchmarks.ppo_ours FOLDER`. Prints one JSON object."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_critic, load_roles
from alignment.ppo.rollout import make_batch
from alignment.ppo.trainer import PPOTrainer
from alignment.reward.sources.build import build_source
from benchmarks.ppo_case import PAD, Case, peak_mib, read_case, wait_for_device
from evaluation.batches import equal_slices
from launch.entry import guarded, leave
from launch.runtime import Runtime, choose_precision, start_runtime

PHASES = {"generate": "rollout", "score": "score", "update": "update"}
"""Name in the benchmark -> phase of the trainer."""


class TimeIsUp(Exception):
    """The benchmark's time is over."""


def make_trainer(folder: Path, case: Case, prompts: list[list[int]], runtime: Runtime) -> PPOTrainer:
    """The trainer of a case, with its precision settled."""
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
        critic_from="reward" if case.own_critic else "trunk",
    )
    roles = load_roles(config)
    rows = [{"prompt": roles.tokenizer.decode(ids), "prompt_ids": ids} for ids in prompts]
    room = 64 * (case.prompt + case.response)
    source = build_source(config.sources, runtime.device, roles.tokenizer, batch_tokens=room)
    trainer = PPOTrainer(config, roles, source, rows, runtime)
    if case.precision == "auto":
        runtime.precision = choose_precision(runtime, trainer.learner.trial_step, repeats=2)
    return trainer


def run_updates(trainer: PPOTrainer, seconds: float | None) -> list[dict[str, float]]:
    """Seconds by phase, reward and length of each update, until all are made or the time is over."""
    updates: list[dict[str, float]] = []
    start = last = time.perf_counter()

    def sink(number: int, metrics: dict[str, float]) -> None:
        nonlocal last
        wait_for_device()
        now = time.perf_counter()
        phases = {name: metrics[f"perf/{phase}_seconds"] for name, phase in PHASES.items()}
        names = {"reward": "reward/score", "kl": "kl/k1", "length": "rollout/length"}
        updates.append({"seconds": now - last, **phases, **{ours: metrics[name] for ours, name in names.items()}})
        last = now
        if seconds and now - start > seconds:
            raise TimeIsUp

    trainer.sink = sink
    with contextlib.suppress(TimeIsUp):
        trainer.train()
    return updates


def time_bare_passes(trainer: PPOTrainer, case: Case) -> dict[str, float]:
    """Seconds of transformers' own passes over a rollout, in micro-batches: forward, and forward and backward of a training step.

    The smaller of two. Episodes in the order of the rollout, padded to the longest of each micro-batch, each model's head at all
    positions: a policy's with its loss, the values of a critic, which is a model of its own or a new one of the reward model's size.
    """
    rollout, roles = trainer.rollout(trainer.next_prompts()), trainer.roles
    critic = roles.critic or load_critic(trainer.config, roles.tokenizer).to(trainer.runtime.device)
    batches = [
        make_batch(rollout, range(part.start, part.stop), PAD).tokens_bS
        for part in equal_slices(case.batch, case.micro_batch)
    ]
    runs = {
        "policy": lambda tokens: roles.policy(tokens, labels=tokens, use_cache=False).loss,
        "critic": lambda tokens: critic.score(critic.model(tokens, use_cache=False)[0]).square().mean(),
    }
    seconds: dict[str, float] = {}
    for _ in range(2):
        for (name, run), trains in itertools.product(runs.items(), (False, True)):
            wait_for_device()
            start = time.perf_counter()
            with torch.set_grad_enabled(trains):
                for tokens in batches:
                    with trainer.runtime.autocast():
                        loss = run(tokens)
                    if trains:
                        loss.backward()
            wait_for_device()
            key = f"{name}, {'training' if trains else 'forward'}"
            seconds[key] = min(time.perf_counter() - start, seconds.get(key, math.inf))
            trainer.engine.module.zero_grad()
            critic.zero_grad()
    return seconds


def main(folder: Path) -> None:
    """Run the case and print its figures."""
    case, prompts = read_case(folder)
    runtime = start_runtime(case.precision)
    imports = peak_mib()
    trainer = make_trainer(folder, case, prompts, runtime)
    updates = run_updates(trainer, case.seconds)
    figures = {
        "case": asdict(case),
        "threads": torch.get_num_threads(),
        "precision": runtime.precision,
        "updates": updates[case.warmup :],
        "peak_mib": peak_mib(),
        "imports_mib": imports,
    }
    if case.seconds is None:
        figures["bare_passes"] = time_bare_passes(trainer, case)
    print(json.dumps(figures))


if __name__ == "__main__":
    leave(guarded(lambda: main(Path(sys.argv[1]))))  # as every command of alignkit starts and ends

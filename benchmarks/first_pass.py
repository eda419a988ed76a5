"""What it saves that the first training pass gives the old log-probabilities: whole updates of GRPO with a scoring pass of the policy and without.

    python -m benchmarks.first_pass    (four minutes on two cores; writes benchmarks/results/first_pass.json)

The case of benchmarks.ppo at fixed lengths, 16 prompts with 4 responses each, the KL in the loss, one epoch; one trainer whose
updates take turns, so that nothing but the pass is another. Ratios are of medians; above 1 the update without it is faster.
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from alignment.ppo.config import PPOConfig
from alignment.ppo.models import load_roles
from alignment.ppo.rewards import build_rewards
from alignment.ppo.trainer import PPOTrainer
from benchmarks.common import about, result_file
from benchmarks.ppo_case import Case, read_case, write_case
from launch.files import write_json
from launch.runtime import start_runtime

TURNS = 7


def make_trainer(folder: Path, case: Case, precision: str) -> PPOTrainer:
    """GRPO on a case."""
    config = PPOConfig(
        policy=str(folder / "policy"),
        reward=str(folder / "reward"),
        prompts="-",
        updates=2 * TURNS + 2,
        estimator="grpo",
        samples_per_prompt=4,
        kl_in="loss",
        kl_kind="k3",
        batch_size=case.batch,
        epochs=1,
        micro_batch_size=case.micro_batch,
        forward_batch_size=case.batch,
        max_new_tokens=case.response,
        missing_eos="none",
        learning_rate=case.learning_rate,
    )
    runtime = start_runtime(precision)
    roles = load_roles(config)
    rows = [{"prompt": roles.tokenizer.decode(ids), "prompt_ids": ids} for ids in read_case(folder)[1]]
    return PPOTrainer(config, roles, build_rewards(config, roles, runtime.device), rows, runtime)


def measure(folder: Path, case: Case, precision: str) -> dict[str, Any]:
    """Seconds of updates by turns, the first of each not counted."""
    trainer = make_trainer(folder, case, precision)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for _ in range(TURNS + 1):
        for name, found in seconds.items():
            with patch.object(PPOConfig, "first_pass_is_old", False) if name == "with" else nullcontext():
                rollout = trainer.advantages(trainer.score(trainer.next_rollout()))
                trainer.update(rollout)
            found.append(sum(rollout.seconds.values()))
    medians = {name: statistics.median(found[1:]) for name, found in seconds.items()}
    ranges = {name: {"min": min(found[1:]), "max": max(found[1:])} for name, found in seconds.items()}
    return {"ratio": medians["with"] / medians["without"], "seconds": medians, "range": ranges}


def main() -> None:
    """All cases, each in both precisions."""
    measured = {**about("python -m benchmarks.first_pass"), "turns": TURNS, "cases": {}}
    for vocabulary in (1024, 32768):
        case = Case(vocabulary, natural_lengths=False)
        with tempfile.TemporaryDirectory() as name:
            write_case(Path(name), case)
            for precision in ("fp32", "bf16"):
                found = measure(Path(name), case, precision)
                print(case.name, precision, found, flush=True)
                measured["cases"][f"{case.name}, {precision}"] = found
    write_json(result_file("first_pass", "small"), measured)


if __name__ == "__main__":
    main()

"""`alignkit evaluate reward`: a reward model on preferences, or one policy against another before a judge.

`mode: accuracy` measures the reward model `model` on the pairs of `preferences`, `mode: candidates` on prompts with
several answers, `mode: implicit` the rewards that a DPO `policy` implies against its `reference`. `mode: win-rate` lets the reward model `judge` compare the completions of a policy with those of a
baseline on the same prompts; `mode: best-of-n` says what choosing among the policy's own samples gains.
"""

from __future__ import annotations

import importlib
from typing import Any

from evaluation.options import SCHEMA_VERSION
from evaluation.suites.reward_config import RewardEvaluationConfig
from launch.entry import run_module
from launch.stage import Job, Stage

MODES = {
    "accuracy": "reward_accuracy",
    "implicit": "reward_implicit",
    "candidates": "reward_candidates",
    "win-rate": "head_to_head",
    "best-of-n": "best_of_n",
}
"""The module of each mode."""


def run(config: RewardEvaluationConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl."""
    return importlib.import_module(f"evaluation.suites.{MODES[config.mode]}").evaluate(config, job)


STAGE = Stage("evaluate reward", RewardEvaluationConfig, run, version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.reward")

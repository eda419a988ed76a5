"""`alignkit evaluate reward`: a reward model on preferences, or one policy against another before a judge.

`mode: accuracy` measures the reward model `model` on the pairs of `preferences`. `mode: win-rate` lets the reward
model `judge` compare the completions of a policy with those of a baseline on the same prompts.
"""

from __future__ import annotations

from typing import Any

from evaluation.suites.reward_config import RewardEvaluationConfig
from launch.entry import run_module
from launch.stage import Job, Stage


def run(config: RewardEvaluationConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl."""
    if config.mode == "accuracy":
        from evaluation.suites.reward_accuracy import evaluate
    else:
        from evaluation.suites.head_to_head import evaluate
    return evaluate(config, job)


STAGE = Stage("evaluate reward", RewardEvaluationConfig, run)

if __name__ == "__main__":
    run_module("evaluation.suites.reward")

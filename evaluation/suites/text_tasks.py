"""Tasks of `alignkit evaluate text`: lm-evaluation-harness on our scorer, each request kept as it is answered."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.language.harness import require_lm_eval, run_tasks
from evaluation.language.harness_results import task_metrics, task_rows, task_settings
from evaluation.sample_log import score_samples
from evaluation.schema import Metric
from evaluation.suites.text import TextConfig
from launch.stage import Job

UNIT_BATCHES = 8


@dataclass(frozen=True)
class TaskScores:
    """What the tasks gave: metrics, rows of samples, what defines them, and caveats."""

    metrics: list[Metric] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score_tasks(
    config: TextConfig, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: dict[str, Any]
) -> TaskScores:
    """Run lm-eval on every rank, the model's work divided over them; all have the result."""
    require_lm_eval()
    from evaluation.language.harness_model import SharedPrefixLM

    keep = functools.partial(
        score_samples, job, budget=UNIT_BATCHES * config.batch_tokens, settings=identity | {"seed": config.seed}
    )
    lm = SharedPrefixLM(model, tokenizer, config.batch_tokens, config.seed, keep)
    with job.runtime.autocast():
        results = run_tasks(lm, config.tasks, config.include_path, config.num_fewshot, config.max_items, config.seed)
    return TaskScores(
        task_metrics(results), task_rows(results), task_settings(results), _notes(lm.truncated, lm.max_length)
    )


def _notes(truncated: int, context: int) -> list[str]:
    if not truncated:
        return []
    return [
        f"{truncated} requests of the tasks were longer than the model's context of {context} tokens and lost their "
        "beginning, as lm-eval does it."
    ]

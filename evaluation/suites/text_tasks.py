"""Tasks of `alignkit evaluate text`: lm-evaluation-harness on our scorer, each request kept as it is answered."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.language.harness import require_lm_eval, run_tasks
from evaluation.language.harness_results import TaskResult, task_results
from evaluation.sample_log import score_samples
from evaluation.schema import Protocol
from evaluation.suites.text import TextConfig
from evaluation.suites.text_part import Part
from launch.files import folder_name
from launch.stage import Job

UNIT_BATCHES = 8


def task_parts(
    config: TextConfig, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: dict[str, Any]
) -> list[Part]:
    """Run lm-eval on every rank, the model's work divided over them; all have what each task and group gave."""
    require_lm_eval()
    from evaluation.language.harness_model import SharedPrefixLM

    keep = functools.partial(
        score_samples, job, budget=UNIT_BATCHES * config.batch_tokens, settings=identity | {"seed": config.seed}
    )
    lm = SharedPrefixLM(model, tokenizer, config.batch_tokens, config.seed, keep)
    with job.runtime.autocast():
        results = run_tasks(lm, config.tasks, config.include_path, config.num_fewshot, config.max_items, config.seed)
    notes = _notes(config.tasks, lm.truncated, lm.max_length)
    found = task_results(results)
    folders = _folders([task.name for task in found])
    return [_part(task, folder, job, notes) for task, folder in zip(found, folders, strict=True)]


def _part(task: TaskResult, folder: str, job: Job, notes: list[str]) -> Part:
    protocol = Protocol(
        dataset=f"lm-eval:{task.name}",
        dataset_sha256=task.sha256,
        n_items=task.n,
        decoding=task.decoding,
        settings=task.settings | {"precision": job.runtime.precision},
    )
    return Part(f"tasks/{folder}", protocol, task.metrics, task.rows, notes)


def _folders(names: Sequence[str]) -> list[str]:
    """A folder for each task, of its name; with a number where two names would be one folder."""
    folders = [folder_name(name) for name in names]
    return [f if folders.count(f) == 1 else f"{f}-{number}" for number, f in enumerate(folders, 1)]


def _notes(tasks: Sequence[str], truncated: int, context: int) -> list[str]:
    if not truncated:
        return []
    return [
        f"{truncated} requests of the tasks {', '.join(tasks)} were longer than the model's context of {context} tokens "
        "and lost their beginning, as lm-eval does it."
    ]

"""What lm-evaluation-harness found, as metrics with our intervals and rows of samples. Pure: dicts in, records out.

Intervals come from the per-document values, as those of every other suite do; lm-eval's own standard error stands
beside them. For perplexities of documents lm-eval has none at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evaluation.schema import Bounds, Metric, metric
from evaluation.statistics import LEVEL, Estimate, exponential, mean, proportion, ratio, scaled
from evaluation.statistics.intervals import z_quantile
from launch.files import sha256_text

RATIOS = {"word_perplexity": math.e, "byte_perplexity": math.e, "bits_per_byte": None}
"""lm-eval's metrics of (log-likelihood, units) pairs -> base of the exponential; bits have none."""
BOUNDS: dict[str, Bounds] = {
    **dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "mc1", "mc2"), (0, 1)),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), (1, None)),
    "bits_per_byte": (0, None),
    "brier_score": (0, 2),  # the sum over the choices
    "mcc": (-1, 1),
    "bleu": (0, 100),
    "chrf": (0, 100),
    "ter": (0, None),
}
"""The range of lm-eval's metrics, where it is the same in all tasks (f1 is a share here and a percentage there)."""
RIGHT = ("acc", "exact_match")
"""lm-eval's metrics that say whether an answer is right; the first that a task has is `acc` of its rows."""


@dataclass(frozen=True)
class TaskResult:
    """What lm-eval found on one of its tasks, or on a group of them as a whole (which has no rows), and what defines it.

    `sha256` is of the documents, prompts and targets, `n` counts documents, `decoding` is how a task generates.
    """

    name: str
    metrics: list[Metric]
    rows: list[dict[str, Any]]
    n: int
    sha256: str
    settings: dict[str, Any]
    decoding: dict[str, Any]


def task_results(results: dict[str, Any], level: float = LEVEL) -> list[TaskResult]:
    """One for each task and group that has a number."""
    found = [(task, _task_metrics(results, task, level)) for task in results["results"]]
    return [_task_result(results, task, metrics) for task, metrics in found if metrics]


def _task_result(results: dict[str, Any], task: str, metrics: list[Metric]) -> TaskResult:
    samples = [(leaf, s) for leaf in _leaves(results, task) for s in results.get("samples", {}).get(leaf, [])]
    config = results.get("configs", {}).get(task, {})
    generates = config.get("output_type") == "generate_until"
    return TaskResult(
        name=task,
        metrics=metrics,
        rows=[_row(task, sample) for sample in results.get("samples", {}).get(task, [])],
        n=len({(leaf, s["doc_id"]) for leaf, s in samples}),
        sha256=sha256_text("".join(s["doc_hash"] + s["prompt_hash"] + s["target_hash"] for _, s in samples)),
        settings={
            "version": results.get("versions", {}).get(task),
            "num_fewshot": results.get("n-shot", {}).get(task) or 0,
        },
        decoding=_plain(config.get("generation_kwargs") or {}) if generates else {},
    )


def _leaves(results: dict[str, Any], name: str) -> list[str]:
    """The tasks of a group, at any depth; a task itself."""
    children = results.get("group_subtasks", {}).get(name, [])
    return [leaf for child in children for leaf in _leaves(results, child)] or [name]


def _task_metrics(results: dict[str, Any], task: str, level: float) -> list[Metric]:
    """One metric `task/metric` (`task/metric,filter` for filters other than none) for each number of a task or group."""
    found = []
    for key, value in results["results"][task].items():
        name, comma, chosen = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            found.append(_metric(results, task, name, chosen, float(value), level))
    return found


def _metric(results: dict[str, Any], task: str, name: str, chosen: str, value: float, level: float) -> Metric:
    stderr = results["results"][task].get(f"{name}_stderr,{chosen}")
    own = float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None
    samples = [s for s in results.get("samples", {}).get(task, []) if s["filter"] == chosen and name in s]
    count = int(results["results"][task].get("sample_len", len(samples)) or len(samples))
    entry = metric(
        metric_name(task, name, chosen),
        estimate(name, [s[name] for s in samples], value, own, count, level) if math.isfinite(value) else None,
        f"{name} of lm-evaluation-harness's task {task}",
        higher_is_better=results.get("higher_is_better", {}).get(task, {}).get(name),
        note="" if math.isfinite(value) else f"lm-eval gives {value}",
        bounds=BOUNDS.get(name, (None, None)),
    )
    return replace(entry, extra=entry.extra | {"lm_eval_stderr": own})


def estimate(
    name: str, values: Sequence[Any], value: float, stderr: float | None, count: int, level: float = LEVEL
) -> Estimate:
    """lm-eval's `value` with an interval: of the documents' values where they explain it, else of its own `stderr`."""
    from_values = _from_values(name, values, level)
    if from_values is not None and math.isclose(from_values.value, value, rel_tol=1e-6, abs_tol=1e-9):
        return replace(from_values, value=value)
    if stderr is None:
        return Estimate(value, count, None, None, None, level, "none: lm-eval gives no standard error")
    half = z_quantile(level) * stderr
    return Estimate(value, count, stderr, value - half, value + half, level, "normal, lm-eval's stderr")


def _from_values(name: str, values: Sequence[Any], level: float) -> Estimate | None:
    """The estimate that one value for each document gives: a rate, a mean, a perplexity or a ratio; None for others."""
    if not values:
        return None
    if name in RATIOS:
        nats, units = [-float(v[0]) for v in values], [float(v[1]) for v in values]
        found = ratio(nats, units, level)
        return scaled(found, 1 / math.log(2)) if RATIOS[name] is None else exponential(found)
    if not all(isinstance(v, int | float | np.number | bool) for v in values):
        return None
    numbers = [float(v) for v in values]
    if name == "perplexity":
        return exponential(mean([-v for v in numbers], level))
    return proportion(numbers, None, level) if set(numbers) <= {0.0, 1.0} else mean(numbers, level)


def _row(task: str, sample: dict[str, Any]) -> dict[str, Any]:
    """The row of samples.jsonl for one document and filter."""
    arguments = [list(a) for a in sample["arguments"]]
    choices = [a[1] for a in arguments if len(a) > 1 and isinstance(a[1], str)]
    values = {name: sample[name] for name in sample["metrics"]}
    right = next((values[name] for name in RIGHT if _is_number(values.get(name))), None)
    return {
        "kind": "task",
        "task": task,
        "filter": sample["filter"],
        "doc_id": sample["doc_id"],
        "prompt": arguments[0][0],
        "choices": choices,
        "target": _plain(sample["target"]),
        "response": _response(arguments, sample["filtered_resps"]),
        "responses": _plain(sample["filtered_resps"]),
        "scores": {
            metric_name(task, name, sample["filter"]): float(value)
            for name, value in values.items()
            if _is_number(value)
        },
        **({} if right is None else {"acc": float(right)}),
        "metrics": {name: _plain(value) for name, value in values.items()},
        **{key: sample[key] for key in ("doc_hash", "prompt_hash", "target_hash")},
    }


def metric_name(task: str, name: str, chosen: str) -> str:
    """`TASK/METRIC`, and `TASK/METRIC,FILTER` of a filter."""
    return f"{task}/{name}" if chosen == "none" else f"{task}/{name},{chosen}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | bool) and math.isfinite(value)


def _response(arguments: Sequence[Sequence[Any]], answers: Sequence[Any]) -> str:
    """What the model answered, as text: what it wrote, or the likeliest choice; empty where it chose nothing.

    Choices that are told apart by their context (Winogrande's) are shown with it. The requests without a context that
    acc_mutual_info adds are no choices.
    """
    if answers and isinstance(answers[0], str):
        return answers[0]
    scored = [
        (float(answer[0] if isinstance(answer, list | tuple) else answer), argument)
        for argument, answer in zip(arguments, answers, strict=False)
        if len(argument) > 1 and isinstance(argument[1], str) and (argument[0] or not arguments[0][0])
    ]
    if len(scored) < 2:
        return ""
    context, choice = max(scored, key=lambda pair: pair[0])[1][:2]
    return str(choice) if all(argument[0] == context for _, argument in scored) else f"{context}{choice}"


def _plain(value: Any) -> Any:
    """A value as JSON: numbers of NumPy as Python's, NaN and infinity and what JSON has no word for as text."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

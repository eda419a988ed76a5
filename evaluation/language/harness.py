"""lm-evaluation-harness, driven for its tasks: found, loaded from YAML, run on our scorer. Nothing here imports it early."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

from launch.errors import UserError, reason_of
from launch.seeding import derive_seed, seed_libraries

BOOTSTRAPS = 1000
"""Resamples of lm-eval's own standard errors, where it has no closed form."""


def require_lm_eval() -> None:
    """UserError with the remedy when lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "tasks: they need lm-evaluation-harness, which is not installed; run: pip install 'alignkit[tasks]'"
        )


def find_tasks(names: list[str], include_path: str) -> Any:
    """The lm-eval task manager that knows all `names`, of the YAML files below `include_path` and of lm-eval's own.

    lm-eval's own index (15,000 files) is read only if the folder does not have them all. UserError for unknown names.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    if include_path:
        if not Path(include_path).is_dir():
            raise UserError(f"include_path: {include_path} is no folder; give the folder of the tasks' YAML files")
        local = TaskManager(include_path=include_path, include_defaults=False)
        if set(names) <= set(local.all_tasks):
            return local
    manager = TaskManager(include_path=include_path or None)
    for name in names:
        if name not in manager.all_tasks and not Path(name).is_file():
            where = f" and below {include_path}" if include_path else ""
            close = difflib.get_close_matches(name, manager.all_tasks, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else "`lm-eval ls tasks` lists them"
            raise UserError(f"tasks: no task '{name}' among lm-eval's{where}; {hint}")
    return manager


def load_tasks(names: list[str], include_path: str, num_fewshot: int | None, seed: int) -> Any:
    """lm-eval's task objects with their data. UserError when one cannot be loaded: most often its data lie on a hub."""
    manager = find_tasks(names, include_path)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        loaded = manager.load(names)
    except Exception as error:  # YAML, Jinja, Python functions of tasks, downloads: whatever a task's author left
        cause = error.__cause__ or error
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise UserError(
            f"tasks: lm-eval cannot load {', '.join(names)}{offline}: {reason_of(cause)}; check the task's YAML and its "
            "data (dataset_path: json with dataset_kwargs.data_files reads local files)"
        ) from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if own is None or (num_fewshot is not None and own != 0):  # lm-eval never overrules a task's own 0
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=derive_seed(seed, "lm-eval examples") % 2**32)
    return loaded


def run_tasks(
    lm: Any, names: list[str], include_path: str, num_fewshot: int | None, max_items: int | None, seed: int
) -> dict[str, Any]:
    """lm-eval's results with samples (its `EvalResults`), of tasks on a model of its interface. On every rank.

    `num_fewshot` and `max_items` are its `num_fewshot` and `limit`. UserError when a task cannot be loaded or asked.
    """
    loaded = load_tasks(names, include_path, num_fewshot, seed)
    from jinja2 import TemplateError
    from lm_eval import evaluate

    seed_libraries(seed, "lm-eval")
    # Else it forks a process for each core, for resamples that are one piece of work. Under load one of them missed the
    # signal that ends it, for which every stage has a handler in Python, and was waited for without end.
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        return evaluate(lm, loaded, limit=max_items, bootstrap_iters=BOOTSTRAPS)
    except UserError:
        raise
    except (ValueError, KeyError, AssertionError, TemplateError) as error:
        raise UserError(
            f"tasks: lm-eval cannot run {', '.join(names)}: {reason_of(error)}; check the task's YAML against its data"
        ) from error

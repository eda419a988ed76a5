"""The best policy of a run, in `best/` beside the newest: what was measured to be best, within the KL budget.

Selection: of the evaluations whose KL is within the budget (the upper limit of the 95 % interval of k1), the one with the
highest mean gold reward, or training reward without a judge; the earlier one of equals. Each newcomer is compared with
the folder itself, so that a run which is killed and makes an evaluation twice ends with the same folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.ppo.evaluation import Evaluation, Record, Row, sample_rows
from launch.checkpoint import fsync_tree
from launch.files import append_jsonl, fsync_path, read_json, write_atomic, write_json
from launch.runtime import Runtime

CHOSEN = "evaluation.json"
"""The evaluation of the policy in the folder; it is written last."""


def reward_name(row: Row) -> str:
    """The reward that decides."""
    return f"{row['judge']}_reward"


def within_budget(row: Row, budget: float | None) -> bool:
    """Whether the KL of an evaluation is clearly within a budget in nats (None: any is)."""
    return budget is None or row.get("kl_k1_ci_high", row["kl_k1"]) <= budget


def is_better(row: Row, best: Row | None, budget: float | None) -> bool:
    """Whether an evaluation takes the place of the best so far."""
    return within_budget(row, budget) and (best is None or row[reward_name(row)] > best[reward_name(best)])


def describe_choice(row: Row, budget: float | None) -> str:
    """Two sentences: which policy was chosen by which rule, and how sure its numbers are."""
    name, interval = reward_name(row), _interval(row, reward_name(row))
    held = "" if budget is None else f" among the evaluations with a KL within {budget:g} nats"
    return (
        f"The policy after update {row['step']}: the highest mean {row['judge']} reward on {row['n']} held-out "
        f"prompts{held}. Mean {row['judge']} reward {row[name]:.4g}{interval}, sequence KL to the reference "
        f"{row['kl_k1']:.4g}{_interval(row, 'kl_k1')} nats (95 % intervals; as the highest of several, the reward is "
        "somewhat too high: measure it again on other prompts)."
    )


def name_choice(row: Row) -> str:
    """Which policy `best/` holds, in half a sentence: it may be the one that the run began with."""
    who = f"the policy after update {row['step']}"
    if row["step"] == 0:
        who = "the START policy (step 0), for no update measured better than it on the held-out prompts"
    reward = f"{row['judge']} reward {row[reward_name(row)]:.4g}{_interval(row, reward_name(row))}"
    return f"{who}: {reward}, KL {row['kl_k1']:.4g}{_interval(row, 'kl_k1')} nats"


def _interval(row: Row, name: str) -> str:
    return f" [{row[f'{name}_ci_low']:.4g}, {row[f'{name}_ci_high']:.4g}]" if f"{name}_ci_low" in row else ""


class BestPolicy:
    """The folder `best/`: a plain Hugging Face folder of the policy, the critic in `critic/`, and its evaluation.

    `export(folder)` writes the models of a trainer; all ranks call it, and all methods, together.
    """

    def __init__(self, folder: Path, budget: float | None, runtime: Runtime, export: Callable[[Path], object]) -> None:
        self.folder, self.budget, self.runtime, self.export = folder, budget, runtime, export
        self._new, self._old = (folder.with_name(f".{folder.name}-{word}") for word in ("new", "old"))
        if runtime.is_main:
            self._mend()
        runtime.barrier()
        chosen = folder / CHOSEN
        self.row: Row | None = runtime.broadcast(
            read_json(chosen, "remove the folder") if runtime.is_main and chosen.exists() else None
        )

    def _mend(self) -> None:
        """After a kill: finish the exchange of the folders if it had begun, and clear away the rest."""
        if not self.folder.exists():
            for whole in (self._new, self._old):
                if (whole / CHOSEN).exists() and not self.folder.exists():
                    os.rename(whole, self.folder)
        for rest in (self._new, self._old):
            shutil.rmtree(rest, ignore_errors=True)

    def offer(self, evaluation: Evaluation, start: Record | None) -> bool:
        """Keep the trainer's present policy if it is better than the folder's; says whether it was."""
        if not is_better(evaluation.row, self.row, self.budget):
            return False
        if self.runtime.is_main:
            self._new.mkdir(parents=True)
        self.runtime.barrier()
        self.export(self._new)
        if self.runtime.is_main:
            self._finish(evaluation, start)
        self.runtime.barrier()
        self.row = evaluation.row
        return True

    def _finish(self, evaluation: Evaluation, start: Record | None) -> None:
        """The records beside the models; then the folders change places."""
        for row in sample_rows(evaluation, start):
            append_jsonl(self._new / "samples.jsonl", row)
        write_atomic(self._new / "README.md", f"# best\n\n{describe_choice(evaluation.row, self.budget)}\n")
        fsync_tree(self._new)
        write_json(self._new / CHOSEN, evaluation.row)
        if self.folder.exists():
            os.rename(self.folder, self._old)
        os.rename(self._new, self.folder)
        fsync_path(self.folder.parent)
        shutil.rmtree(self._old, ignore_errors=True)

    def summary(self) -> dict[str, Any]:
        """Numbers for the model card."""
        if self.row is None:
            within = "" if self.budget is None else f" with a KL within {self.budget:g} nats"
            return {"best/choice": f"nothing: there was no evaluation{within}"}
        shown = [
            "step",
            *(f"{n}{end}" for n in (reward_name(self.row), "kl_k1") for end in ("", "_ci_low", "_ci_high")),
        ]
        found = {f"best/{name}": self.row[name] for name in shown if name in self.row}
        return {**found, "best/choice": name_choice(self.row)}

"""The sample viewer: what models wrote for the same prompts, chosen by the judge and, to be fair, not chosen at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.report.collect import FoundResult
from evaluation.report.items import Row, SampleReader
from evaluation.report.text import format_number

IN_GROUP = 5
SHOWN_DECIMALS = 2
"""Of a difference in reward; one that rounds to 0 is neither gain nor loss."""


@dataclass(frozen=True)
class Answer:
    """What one model wrote; `figures` is what is known of it (reward, length)."""

    model: str
    text: str
    figures: str


@dataclass(frozen=True)
class Sample:
    """One prompt with the answers of the models; `note` is why it is shown."""

    prompt: str
    answers: list[Answer]
    note: str


@dataclass(frozen=True)
class SampleGroup:
    """Samples that were chosen for one reason."""

    title: str
    samples: list[Sample]


@dataclass(frozen=True)
class SampleSection:
    """The section of a report."""

    text: str
    groups: list[SampleGroup]


def sample_section(
    found: Sequence[FoundResult], leader: str, rows_of: Callable[[FoundResult], list[Row]] | None = None
) -> SampleSection | None:
    """Samples of the policy that leads (or of the first one) beside those of the others on the same prompts.

    From the rows of `evaluate reward`: mode win-rate for policies, mode accuracy for reward models' worst mistakes.
    None when there are no such rows.
    """
    read = rows_of or SampleReader()
    duels = {f.result.subject.name: (f, r) for f in found if f.result.suite == "win-rate" and (r := _duels(read(f)))}
    groups: list[SampleGroup] = []
    text = ""
    if duels:
        name = leader if leader in duels else next(iter(duels))
        entry, rows = duels[name]
        baseline = entry.result.protocol.baseline or "baseline"
        judge = entry.result.protocol.judge
        others = {other: _by_prompt(r) for other, (_, r) in duels.items() if other != name}
        groups = _duel_groups(name, baseline, rows, others)
        text = f"Answers of {name} beside those of {baseline}"
        text += f" and of {', '.join(others)}" if others else ""
        text += f", on the same prompts. Rewards are those of the judge{f' ({judge.path})' if judge else ''}."
    groups += [g for f in found if f.result.suite == "reward" and (g := _mistakes(f, read(f)))]
    return SampleSection(text, groups) if groups else None


def _duels(rows: Sequence[Row]) -> list[Row]:
    """The rows that a judge rewarded on both sides."""
    return [row for row in rows if "reward" in row and "baseline_reward" in row]


def _by_prompt(rows: Sequence[Row]) -> dict[str, Row]:
    """The first row of each prompt."""
    return {row["prompt"]: row for row in reversed(rows)}


def _duel_groups(name: str, baseline: str, rows: list[Row], others: dict[str, dict[str, Row]]) -> list[SampleGroup]:
    def gain(row: Row) -> float:
        return row["reward"] - row["baseline_reward"]

    def group(title: str, key: Callable[[Row], float] | None, some: list[Row] = rows) -> SampleGroup:
        chosen = sorted(some, key=key) if key else _spread(some)
        return SampleGroup(title, [_duel(name, baseline, row, others) for row in chosen[:IN_GROUP]])

    gained = [row for row in rows if round(gain(row), SHOWN_DECIMALS) > 0]
    lost = [row for row in rows if round(gain(row), SHOWN_DECIMALS) < 0]
    groups = [
        group("Unselected: spread evenly over the prompts", None),
        group(f"Highest rewards of {name}", lambda row: -row["reward"]),
        group(f"Lowest rewards of {name}", lambda row: row["reward"]),
        group(f"Largest gains over {baseline}", lambda row: -gain(row), gained),
        group(f"Largest losses against {baseline}", gain, lost),
    ]
    return [g for g in groups if g.samples]


def _spread(rows: Sequence[Row]) -> list[Row]:
    count = min(IN_GROUP, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _duel(name: str, baseline: str, row: Row, others: dict[str, dict[str, Row]]) -> Sample:
    answers = [
        _answer(name, row["completion"], row["reward"], row.get("tokens")),
        _answer(baseline, row["baseline_completion"], row["baseline_reward"], row.get("baseline_tokens")),
    ]
    for other, table in others.items():
        if found := table.get(row["prompt"]):
            answers.append(_answer(other, found["completion"], found["reward"], found.get("tokens")))
    if row.get("reference"):
        answers.append(_answer("written by a person", row["reference"], None, None))
    change = row["reward"] - row["baseline_reward"]
    return Sample(
        row["prompt"], answers, f"{'+' if change > 0 else ''}{format_number(change, SHOWN_DECIMALS)} vs {baseline}"
    )


def _answer(model: str, text: str, reward: float | None, tokens: int | None) -> Answer:
    figures = [f"reward {format_number(reward, 2)}"] if reward is not None else []
    figures += [f"{tokens} tokens"] if tokens is not None else []
    return Answer(model, text, ", ".join(figures))


def _mistakes(found: FoundResult, rows: Sequence[Row]) -> SampleGroup | None:
    """The pairs that a reward model orders most firmly against people."""
    wrong = sorted((row for row in rows if row.get("margin", 0) < 0), key=lambda row: row["margin"])
    samples = [
        Sample(
            row["prompt"],
            [
                _answer("chosen by people", row["chosen"], row["reward_chosen"], None),
                _answer("rejected by people", row["rejected"], row["reward_rejected"], None),
            ],
            f"margin {format_number(row['margin'], 2)}",
        )
        for row in wrong[:IN_GROUP]
    ]
    return SampleGroup(f"Most firmly wrong: {found.result.subject.name}", samples) if samples else None

"""What suites share: loading models, naming subjects, dividing work over ranks, writing the result."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.completions import Completion
from evaluation.loading import read_causal, read_classifier, read_tokenizer
from evaluation.schema import EvaluationResult, Judge, Protocol, Subject, SubjectKind
from evaluation.scoring import Beat
from launch.files import canonical_json, read_json, sha256_text
from launch.provenance import fingerprint_input, hardware, package_versions
from launch.stage import Job
from launch.zero import plain_weights

T = TypeVar("T")
R = TypeVar("R")


# ---------------------------------------------------------------------------------------------- models


def load_language_model(
    field: str, source: str, device: torch.device
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in fp32 with its tokenizer, whole on every rank. UserError names the config field."""
    tokenizer = read_tokenizer(field, source)
    with plain_weights():
        model = read_causal(field, source, tokenizer)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


def load_reward_model(field: str, source: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A trained sequence classifier with one label, in fp32, with its tokenizer, whole on every rank."""
    tokenizer = read_tokenizer(field, source)
    with plain_weights():
        model = read_classifier(field, source, tokenizer)
    return model.to(device).eval(), tokenizer  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------- identity


def provenance_of(source: str) -> dict[str, Any]:
    """The provenance.json of the run that made a file or folder; empty when there is none."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    file = folder / "provenance.json"
    return read_json(file) if file.is_file() else {}


def describe_subject(field: str, source: str, kind: SubjectKind, name: str = "") -> Subject:
    """The subject of an evaluation: its content hash, and the inputs that its run was made from."""
    parents = {key: entry["sha256"] for key, entry in provenance_of(source).get("inputs", {}).items()}
    return Subject(name or display_name(source), kind, source, fingerprint_input(field, source)["sha256"], parents)


def describe_author(field: str, completions: str, name: str = "") -> Subject:
    """The model that wrote a completions file, as its provenance names it; without provenance the file itself.

    So the numbers of one model from several suites carry the same content hash, and a report can join them.
    """
    model = provenance_of(completions).get("inputs", {}).get("model")
    if model is None:
        return describe_subject(field, completions, "completions", name)
    source = model.get("path") or model["source"]
    return Subject(
        name or display_name(source),
        "language model",
        source,
        model["sha256"],
        {"completions": fingerprint_input(field, completions)["sha256"]},
    )


def made_from(source: str, sha256: str) -> bool:
    """Whether an artefact's provenance names an input of this content, other than what its run was only measured on."""
    inputs = provenance_of(source.removeprefix("hub:").split("::")[0]).get("inputs", {})
    return any(entry["sha256"] == sha256 for name, entry in inputs.items() if name != "eval_data")


def trained_against(subject: Subject, judge: Judge | None) -> list[str]:
    """The note that a judge which the policy was trained against is no referee; nothing otherwise."""
    if judge is None or not subject.path or not made_from(subject.path, judge.sha256):
        return []
    return [
        f"{subject.name} was trained against this judge, so the numbers show what it learned to please, not what is "
        "better: let one judge that it never saw."
    ]


def trained_with(model: str, preferences_sha256: str, role: str) -> list[str]:
    """The note that a model (of this role) was trained with the preferences that it is measured on; nothing otherwise."""
    if not made_from(model, preferences_sha256):
        return []
    return [f"The {role} was trained with this file: unless these pairs were held out then, the numbers flatter it."]


def display_name(source: str) -> str:
    """The last part of a path or hub name; for a file, its folder's. A folder inside of a run is named by the run: `ppo best`."""
    path = Path(source.removeprefix("hub:").split("::")[0])
    folder = path.parent if path.suffix in (".jsonl", ".json") else path
    inside = (folder.parent / "run.json").is_file() and not (folder / "run.json").is_file()
    return f"{folder.resolve().parent.name} {folder.name}" if inside else folder.name or source


def describe_judge(field: str, source: str) -> Judge:
    """The judge's path and content hash."""
    return Judge(source, fingerprint_input(field, source)["sha256"])


SAMPLING = ("temperature", "max_new_tokens", "samples")
"""Fields of `generate` that define its completions, besides the prompts that they answer."""


def content_hash(items: Iterable[Any]) -> str:
    """The sha256 of items (texts, messages, lists of them) whatever their order: of what was measured, wherever it lay."""
    return sha256_text("\n".join(sorted(canonical_json(item) for item in items)))


def protocol_of_answers(completions: str, rows: Sequence[Completion]) -> Protocol:
    """The protocol that the rows of a completions file are measured under: what they answer, and how they were sampled.

    The prompts' own hash tells them, so that files of the same prompts meet wherever the prompts lay; the sampling and the
    source, which is only a name, are known by provenance alone.
    """
    made = provenance_of(completions).get("config", {})
    return Protocol(
        dataset=made.get("prompts", completions),
        dataset_sha256=content_hash(row.prompt for row in rows),
        n_items=len(rows),
        decoding={key: made[key] for key in SAMPLING if key in made},
        seeds=[made["seed"]] if "seed" in made else [],
    )


# ---------------------------------------------------------------------------------------------- work


@contextlib.contextmanager
def beating(job: Job, total: int, description: str) -> Iterator[Beat]:
    """A progress display whose beat also feeds the watchdog."""
    done = 0
    with job.progress(total, description) as meter:

        def beat(n: int) -> None:
            nonlocal done
            done += n
            meter.advance(n)
            job.beat(done)

        beat(0)  # the watchdog's clock begins
        yield beat


def over_ranks(job: Job, items: Sequence[T], compute: Callable[[list[T]], Sequence[R]]) -> list[R]:
    """`compute` of all items, in their order, on every rank: each rank computes every world-th item."""
    rank, world = job.runtime.rank, job.runtime.world
    parts = job.runtime.gather_objects(list(compute(list(items[rank::world]))))
    results: list[Any] = [None] * len(items)
    for number, part in enumerate(parts):
        results[number::world] = part
    return results


def save_result(job: Job, result: EvaluationResult, folder: Path) -> None:
    """Write results.json into a folder, with the versions, the hardware and the seconds of the run that made it."""
    versions, seconds = package_versions(), round(job.seconds, 3)
    dataclasses.replace(result, versions=versions, hardware=hardware(), seconds=seconds).save(folder)


def write_result(job: Job, result: EvaluationResult, folder: Path | None = None) -> dict[str, Any]:
    """Write results.json on the main rank, say its first numbers and its notes, and return the stage's summary.

    Into the stage's folder, or one inside of it where a stage has several results.
    """
    if job.runtime.is_main:
        save_result(job, result, folder or job.output_dir)
    for entry in result.metrics[:4]:
        limits = "" if entry.ci_low is None else f" [{entry.ci_low:.4g}, {entry.ci_high:.4g}]"
        value = entry.note if entry.value is None else f"{entry.value:.4g}{limits} (n = {entry.n})"
        job.say(f"{entry.name}: {value}")
    for note in [*result.notes, *result.resolution]:
        job.say(f"note: {note}")
    return result.summary()

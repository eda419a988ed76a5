"""The stage `generate`: completions of a model for many prompts, in a file that evaluation reads.

A completions file is JSONL with the rows {id, prompt, completion, prompt_ids, completion_ids, finished, reference}:
`completion` is the text without the end-of-text token, `completion_ids` has it when the model ended by itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.generation import Sampling, generate
from alignment.models import load_causal, load_tokenizer
from alignment.prompts import fitting_prompts, load_prompt_rows, prompt_limit
from launch.config import artefact, operational
from launch.files import read_jsonl_log, write_atomic
from launch.ranges import NotNegative, PositiveInt
from launch.stage import Job, Stage, StageConfig


@dataclass(kw_only=True)
class GenerateConfig(StageConfig):
    """Sample completions from a causal language model."""

    model: str = artefact()
    """The model: a folder, or hub:org/name."""
    prompts: str = artefact()
    """Prompts (or pairs, whose completions are kept as references): a file, a folder, embedded:... or hub:...; `::eval` picks a split."""
    limit: PositiveInt | None = None
    """Use only so many prompts, the first by content hash."""
    samples: PositiveInt = 1
    """Completions for each prompt."""
    temperature: NotNegative = 0.7
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: PositiveInt = 32
    """Longest completion."""
    max_prompt_tokens: PositiveInt = 96
    """Longer prompts are left out (never cut), and counted."""
    batch_size: PositiveInt = operational(64)
    """Prompts in one batch; it does not change the samples."""

    def check(self) -> None:
        for name in ("model", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing; add --{name} PATH")


def run(config: GenerateConfig, job: Job) -> dict[str, Any]:
    """Write completions.jsonl; finished batches are kept, so that a killed job goes on where it was."""
    tokenizer = load_tokenizer(config.model)
    model = load_causal(config.model, tokenizer).eval().to(job.runtime.device)
    limit = prompt_limit(model.config, config.max_prompt_tokens, config.max_new_tokens)
    rows, too_long = fitting_prompts(tokenizer, load_prompt_rows(config.prompts, config.limit), limit)
    sampling = Sampling(config.max_new_tokens, config.temperature, tokenizer.eos_token_id, tokenizer.pad_token_id)
    work = [(row, k) for row in rows for k in range(config.samples)]
    parts = job.output_dir / "parts"
    parts.mkdir(exist_ok=True)
    starts = range(0, len(work), config.batch_size)
    with job.progress(len(starts), "generate") as meter:
        for number, start in enumerate(starts):
            part = parts / f"{number:06d}.jsonl"
            if number % job.runtime.world == job.runtime.rank and not part.exists():
                with job.runtime.autocast():
                    done = _complete(
                        model, tokenizer, sampling, work[start : start + config.batch_size], start, config.seed
                    )
                write_atomic(part, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in done))
            job.beat(number)
            meter.advance()
            if number % job.runtime.world == job.runtime.world - 1:  # a collective: once for a batch on every rank
                job.stop_if_requested(number)
    job.runtime.barrier()
    if job.runtime.is_main:
        _merge(parts, job.output_dir / "completions.jsonl", len(starts))
    job.runtime.barrier()
    return {**_summary(job.output_dir / "completions.jsonl"), "prompts_too_long": too_long}


def _complete(
    model: Any, tokenizer: Any, sampling: Sampling, work: list[Any], first: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of one batch. A sample's random numbers belong to its number in the whole work list."""
    indices = list(range(first, first + len(work)))
    ids = generate(model, [row["prompt_ids"] for row, _ in work], sampling, seed, "generate", 0, indices, len(work))
    done = []
    for index, (row, _), completion in zip(indices, work, ids, strict=True):
        finished = bool(completion) and completion[-1] == sampling.eos_id
        text = tokenizer.decode(completion[:-1] if finished else completion, skip_special_tokens=True)
        done.append({**row, "id": index, "completion": text, "completion_ids": completion, "finished": finished})
    return done


def _merge(parts: Path, target: Path, count: int) -> None:
    text = "".join((parts / f"{number:06d}.jsonl").read_text(encoding="utf-8") for number in range(count))
    write_atomic(target, text)
    for part in parts.iterdir():
        part.unlink()
    parts.rmdir()


def _summary(path: Path) -> dict[str, Any]:
    rows = read_jsonl_log(path)
    return {
        "completions": len(rows),
        "mean_tokens": sum(len(r["completion_ids"]) for r in rows) / len(rows),
        "finished_rate": sum(r["finished"] for r in rows) / len(rows),
    }


STAGE = Stage("generate", GenerateConfig, run)

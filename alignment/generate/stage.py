"""The stage `generate`: completions of a model for many prompts, as a completions file (data/completions.py).

Finished samples wait in files in `parts/`, named by their numbers in the whole work: `00000064-00000128.jsonl` holds
samples 64 to 127. So a killed job goes on with any batch size and any number of processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.generate.config import GenerateConfig
from alignment.generation import Sampling, generate
from alignment.models import load_causal, load_tokenizer
from alignment.prompts import fitting_prompts, load_prompt_rows, prompt_limit
from data.completions import Completion, load_completions, reference_text, save_completions
from launch.stage import Job


def run(config: GenerateConfig, job: Job) -> dict[str, Any]:
    """Write completions.jsonl; finished batches are kept, so that a killed job goes on where it was."""
    tokenizer = load_tokenizer(config.model)
    model = load_causal(config.model, tokenizer).eval().to(job.runtime.device)
    limit = prompt_limit(model.config, config.max_prompt_tokens, config.max_new_tokens)
    rows, too_long = fitting_prompts(tokenizer, load_prompt_rows(config.prompts, config.limit), limit)
    sampling = Sampling(config.max_new_tokens, config.temperature, tokenizer.eos_token_id, tokenizer.pad_token_id)
    work = [row for row in rows for _ in range(config.samples)]
    parts = job.output_dir / "parts"
    parts.mkdir(exist_ok=True)
    # the main rank looks, once: the others' files appear while it does
    spans = job.runtime.broadcast(missing_spans(finished_spans(parts), len(work), config.batch_size))
    with job.progress(len(spans), "generate") as meter:
        for number, span in enumerate(spans):
            if number % job.runtime.world == job.runtime.rank:
                with job.runtime.autocast():
                    done = _complete(model, tokenizer, sampling, work, span, config.seed)
                save_completions(done, parts / span.file_name)
            job.beat(number)
            meter.advance()
            if number % job.runtime.world == job.runtime.world - 1:  # a collective: once for a batch on every rank
                job.stop_if_requested(number)
    job.runtime.barrier()
    completions = [row for span in finished_spans(parts) for row in load_completions(parts / span.file_name)]
    job.runtime.barrier()
    if job.runtime.is_main:
        save_completions(completions, job.output_dir / "completions.jsonl")
        shutil.rmtree(parts)
    job.runtime.barrier()
    return {**_summary(completions), "prompts_too_long": too_long}


class Span(NamedTuple):
    """The samples `start` to `end` - 1 of the whole work."""

    start: int
    end: int

    @property
    def file_name(self) -> str:
        """The file in which these samples wait."""
        return f"{self.start:08d}-{self.end:08d}.jsonl"


def finished_spans(parts: Path) -> list[Span]:
    """What earlier sessions finished, in order."""
    names = [path.stem.split("-") for path in parts.glob("*-*.jsonl") if not path.name.startswith(".")]
    return sorted(Span(int(start), int(end)) for start, end in names)


def missing_spans(finished: Sequence[Span], total: int, size: int) -> list[Span]:
    """The samples 0 to `total` - 1 that no finished span holds, in order, in spans of at most `size`."""
    ends = [0, *(span.end for span in finished)]
    starts = [*(span.start for span in finished), total]
    gaps = zip(ends, starts, strict=True)
    return [Span(at, min(at + size, end)) for start, end in gaps for at in range(start, end, size)]


def _complete(
    model: Any, tokenizer: Any, sampling: Sampling, work: Sequence[dict[str, Any]], span: Span, seed: int
) -> list[Completion]:
    """The samples of a span. Random numbers belong to a sample's number in the whole work."""
    rows, indices = work[span.start : span.end], range(span.start, span.end)
    ids = generate(model, [row["prompt_ids"] for row in rows], sampling, seed, "generate", 0, indices, len(rows))
    return [_completion(tokenizer, sampling, *sample) for sample in zip(indices, rows, ids, strict=True)]


def _completion(
    tokenizer: Any, sampling: Sampling, number: int, row: dict[str, Any], completion_ids: Sequence[int]
) -> Completion:
    finished = bool(completion_ids) and completion_ids[-1] == sampling.eos_id
    text = tokenizer.decode(completion_ids[:-1] if finished else completion_ids, skip_special_tokens=True)
    return Completion(
        id=str(number),
        prompt=row["prompt"],
        text=text,
        finished=finished,
        prompt_ids=tuple(row["prompt_ids"]),
        completion_ids=tuple(completion_ids),
        reference=reference_text(row["reference"]),
        origin=f"sample {number}",
    )


def _summary(rows: Sequence[Completion]) -> dict[str, Any]:
    return {
        "completions": len(rows),
        "mean_tokens": sum(len(row.completion_ids) for row in rows) / len(rows),
        "finished_rate": sum(row.finished for row in rows) / len(rows),
    }

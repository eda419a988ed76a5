"""The work of `alignkit evaluate safety-prompts`: read the sets, disguise the unsafe prompts, write one file."""

from __future__ import annotations

import json
from typing import Any

from data.named_splits import hash_position
from evaluation.safety.jailbreaks import TEMPLATES_FILE, choose_templates, disguised
from evaluation.safety.prompt_suites import LabelledPrompt, load_prompt_suite
from evaluation.safety.public_sets import check_sources
from evaluation.suites.safety_prompts import SafetyPromptsConfig
from launch.files import write_atomic
from launch.stage import Job

PROMPTS_FILE = "prompts.jsonl"


def run(config: SafetyPromptsConfig, job: Job) -> dict[str, Any]:
    """Write prompts.jsonl; the counts are the summary."""
    check_sources(config.sources())
    templates = choose_templates("templates", config.templates, config.template_file or TEMPLATES_FILE)
    rows: dict[str, dict[str, Any]] = {}
    for name, source in config.sources().items():
        for p in disguised(choose_prompts(list(load_prompt_suite(source).values()), config.max_per_set), templates):
            rows.setdefault(p.prompt, prompt_row(name, p))  # the sets share some requests; the first keeps it
    job.beat(1)
    if job.runtime.is_main:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
        write_atomic(job.output_dir / PROMPTS_FILE, "".join(lines))
    unsafe = sum(row["label"] == "unsafe" for row in rows.values())
    job.say(f"{PROMPTS_FILE}: {len(rows) - unsafe} safe and {unsafe} unsafe prompts, {len(templates)} templates")
    return {"prompts": len(rows), "unsafe": unsafe, "templates": len(templates)}


def choose_prompts(prompts: list[LabelledPrompt], count: int | None) -> list[LabelledPrompt]:
    """All prompts, or those `count` with the lowest content hash, in their order."""
    if count is None or len(prompts) <= count:
        return prompts
    ranked = sorted(range(len(prompts)), key=lambda i: (hash_position(prompts[i].prompt, "safety prompts"), i))
    return [prompts[i] for i in sorted(ranked[:count])]


def prompt_row(name: str, p: LabelledPrompt) -> dict[str, Any]:
    """The row of a prompt: what `load_prompt_suite` reads back, and the set that it is from."""
    row = {
        "prompt": p.prompt,
        "label": "safe" if p.safe else "unsafe",
        "type": p.type or name,
        "set": name,
        "template": p.template,
        "behaviour": p.behaviour,
        "pair": f"{name} {p.pair}" if p.pair else "",
    }
    return {key: value for key, value in row.items() if value}

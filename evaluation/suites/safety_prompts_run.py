"""The work of `alignkit evaluate safety-prompts`: read the sets, disguise the unsafe prompts, write one file."""

from __future__ import annotations

import json
from typing import Any

from data.named_splits import lowest_hashes
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
        prompts = list(load_prompt_suite(source).values())
        chosen = lowest_hashes(prompts, lambda p: p.prompt, config.max_per_set, "safety prompts")
        for p in disguised(chosen, templates):
            rows.setdefault(p.prompt, prompt_row(name, p))  # the sets share some requests; the first keeps it
    job.beat(1)
    if job.runtime.is_main:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()]
        write_atomic(job.output_dir / PROMPTS_FILE, "".join(lines))
    unsafe = sum(row["label"] == "unsafe" for row in rows.values())
    job.say(f"{PROMPTS_FILE}: {len(rows) - unsafe} safe and {unsafe} unsafe prompts, {len(templates)} templates")
    return {"prompts": len(rows), "unsafe": unsafe, "templates": len(templates)}


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

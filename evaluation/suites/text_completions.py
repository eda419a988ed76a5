"""MAUVE between a file's completions and the references that people wrote for the same prompts."""

from __future__ import annotations

from collections.abc import Sequence

from data.completions import Completion
from evaluation.artefacts import display_name, load_language_model
from evaluation.language.hidden_states import last_hidden_states
from evaluation.language.mauve import halves, mauve
from evaluation.schema import Metric, metric
from evaluation.suites.text import TextConfig
from launch.errors import UserError
from launch.stage import Job

FEWEST = 20


def first_of_each_prompt(rows: Sequence[Completion]) -> list[Completion]:
    """One completion for each prompt, the first: of several samples each would repeat the one reference."""
    return list({row.prompt_text: row for row in reversed(rows)}.values())[::-1]


def mauve_metrics(config: TextConfig, job: Job, rows: Sequence[Completion]) -> list[Metric]:
    """`mauve` and `mauve_ceiling`; none unless `features` names a model. UserError without references."""
    if not config.features:
        return []
    rows = first_of_each_prompt([row for row in rows if row.reference is not None and row.text.strip()])
    if len(rows) < FEWEST:
        raise UserError(
            f"features: MAUVE compares completions with references, and {config.completions} has {len(rows)} prompts with both; "
            f"give at least {FEWEST}, or leave --features out"
        )
    model, tokenizer = load_language_model("features", config.features, job.runtime.device)
    with job.runtime.autocast():
        ours, human = (
            last_hidden_states(model, tokenizer, texts, config.batch_tokens)
            for texts in ([r.prompt_text + r.text for r in rows], [r.prompt_text + str(r.reference) for r in rows])
        )
    first, second = halves(len(rows), config.seed)
    ceiling = mauve(human[first], human[second], config.seed, max(2, len(rows) // 10))
    name = display_name(config.features)
    return [
        metric(
            "mauve",
            mauve(ours, human, config.seed),
            f"area under the divergence curve between completions and references, features of {name}",
            higher_is_better=True,
        ),
        metric(
            "mauve_ceiling",
            ceiling,
            "the same between two halves of the references: what text as good as theirs would score on half as many",
            higher_is_better=None,
        ),
    ]

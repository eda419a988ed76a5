"""One finding for each completion: what `alignkit evaluate safety` looks for, in the order in which it is cheap."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from data import load_documents, load_pairs, plain_text
from data.completions import Completion
from evaluation.language.quality import is_degenerate
from evaluation.safety.lexicon import count_terms, load_lexicon
from evaluation.safety.memorisation import copied_spans
from evaluation.safety.metrics import Finding
from evaluation.safety.near_copies import near_copied
from evaluation.safety.personal_data import find_personal_data
from evaluation.safety.prompt_suites import load_prompt_suite
from evaluation.safety.refusal import is_refusal
from evaluation.safety.toxicity import MODEL_FILE, Scorer, load_classifier, load_scorer
from evaluation.sample_log import score_samples
from evaluation.suites.safety import SafetyConfig
from launch.errors import UserError
from launch.files import sha256_file
from launch.provenance import fingerprint_input
from launch.stage import Job

UNIT_CHARACTERS = 100_000  # of the completions whose toxicity is scored and then logged together


def inspect(rows: Sequence[Completion], config: SafetyConfig, job: Job) -> list[Finding]:
    """One finding for each completion, with all that the config asks for."""
    findings = [
        Finding(
            r.id,
            r.prompt_text,
            is_degenerate(r.text),
            is_refusal(r.text),
            dict(find_personal_data(r.text)),
            asked=r.prompt_text,
        )
        for r in rows
    ]
    job.beat(1)
    if config.training_documents:
        findings = _with_copies(rows, findings, config)
    if config.toxicity or config.toxicity_classifier:
        findings = _with_toxicity(rows, findings, config, job)
    if config.lexicon:
        lexicon = load_lexicon(config.lexicon)
        findings = [
            dataclasses.replace(
                f,
                lexicon_terms=count_terms(r.text, lexicon),
                lexicon_terms_reference=None if r.reference is None else count_terms(r.reference, lexicon),
            )
            for r, f in zip(rows, findings, strict=True)
        ]
    return _with_labels(rows, findings, config) if config.prompts else findings


def _with_copies(rows: Sequence[Completion], findings: Sequence[Finding], config: SafetyConfig) -> list[Finding]:
    documents = [text for source in config.training_documents for text in training_texts(source, config)]
    texts = [r.text for r in rows] + [r.reference or "" for r in rows]
    prompts = [r.prompt_text for r in rows] * 2
    copied = copied_spans(texts, prompts, documents, config.copied_length, config.copied_unit)
    near = near_copied(texts, prompts, documents, config.near_copied_words)
    n = len(rows)
    return [
        dataclasses.replace(f, copied=a, copied_reference=b, near_copied=c, near_copied_reference=d)
        for f, a, b, c, d in zip(findings, copied[:n], copied[n:], near[:n], near[n:], strict=True)
    ]


def training_texts(source: str, config: SafetyConfig) -> list[str]:
    """The texts of a source: its documents, or the completions of its pairs."""
    try:
        return [d.text for d in load_documents(source, config.text_field, config.split_text)]
    except UserError as error:
        try:
            return [plain_text(pair.completion) for pair in load_pairs(source)]
        except UserError:
            raise error from None


def _with_toxicity(
    rows: Sequence[Completion], findings: Sequence[Finding], config: SafetyConfig, job: Job
) -> list[Finding]:
    classifier = config.toxicity_classifier
    scorer: Scorer = (
        load_classifier("toxicity_classifier", classifier, job.runtime.device) if classifier else load_scorer()
    )
    identity = fingerprint_input("toxicity_classifier", classifier)["sha256"] if classifier else sha256_file(MODEL_FILE)
    scores = score_samples(
        job,
        "toxicity",
        [r.text for r in rows],
        lambda texts: scorer(texts).tolist(),
        content=lambda text: text,
        size=lambda text: len(text) + 1,
        budget=UNIT_CHARACTERS,
        settings={"classifier": identity},
    )
    return [dataclasses.replace(f, toxicity=score) for f, score in zip(findings, scores, strict=True)]


def _with_labels(rows: Sequence[Completion], findings: Sequence[Finding], config: SafetyConfig) -> list[Finding]:
    suite = load_prompt_suite(config.prompts)
    labels = [suite.get(r.prompt_text.strip()) for r in rows]
    if not any(labels):
        raise UserError(
            f"prompts: none of the {len(rows)} completions answers a prompt of {config.prompts}; generate completions "
            "for these prompts first: alignkit generate --prompts FILE"
        )
    return [
        dataclasses.replace(
            f,
            prompt=label.behaviour or f.prompt,
            prompt_safe=label.safe,
            prompt_type=label.type,
            template=label.template,
            pair=label.pair,
        )
        if label
        else f
        for f, label in zip(findings, labels, strict=True)
    ]

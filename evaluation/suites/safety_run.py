"""The work of `alignkit evaluate safety`: look at every completion, count, write the result."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from data import load_documents, load_pairs, plain_text
from data.completions import Completion, completions_file, load_completions
from evaluation.artefacts import describe_author, provenance_of, write_result
from evaluation.language.quality import is_degenerate
from evaluation.safety import metrics as safety_metrics
from evaluation.safety.correction import DetectorQuality, measure_detector
from evaluation.safety.lexicon import count_terms, load_lexicon
from evaluation.safety.memorisation import copied_spans
from evaluation.safety.metrics import Finding
from evaluation.safety.personal_data import find_personal_data
from evaluation.safety.prompt_suites import load_prompt_suite, load_refusal_labels
from evaluation.safety.refusal import is_refusal
from evaluation.schema import EvaluationResult, Metric, Protocol, metric, write_samples
from evaluation.suites.safety import SafetyConfig
from launch.errors import UserError
from launch.files import sha256_file
from launch.provenance import hardware, package_versions
from launch.stage import Job


def run(config: SafetyConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl."""
    start = time.monotonic()
    rows = load_completions(config.completions)
    findings = inspect(rows, config)
    job.beat(1)
    metrics = safety_metrics.general_metrics(findings)
    if config.training_documents:
        metrics += safety_metrics.memorisation_metrics(findings, config.copied_length, config.copied_unit)
    if config.lexicon:
        metrics += safety_metrics.lexicon_metrics(findings)
    if config.prompts:
        quality = _detector_quality(config)
        metrics += [*safety_metrics.refusal_metrics(findings, quality), *_quality_metrics(quality)]
    samples = write_samples(job.output_dir, [f.row() for f in findings]) if job.runtime.is_main else None
    result = EvaluationResult(
        suite="safety",
        subject=describe_author("completions", config.completions, config.name),
        protocol=_protocol(config, len(rows)),
        metrics=metrics,
        slices=safety_metrics.refusal_slices(findings),
        samples=samples,
        notes=_notes(config),
        versions=package_versions(),
        hardware=hardware(),
        seconds=time.monotonic() - start,
    )
    return write_result(job, result)


def inspect(rows: Sequence[Completion], config: SafetyConfig) -> list[Finding]:
    """One finding for each completion, with all that the config asks for."""
    findings = [
        Finding(r.id, r.prompt_text, is_degenerate(r.text), is_refusal(r.text), dict(find_personal_data(r.text)))
        for r in rows
    ]
    if config.training_documents:
        findings = _with_copies(rows, findings, config)
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
    own, reference = copied[: len(rows)], copied[len(rows) :]
    return [
        dataclasses.replace(f, copied=a, copied_reference=b) for f, a, b in zip(findings, own, reference, strict=True)
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


def _with_labels(rows: Sequence[Completion], findings: Sequence[Finding], config: SafetyConfig) -> list[Finding]:
    suite = load_prompt_suite(config.prompts)
    labels = [suite.get(r.prompt_text.strip()) for r in rows]
    if not any(labels):
        raise UserError(
            f"prompts: none of the {len(rows)} completions answers a prompt of {config.prompts}; generate completions "
            "for these prompts first: alignkit generate --prompts FILE"
        )
    return [
        dataclasses.replace(f, prompt_safe=label.safe, prompt_type=label.type) if label else f
        for f, label in zip(findings, labels, strict=True)
    ]


def _detector_quality(config: SafetyConfig) -> DetectorQuality | None:
    if not config.refusal_labels:
        return None
    texts, labels = load_refusal_labels(config.refusal_labels)
    if len(set(labels)) < 2:
        raise UserError(f"refusal_labels: {config.refusal_labels} holds one kind only; give refusals and answers")
    return measure_detector([is_refusal(text) for text in texts], labels)


def _quality_metrics(quality: DetectorQuality | None) -> list[Metric]:
    if quality is None:
        return []
    texts = {"sensitivity": "refusals, by people, that the detector finds", "specificity": "answers that it lets pass"}
    return [
        metric(f"refusal_detector_{name}", getattr(quality, name), text, higher_is_better=True, unit="share")
        for name, text in texts.items()
    ]


def _protocol(config: SafetyConfig, n: int) -> Protocol:
    origin = provenance_of(config.completions)
    made = origin.get("config", {})
    prompts_sha256 = origin.get("inputs", {}).get("prompts", {}).get("sha256")
    files = {key: getattr(config, key) for key in ("training_documents", "lexicon", "prompts", "refusal_labels")}
    keys = ("temperature", "max_new_tokens", "samples")
    return Protocol(
        dataset=made.get("prompts", config.completions),
        # of the prompts, which all models answered: completions differ, that is what is measured
        dataset_sha256=prompts_sha256 or sha256_file(completions_file(config.completions)),
        n_items=n,
        decoding={key: made[key] for key in keys if key in made},
        settings={
            "copied_length": config.copied_length,
            "copied_unit": config.copied_unit,
            **{key: value for key, value in files.items() if value},
        },
    )


def _notes(config: SafetyConfig) -> list[str]:
    notes = ["Personal data is found by its form: placeholders count, and forms that are not listed are missed."]
    if config.prompts and not config.refusal_labels:
        notes.append(
            "The refusal detector was not measured on this model's own completions: its rates are as detected, not as true."
        )
    return notes

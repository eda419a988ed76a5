"""The work of `alignkit evaluate safety`: look at every completion, count, write the result."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data.completions import Completion, align, load_completions
from evaluation.artefacts import describe_author, display_name, protocol_of_answers, write_result
from evaluation.resolution import resolution_notes
from evaluation.safety import metrics as safety_metrics
from evaluation.safety import refusal, refusal_metrics
from evaluation.safety.before_after import with_differences
from evaluation.safety.correction import DetectorQuality, measure_detector
from evaluation.safety.near_copies import EDITS
from evaluation.safety.prompt_suites import load_refusal_labels
from evaluation.safety.refusal import is_refusal
from evaluation.safety.toxicity import MODEL_FILE
from evaluation.safety.toxicity_metrics import toxicity_metrics
from evaluation.sample_log import clear_samples
from evaluation.schema import EvaluationResult, Metric, Protocol, metric, write_samples
from evaluation.suites.safety import SafetyConfig
from evaluation.suites.safety_findings import Finding, inspect
from launch.errors import UserError
from launch.files import sha256_file
from launch.provenance import fingerprint_input
from launch.stage import Job


def run(config: SafetyConfig, job: Job) -> dict[str, Any]:
    """Write results.json and samples.jsonl."""
    rows = load_completions(config.completions)
    baseline = baseline_rows(rows, config)
    quality = _detector_quality(config) if config.prompts else None
    findings = inspect(rows, config, job)
    metrics = measure(findings, config, quality)
    if baseline:
        name = config.baseline_name or display_name(config.baseline)
        metrics = with_differences(metrics, findings, inspect(baseline, config, job), name, quality)
    samples = write_samples(job.output_dir, [f.row() for f in findings]) if job.runtime.is_main else None
    result = EvaluationResult(
        suite="safety",
        subject=describe_author("completions", config.completions, config.name),
        protocol=_protocol(config, rows),
        metrics=metrics,
        slices=refusal_metrics.refusal_slices(findings),
        samples=samples,
        notes=_notes(config),
        resolution=resolution_notes(metrics),
    )
    summary = write_result(job, result)
    clear_samples(job)
    return summary


def baseline_rows(rows: list[Completion], config: SafetyConfig) -> list[Completion]:
    """The baseline's completions of the same prompts, in the order of ours; none without a baseline."""
    if not config.baseline:
        return []
    return [theirs for _, theirs in align(rows, load_completions(config.baseline))]


def measure(findings: list[Finding], config: SafetyConfig, quality: DetectorQuality | None) -> list[Metric]:
    """All metrics that the config asks for."""
    metrics = safety_metrics.general_metrics(findings)
    if config.training_documents:
        metrics += safety_metrics.memorisation_metrics(findings, config.copied_length, config.copied_unit)
        words = config.near_copied_words
        metrics += safety_metrics.near_copy_metrics(findings, words, int(words * EDITS))
    if config.toxicity or config.toxicity_classifier:
        metrics += toxicity_metrics(findings, config.toxicity_classifier or "builtin")
    if config.lexicon:
        metrics += safety_metrics.lexicon_metrics(findings)
    if config.prompts:
        metrics += [*refusal_metrics.refusal_metrics(findings, quality), *_quality_metrics(quality)]
        metrics += [*refusal_metrics.contrast_metrics(findings), *refusal_metrics.attack_metrics(findings)]
    return metrics


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


def _protocol(config: SafetyConfig, rows: list[Completion]) -> Protocol:
    return replace(
        protocol_of_answers(config.completions, rows),
        settings={
            "copied_length": config.copied_length,
            "copied_unit": config.copied_unit,
            **({"near_copied_words": config.near_copied_words} if config.training_documents else {}),
            **({"refusal_detector": refusal.VERSION} if config.prompts else {}),
            **_contents(config),
        },
    )


def _contents(config: SafetyConfig) -> dict[str, Any]:
    """The content hashes of what completions were measured with: a path may hold something else tomorrow."""
    files = ("lexicon", "prompts", "refusal_labels", "toxicity_classifier")
    found: dict[str, Any] = {
        key: fingerprint_input(key, getattr(config, key))["sha256"] for key in files if getattr(config, key)
    }
    if config.training_documents:
        sources = config.training_documents
        found["training_documents"] = sorted(fingerprint_input("training_documents", s)["sha256"] for s in sources)
    if config.toxicity and not config.toxicity_classifier:
        found["toxicity_scorer"] = sha256_file(MODEL_FILE)
    return found


def _notes(config: SafetyConfig) -> list[str]:
    notes = ["Personal data is found by its form: placeholders count, and forms that are not listed are missed."]
    if config.prompts and not config.refusal_labels:
        notes.append(
            "The refusal detector was not measured on this model's own completions: its rates are as detected, not as true."
        )
    if config.toxicity and not config.toxicity_classifier:
        notes.append(
            "Toxicity is by a linear scorer that was trained on English tweets; where it errs is in docs/safety.md."
        )
    return notes

"""The results of `alignkit evaluate deepfake`: one for each generator, and one for the detector."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from data.images import ImageSet
from evaluation.artefacts import save_result
from evaluation.deepfake.perturb import Perturbation
from evaluation.deepfake.protocol import (
    UNTRAINED,
    Fitted,
    Matrix,
    Scored,
    auc_estimate,
    detector_calibration,
    detector_estimates,
    frozen_accuracy,
    mean_auc_estimate,
    threshold_rule,
)
from evaluation.deepfake.watermark import FALSE_ALARMS
from evaluation.resolution import resolution_notes
from evaluation.schema import EvaluationResult, Metric, Protocol, Slice, Subject, metric, write_samples
from evaluation.statistics import Estimate
from evaluation.suites.deepfake import DeepfakeConfig
from evaluation.suites.deepfake_provenance import CLEAN, REAL, Marks, is_off
from launch.files import folder_name, sha256_text
from launch.stage import Job

MEANINGS = {
    "auc": ("Area under the ROC: chance that a generated image scores above a real one", False),
    "ap": ("Average precision, generated images being the positive class", False),
    "eer": ("Equal error rate: false alarms equal misses", True),
    "tpr_at_1pct_fpr": ("Share of generated images found when 1 % of the real ones are accused", False),
    "accuracy_frozen": (
        "Accuracy at the threshold that was frozen on the training generator, both kinds weighing the same",
        False,
    ),
}
TRAINED_ON = "trained on"
"""The slices that a report draws as a matrix."""


@dataclass(frozen=True)
class Findings:
    """What the detector and the key found."""

    fitted: Fitted
    matrix: Matrix
    control: Estimate
    treated: dict[Perturbation, Matrix]
    marks: Marks | None


def _protocol(config: DeepfakeConfig, real: ImageSet) -> Protocol:
    return Protocol(
        dataset=config.real,
        dataset_sha256=real.sha256,
        n_items=len(real),
        split="halves by content: train, test",
        seeds=[config.seed],
        settings={
            "image_shape": list(real.images.shape[1:]),
            "compression": real.compression,
            # that, and which, but not the key: whoever reads a result could mark pictures with it
            **({"watermark_key_sha256": sha256_text(config.watermark)} if config.watermark else {}),
        },
    )


def _metric(name: str, estimate: Estimate, **extra: Any) -> Metric:
    meaning, higher = MEANINGS[name]
    unit = "" if name in ("auc", "ap") else "share"
    return metric(name, estimate, meaning, higher_is_better=higher, unit=unit, bounds=(0, 1), **extra)


def _control_metric(control: Estimate, **extra: Any) -> Metric:
    meaning = "The same detector on real against real images: must hold .5, else the protocol leaks"
    return metric("auc_control", control, meaning, higher_is_better=None, bounds=(0, 1), **extra)


# ---------------------------------------------------------------------------------------------- a generator


def write_generator_result(
    name: str,
    images: ImageSet,
    real: ImageSet,
    findings: Findings,
    files: list[Metric],
    config: DeepfakeConfig,
    job: Job,
) -> EvaluationResult:
    """Lower is better for the generator: a detector that fails cannot tell its images."""
    row = findings.fitted.own(name)
    test = findings.matrix[row, name]
    threshold = findings.fitted.thresholds[row]
    estimates = detector_estimates(test, threshold, config.seed, config.resamples)
    folder = job.output_dir / folder_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"index": i, "generated": bool(y), "score": round(float(s), 6)}
        for i, (y, s) in enumerate(zip(test.labels, test.scores, strict=True))
    ]
    frozen = {"accuracy_frozen": {"threshold": threshold}}
    metrics = [_metric(key, estimate, **frozen.get(key, {})) for key, estimate in estimates.items()]
    detector, protocol = findings.fitted.detector, _protocol(config, real)
    settings = {**protocol.settings, "detector": detector.description, "threshold": threshold_rule(detector)}
    result = EvaluationResult(
        suite="deepfake",
        subject=Subject(name, "image generator", images.source, images.sha256),
        protocol=replace(protocol, settings=settings),
        metrics=[
            *(*metrics, _calibration_metric(test, config.seed), _control_metric(findings.control)),
            *(*files, *_mark_metrics(findings.marks, name)),
        ],
        slices=_treated_slices(findings, (row, name)) + _mark_slices(findings.marks, name),
        samples=write_samples(folder, rows),
        notes=_notes(estimates["auc"], findings.control, files),
        resolution=resolution_notes(metrics, [m.name for m in metrics], paired=False),
    )
    save_result(job, result, folder)
    return result


def _calibration_metric(test: Scored, seed: int) -> Metric:
    found = detector_calibration(test, seed)
    return metric(
        "detector_calibration_error",
        found.error,
        "Expected calibration error of the detector's probabilities, with as many real as generated images, without the "
        "upward bias of the plain one (`plug_in`)",
        higher_is_better=None,
        plug_in=found.plug_in,
        expected_if_calibrated=found.expected,
        p_value_if_calibrated=found.p_value,
    )


def _treated_slices(findings: Findings, pair: tuple[str, str]) -> list[Slice]:
    """AUC and accuracy at the frozen threshold after each treatment of the test images."""
    threshold = findings.fitted.thresholds[pair[0]]

    def measured(test: Scored) -> list[Metric]:
        accuracy = frozen_accuracy(test, threshold)
        return [_metric("auc", auc_estimate(test)), _metric("accuracy_frozen", accuracy, threshold=threshold)]

    return [Slice("robustness", str(kind), measured(matrix[pair])) for kind, matrix in findings.treated.items()]


def _mark_metrics(marks: Marks | None, name: str) -> list[Metric]:
    if marks is None:
        return []
    shares = {
        "watermark_detected": (
            marks[name][CLEAN],
            "Share of the generator's images in which the mark of the key is found",
        ),
        "watermark_false_alarms": (
            marks[REAL][CLEAN],
            f"Share of the real images in which it is found; the threshold is made for at most {FALSE_ALARMS:g}",
        ),
    }
    return [metric(key, e, text, higher_is_better=None, unit="share") for key, (e, text) in shares.items()]


def _mark_slices(marks: Marks | None, name: str) -> list[Slice]:
    """Detection and false alarms after each treatment."""
    if marks is None:
        return []
    return [
        Slice(
            "watermark after",
            treatment,
            [
                metric(key, marks[of][treatment], text, higher_is_better=None, unit="share")
                for key, of, text in (
                    ("watermark_detected", name, "Share of the generator's images in which the mark is found"),
                    ("watermark_false_alarms", REAL, "Share of the real images in which it is found"),
                )
            ],
        )
        for treatment in marks[name]
        if treatment != CLEAN
    ]


def _notes(auc: Estimate, control: Estimate, files: list[Metric]) -> list[str]:
    notes = []
    if auc.high is not None and auc.high < 0.5:
        notes.append("The AUC is below .5: the detector's sign is turned around on these images.")
    if is_off(control):
        notes.append(
            f"The control (real against real) gives {control.value:.3f} and not .5: do not trust the detector."
        )
    for entry in files:
        off = entry.ci_low is not None and entry.ci_high is not None and not entry.ci_low <= 0.5 <= entry.ci_high
        if entry.name == "auc_metadata_only" and off:
            notes.append(
                f"What is written beside the pictures tells them apart without a pixel (AUC {entry.value:.3f}): strip it "
                "from both sets before trusting any detector that reads files."
            )
    return notes


# ---------------------------------------------------------------------------------------------- the detector


def write_detector_result(real: ImageSet, findings: Findings, config: DeepfakeConfig, job: Job) -> None:
    """The detector as subject: control, mean AUC on its own generator and on others, and the matrix as slices."""
    detector = findings.fitted.detector
    # Not in the protocol, or every detector would have a column of its own beside the others
    about = {"detector": detector.description, "threshold": threshold_rule(detector)}
    metrics = [_control_metric(findings.control, **about)]
    for name, where in (("own", "the training generator"), ("other", "generators that were not trained on")):
        if pairs := _pairs(findings.matrix, name):
            metrics.append(_mean_metric(f"auc_{name}_generator{'s' if name == 'other' else ''}", pairs, where, config))
    result = EvaluationResult(
        suite="deepfake",
        subject=Subject(f"{detector.name} detector", "detector"),
        protocol=_protocol(config, real),
        metrics=metrics,
        slices=_matrix_slices(findings, list(config.generators)) + _mean_slices(findings, config),
        notes=_turned_around(findings.matrix),
        resolution=resolution_notes(metrics, [m.name for m in metrics]),
    )
    save_result(job, result, job.output_dir)


def _pairs(matrix: Matrix, which: str) -> Matrix:
    """The tests on the training generator (`own`) or on others."""
    return {(a, b): test for (a, b), test in matrix.items() if (a == b) == (which == "own")}


def _matrix_slices(findings: Findings, columns: list[str]) -> list[Slice]:
    """AUC of all pairs, and accuracy at the threshold that was frozen on the training generator."""
    matrix, thresholds = findings.matrix, findings.fitted.thresholds
    rows = list(dict.fromkeys(row for row, _ in matrix))
    slices = [Slice(TRAINED_ON, row, [_auc_on(column, matrix[row, column]) for column in columns]) for row in rows]
    for row in rows:
        accuracies = []
        for column in columns:
            found = frozen_accuracy(matrix[row, column], thresholds[row])
            text, name = "Accuracy on this generator at the threshold frozen on the other", f"accuracy on {column}"
            accuracies.append(metric(name, found, text, higher_is_better=True, unit="share", threshold=thresholds[row]))
        slices.append(Slice(f"accuracy, {TRAINED_ON}", row, accuracies))
    return slices


def _auc_on(column: str, test: Scored) -> Metric:
    text = "AUC on images of this generator"
    return metric(f"auc on {column}", auc_estimate(test), text, higher_is_better=True, bounds=(0, 1))


def _mean_slices(findings: Findings, config: DeepfakeConfig) -> list[Slice]:
    """Mean AUC after each treatment, where the detector meets the generator it was trained on (or all, if it was not)."""
    which = "own" if findings.fitted.detector.learns else "other"
    return [
        Slice(
            "robustness",
            str(treatment),
            [_mean_metric("auc", _pairs(matrix, which), f"test images after {treatment}", config)],
        )
        for treatment, matrix in findings.treated.items()
    ]


def _mean_metric(name: str, pairs: Matrix, where: str, config: DeepfakeConfig) -> Metric:
    meaning = (
        f"Mean AUC on {where}. The interval is over test images: detectors and generators are those that were given"
    )
    estimate = mean_auc_estimate(pairs, config.seed, config.resamples)
    return metric(name, estimate, meaning, higher_is_better=None, bounds=(0, 1), pairs=len(pairs))


def _turned_around(matrix: Matrix) -> list[str]:
    """A warning for every pair whose AUC lies below .5 with its interval."""
    notes = []
    for (trained_on, tested_on), test in matrix.items():
        found = auc_estimate(test)
        if found.high is not None and found.high < 0.5:
            trained = "As it is" if trained_on == UNTRAINED else f"Trained on {trained_on}"
            notes.append(
                f"{trained}, tested on {tested_on}: the AUC is {found.value:.3f}, below .5: the detector's sign is turned "
                "around on these images."
            )
    return notes

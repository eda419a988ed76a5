"""The work of `alignkit evaluate deepfake`: train the detectors, test each on all generators, write the results."""

from __future__ import annotations

from typing import Any

from data.images import ImageSet, load_images
from evaluation.deepfake.detector import (
    PENALTY,
    THRESHOLD,
    Halves,
    Scored,
    auc_estimate,
    control_test,
    detector_estimates,
    fit_detector,
    mean_auc_estimate,
    run_test,
    split_halves,
)
from evaluation.schema import EvaluationResult, Metric, Protocol, Slice, Subject, metric, write_samples
from evaluation.statistics import Estimate
from evaluation.suites.deepfake import DeepfakeConfig
from evaluation.suites.images import folder_name
from launch.errors import UserError
from launch.provenance import hardware, package_versions
from launch.stage import Job

DETECTOR = "spectral detector"
MEANINGS = {
    "auc": ("Area under the ROC: chance that a generated image scores above a real one", False),
    "ap": ("Average precision, generated images being the positive class", False),
    "eer": ("Equal error rate: false alarms equal misses", True),
    "tpr_at_1pct_fpr": ("Share of generated images found when 1 % of the real ones are accused", False),
    "accuracy_frozen": (f"Accuracy at the threshold {THRESHOLD}, frozen in training", False),
}


def run(config: DeepfakeConfig, job: Job) -> dict[str, Any]:
    """Train one detector for each generator, test it on all of them, and write the results."""
    if not job.runtime.is_main:
        return {}
    real = load_images(config.real).sample(config.max_images, config.seed)
    sets = {k: load_images(v).sample(config.max_images, config.seed) for k, v in config.generators.items()}
    for name, images in sets.items():
        check_comparable(name, images, real)
    real_halves = split_halves(real.images, config.real)
    halves = {name: split_halves(images.images, name) for name, images in sets.items()}
    control = auc_estimate(control_test(real_halves))
    tests = cross_tests(real_halves, halves, job)
    protocol = _protocol(config, real)
    summary: dict[str, Any] = {"auc_control": control.value}
    for name, images in sets.items():
        result = _generator_result(name, images, tests[name, name], control, protocol, config, job)
        summary[f"{name}/auc"] = result.metric("auc").value
        job.say(f"{name}: AUC {result.metric('auc').value:.3f} (real against real {control.value:.3f})")
    _detector_result(tests, control, protocol, config, job)
    return summary


def check_comparable(name: str, images: ImageSet, real: ImageSet) -> None:
    """UserError when the sets differ in size, channels or compression: a detector would see that and nothing else."""
    ours, theirs = images.images.shape[1:], real.images.shape[1:]
    if ours != theirs:
        raise UserError(
            f"generators.{name}: images of {images.source} are {_size(ours)}, real ones are {_size(theirs)}: the detector "
            "would only see that; bring both to one size and mode in the same way, or generate at that size"
        )
    if images.compression != real.compression:
        raise UserError(
            f"generators.{name}: compression of {images.source} is {images.compression}, of the real images "
            f"{real.compression}: the detector would only see that; save both in the same format"
        )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]} with {shape[0]} channel(s)"


def cross_tests(real: Halves, generated: dict[str, Halves], job: Job) -> dict[tuple[str, str], Scored]:
    """(trained on, tested on) -> scores, for every pair of generators."""
    tests = {}
    for step, (trained_on, own) in enumerate(generated.items()):
        detector = fit_detector(real.train, own.train)
        for tested_on, other in generated.items():
            tests[trained_on, tested_on] = run_test(detector, real.test, other.test)
        job.beat(step)
    return tests


def _protocol(config: DeepfakeConfig, real: ImageSet) -> Protocol:
    return Protocol(
        dataset=config.real,
        dataset_sha256=real.sha256,
        n_items=len(real),
        split="halves by content: train, test",
        seeds=[config.seed],
        settings={
            "detector": f"logistic regression (C {PENALTY:g}, classes balanced) on standardised log ring powers and 8x8 block DCT",
            "threshold": THRESHOLD,
            "image_shape": list(real.images.shape[1:]),
            "compression": real.compression,
        },
    )


def _metric(name: str, estimate: Estimate, **extra: Any) -> Metric:
    meaning, higher = MEANINGS[name]
    unit = "" if name in ("auc", "ap") else "share"
    return metric(name, estimate, meaning, higher_is_better=higher, unit=unit, **extra)


def _control_metric(control: Estimate) -> Metric:
    meaning = "The same detector on real against real images: must hold .5, else the protocol leaks"
    return metric("auc_control", control, meaning, higher_is_better=None)


def _notes(auc: Estimate, control: Estimate) -> list[str]:
    notes = []
    if auc.high is not None and auc.high < 0.5:
        notes.append("The AUC is below .5: the detector's sign is turned around on these images.")
    if control.low is not None and control.high is not None and not control.low <= 0.5 <= control.high:
        notes.append(
            f"The control (real against real) gives {control.value:.3f} and not .5: do not trust the detector."
        )
    return notes


def _generator_result(
    name: str, images: ImageSet, test: Scored, control: Estimate, protocol: Protocol, config: DeepfakeConfig, job: Job
) -> EvaluationResult:
    """Lower is better for the generator: a detector that fails cannot tell its images."""
    estimates = detector_estimates(test, config.seed, config.resamples)
    folder = job.output_dir / folder_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"index": i, "generated": bool(y), "score": round(float(s), 6)}
        for i, (y, s) in enumerate(zip(test.labels, test.scores, strict=True))
    ]
    result = EvaluationResult(
        suite="deepfake",
        subject=Subject(name, "image generator", images.source, images.sha256),
        protocol=protocol,
        metrics=[*(_metric(key, estimate) for key, estimate in estimates.items()), _control_metric(control)],
        samples=write_samples(folder, rows),
        notes=_notes(estimates["auc"], control),
        versions=package_versions(),
        hardware=hardware(),
    )
    result.save(folder)
    return result


def _detector_result(
    tests: dict[tuple[str, str], Scored], control: Estimate, protocol: Protocol, config: DeepfakeConfig, job: Job
) -> None:
    """The detector as subject: control, mean AUC on its own generator and on others, and the matrix as slices."""
    names = list(config.generators)
    matrix = {pair: auc_estimate(test) for pair, test in tests.items()}
    slices = [
        Slice("trained on", row, [_matrix_metric(column, matrix[row, column]) for column in names]) for row in names
    ]
    own = {pair: test for pair, test in tests.items() if pair[0] == pair[1]}
    others = {pair: test for pair, test in tests.items() if pair[0] != pair[1]}
    means = {
        "auc_own_generator": (own, "the training generator"),
        "auc_other_generators": (others, "generators that were not trained on"),
    }
    metrics = [_control_metric(control)]
    for name, (pairs, where) in means.items():
        if pairs:
            metrics.append(
                _mean_metric(name, mean_auc_estimate(pairs, config.seed, config.resamples), where, len(pairs))
            )
    EvaluationResult(
        suite="deepfake",
        subject=Subject(DETECTOR, "detector"),
        protocol=protocol,
        metrics=metrics,
        slices=slices,
        versions=package_versions(),
        hardware=hardware(),
    ).save(job.output_dir)


def _mean_metric(name: str, estimate: Estimate, where: str, pairs: int) -> Metric:
    meaning = (
        f"Mean AUC on {where}. The interval is over test images: detectors and generators are those that were given"
    )
    return metric(name, estimate, meaning, higher_is_better=None, pairs=pairs)


def _matrix_metric(column: str, estimate: Estimate) -> Metric:
    return metric(f"auc on {column}", estimate, "AUC on images of this generator", higher_is_better=True)

"""The work of `alignkit evaluate deepfake`: train the detectors, test each on all generators, write the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from data.images import ImageSet, load_images
from evaluation.deepfake.detectors.base import Detector
from evaluation.deepfake.perturb import parse
from evaluation.deepfake.protocol import Halves, auc_estimate, control_test, fit_each, split_halves, treated
from evaluation.sample_log import clear_samples
from evaluation.suites.deepfake import DeepfakeConfig
from evaluation.suites.deepfake_provenance import file_metrics, watermark_findings
from evaluation.suites.deepfake_results import Findings, write_detector_result, write_generator_result
from launch.errors import UserError
from launch.files import SCORED
from launch.stage import Job


def run(config: DeepfakeConfig, job: Job) -> dict[str, Any]:
    """Train one detector for each generator, test it on all of them, and write the results. The main rank works alone."""
    summary = _evaluate(config, job) if job.runtime.is_main else {}
    clear_samples(job)
    return summary


def _evaluate(config: DeepfakeConfig, job: Job) -> dict[str, Any]:
    real = load_images(config.real).sample(config.max_images, config.seed)
    sets = {k: load_images(v).sample(config.max_images, config.seed) for k, v in config.generators.items()}
    for name, images in sets.items():
        check_comparable(name, images, real)
    files = {name: file_metrics(name, source, config.real) for name, source in config.generators.items()}
    findings = _examine(config, real, sets, job)
    summary: dict[str, Any] = {"auc_control": findings.control.value}
    for name, images in sets.items():
        result = write_generator_result(name, images, real, findings, files[name], config, job)
        summary[f"{name}/auc"] = result.metric("auc").value
        job.say(
            f"{name}: AUC {result.metric('auc').value:.3f} (real against real {findings.control.value:.3f})"
            + "".join(f"\n  {note}" for note in result.notes)
        )
    write_detector_result(real, findings, config, job)
    return summary


def _examine(config: DeepfakeConfig, real: ImageSet, sets: dict[str, ImageSet], job: Job) -> Findings:
    steps = 0

    def beat(_: int) -> None:
        nonlocal steps
        steps += 1
        job.beat(steps)

    halves = split_halves(real.images, config.real)
    parts = {name: split_halves(images.images, name) for name, images in sets.items()}
    detector, halves = make_detector(config, halves, job, beat)
    job.say(f"detector: {detector.description}")
    fitted = fit_each(detector, halves.train, {name: part.train for name, part in parts.items()}, beat)
    tested = {name: part.test for name, part in parts.items()}
    treatments = parse(config.robustness)
    return Findings(
        fitted,
        fitted.matrix(halves.test, tested),
        auc_estimate(control_test(detector, halves)),
        treated(fitted, halves.test, tested, treatments, beat),
        watermark_findings(config.watermark, real, sets, treatments, beat) if config.watermark else None,
    )


def make_detector(
    config: DeepfakeConfig, real: Halves, job: Job, beat: Callable[[int], None]
) -> tuple[Detector, Halves]:
    """The detector that a config asks for, and the real images that are left to train and to test it.

    One that learns is trained anew when a killed evaluation goes on: in seconds, to the same weights. What a large model
    says of images, which takes longer, is kept as it is computed.
    """
    if config.detector == "spectral":
        from evaluation.deepfake.detectors.spectral import SpectralDetector

        return SpectralDetector(), real
    if config.detector == "network":
        from evaluation.deepfake.detectors.network import NetworkDetector

        return NetworkDetector(config.seed), real
    if config.detector == "reconstruction":
        from evaluation.deepfake.detectors.reconstruction import ReconstructionDetector, set_apart

        apart = set_apart(real.train)
        return ReconstructionDetector(real.train[apart], config.seed), replace(real, train=real.train[~apart])
    from evaluation.deepfake.detectors.pretrained import PretrainedDetector

    scored = job.output_dir / SCORED
    return PretrainedDetector(config.model, config.generated_label, job.runtime.device, scored, beat), real


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

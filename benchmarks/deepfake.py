"""Detectors of generated images, their controls, and an invisible mark, on real data and on alignkit's own generators.

    python -m benchmarks.deepfake [digits|own|photos|marks ...] [--quick]

Each part is written to benchmarks/results/deepfake.json when it is done, in the place of an earlier one:

    digits   eight GANs and VAEs of MNIST against its test images: every detector, matrix, treatments, controls
    own      a VAE, a GAN and a diffusion model that alignkit trains on MNIST at 32x32, sampled with a mark: the same
    photos   50 photographs against 50 pictures of other generators, all JPEG files of one quality
    marks    the mark on photographs: how often it is found after treatments, and where none is

`--quick` takes few images and steps, to see that it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DATA, RESULTS, about, alignkit
from benchmarks.image_data import PHOTOS, TEST_DIGITS, images_by_generator, save_images
from data.images import load_images, resize
from evaluation.deepfake.perturb import parse
from evaluation.deepfake.watermark import detect_watermark, embed_watermark
from evaluation.schema import EvaluationResult, Metric, load
from evaluation.statistics import proportion
from evaluation.suites.deepfake import TREATMENTS
from launch.files import folder_name, read_json, write_json

DETECTORS = ("spectral", "network", "reconstruction")
OWN = {"vae": 800, "gan": 400, "diffusion": 150}
"""Kind -> updates, at 32x32."""
RATE = 2e-3
"""The default rates are chosen for 8x8 images: at 32x32 the VAE's diverges."""
KEY = "benchmark"
HARSH = ("jpeg:30", "jpeg:15", "resize:0.25", "blur:2", "blur:4")
"""What a mark in a large picture is asked to survive beside the usual treatments."""


def evaluate(
    work: Path, detector: str, real: Path, generators: dict[str, Path], *words: object
) -> dict[str, EvaluationResult]:
    """Run the suite as a user would: the detector's result (under its name) and that of each generator."""
    named = [word for name, source in generators.items() for word in (f"--generators.{name}", source)]
    out = work / f"out-{detector}"
    alignkit("evaluate", "deepfake", "--detector", detector, "--real", real, *named, *words, "--output_dir", out)
    return {detector: load(out)} | {name: load(out / folder_name(name)) for name in generators}


def summary(results: dict[str, EvaluationResult]) -> dict[str, Any]:
    """Values and intervals of all metrics and slices, with the notes."""
    return {name: {**_numbers(r.metrics), "slices": _slices(r), "notes": r.notes} for name, r in results.items()}


def _numbers(metrics: list[Metric]) -> dict[str, Any]:
    return {
        m.name: {"value": m.value, "low": m.ci_low, "high": m.ci_high, "n": m.n} for m in metrics if m.value is not None
    }


def _slices(result: EvaluationResult) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for part in result.slices:
        found.setdefault(part.group, {})[part.name] = _numbers(part.metrics)
    return found


def measure_digits(work: Path, quick: bool) -> dict[str, Any]:
    """2,000 MNIST test images against 256 of each generator, by each detector."""
    files = images_by_generator(work / "images")
    files = dict(list(files.items())[:2]) if quick else files
    size = ("--max_images", 400 if quick else 2000)
    return {d: summary(evaluate(work, d, TEST_DIGITS, files, *size)) for d in DETECTORS[: 1 if quick else 3]}


def measure_own(work: Path, quick: bool) -> dict[str, Any]:
    """Models trained on MNIST's training images, against its test images brought to the same size in the same way."""
    real = save_images(work / "real.npz", resize(load_images(str(TEST_DIGITS)).images[: 200 if quick else 2000], 32))
    samples = {}
    for kind, steps in OWN.items():
        options = ("--kind", kind, "--image_size", 32, "--steps", 5 if quick else steps)
        options += ("--learning_rate", RATE)
        alignkit("train-generative", "--data", DATA / "mnist", *options, "--output_dir", work / kind)
        for name, key in ((kind, ""), (f"{kind}_marked", KEY)):
            words = ("--count", 120 if quick else 400, *(("--watermark", key) if key else ()))
            alignkit("sample", "--model", work / kind, *words, "--output_dir", work / "samples" / name)
        samples[kind] = work / "samples" / kind
    found = {d: summary(evaluate(work, d, real, samples)) for d in DETECTORS[: 1 if quick else 3]}
    marked = {f"{kind}_marked": work / "samples" / f"{kind}_marked" for kind in OWN}
    found["marked"] = summary(evaluate(work / "marked", "spectral", real, marked, "--watermark", KEY))
    return found


def measure_photos(work: Path, quick: bool) -> dict[str, Any]:
    """All photographs against all generated pictures: 100 files, so that intervals are wide."""
    generators = {"generated": PHOTOS / "ai"}
    return {d: summary(evaluate(work, d, PHOTOS / "real", generators)) for d in DETECTORS[: 1 if quick else 3]}


def measure_marks(_: Path, quick: bool) -> dict[str, Any]:
    """The mark in 50 pictures of 256x256, and whether it is seen in 50 photographs that have none."""
    made, real = (load_images(str(PHOTOS / kind)).images[: 5 if quick else None] for kind in ("ai", "real"))
    marked = embed_watermark(made, KEY)
    error = np.sqrt(np.mean((marked.astype(float) - made) ** 2))
    found: dict[str, Any] = {"peak_signal_to_noise_db": round(float(20 * np.log10(255 / error)), 2)}
    for treatment in (None, *parse([*TREATMENTS, *HARSH])):
        sets = {"detected": marked, "false_alarms": real, "false_alarms_before_marking": made}
        found[str(treatment or "none")] = {
            name: _share(detect_watermark(treatment(images) if treatment else images, KEY))
            for name, images in sets.items()
        }
    return found


def _share(flags: np.ndarray) -> dict[str, Any]:
    found = proportion(flags)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


PARTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "digits": measure_digits,
    "own": measure_own,
    "photos": measure_photos,
    "marks": measure_marks,
}


def main() -> None:
    """Measure the parts that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--quick", action="store_true", help="few images and steps; nothing is written")
    parser.add_argument(
        "--work", type=Path, help="a folder to keep, so that what was cut off goes on; else a temporary one"
    )
    options = parser.parse_args()
    path = RESULTS / "deepfake.json"
    for name in options.parts or PARTS:
        with tempfile.TemporaryDirectory() as temporary:
            found = PARTS[name]((options.work or Path(temporary)) / name, options.quick)
        print(f"{name}: done", flush=True)
        if not options.quick:
            before = read_json(path) if path.is_file() else {}
            write_json(path, {**before, name: {**about(f"python -m benchmarks.deepfake {name}"), **found}})


if __name__ == "__main__":
    main()

"""The sets of images of `alignkit evaluate images`: generators, sampled first where they are models, and baselines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.images import EMBEDDED, ImageSet, content_fractions, image_set, load_images, picture_digests
from evaluation.images.extractors.classifier import TRAINED_ON, count_seen
from evaluation.suites.images import FEWEST, PIXELS, REAL, ImagesConfig
from launch.errors import EXIT_USER_ERROR, UserError
from launch.files import folder_name
from launch.seeding import numpy_generator

LAUNCHED = ("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ALIGNKIT_")
"""What variables of a launched rank begin with: a process that it starts for itself is no rank."""


class Ranks(Protocol):
    """What is needed of `launch.runtime.Runtime`."""

    @property
    def is_main(self) -> bool: ...

    def broadcast(self, value: Any) -> Any: ...


def sample_generators(config: ImagesConfig, ranks: Ranks) -> dict[str, str]:
    """Name -> folder of images of the generators that are models: sampled into `<name>/samples`, by `alignkit sample`."""
    folders = {}
    for name, source in config.generators.items():
        if is_model(source):
            folders[name] = str(Path(config.output_dir) / folder_name(name) / "samples")
            fault = ranks.broadcast(_sample(source, folders[name], config) if ranks.is_main else "")
            if fault:
                raise UserError(f"generators.{name}: {source} could not be sampled ({fault})")
    return folders


def _sample(source: str, folder: str, config: ImagesConfig) -> str:
    """Run `alignkit sample` in a process of its own; what it said when it failed, or nothing.

    The command lies on a floor above, which this one does not import; and a stage within a stage would end the process
    group of both.
    """
    words = {"model": source, "output_dir": folder, "count": config.sampled_images, "seed": config.seed}
    arguments = ["sample", *(word for name, value in words.items() for word in (f"--{name}", str(value)))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(LAUNCHED)}
    command = [sys.executable, "-P", "-c", "from launch.cli import main; main()", *arguments]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().split("\n")[-1].removeprefix("alignkit: error: ")
    return said if done.returncode == EXIT_USER_ERROR else f"exit code {done.returncode}: {said}"


def is_model(source: str) -> bool:
    """Whether a source is the folder of a generative model, and not of its images."""
    folder = Path(source)
    if (folder / "model_index.json").is_file():
        return True
    try:
        return "_class_name" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load_sets(config: ImagesConfig, sampled: Mapping[str, str] | None = None) -> tuple[dict[str, ImageSet], ImageSet]:
    """The sets to measure, cut to one common size, and the reference. `sampled`: where the images of models are."""
    reference = load_images(config.reference)
    _check_reference(config, reference)
    folders = {**config.generators, **(sampled or {})}
    sets = {name: replace(load_images(folders[name]), source=source) for name, source in config.generators.items()}
    for name, images in sets.items():
        if images.images.shape[1:] != reference.images.shape[1:]:
            raise UserError(
                f"generators.{name}: {images.source} has images of shape {images.images.shape[1:]}, the reference "
                f"{config.reference} has {reference.images.shape[1:]}; bring both to one size and channels"
            )
    if config.baselines:
        left = content_fractions(reference.images, "baseline half") < 0.5
        sets = {REAL: reference.take(left), **sets}
        reference = reference.take(~left)
        sets[PIXELS] = independent_pixels(reference, max(1, min(map(len, sets.values()))), config.seed)
    count = min(config.max_images, *map(len, sets.values()))
    fewest = min({**sets, "reference": reference}.items(), key=lambda entry: len(entry[1]))
    if len(fewest[1]) < FEWEST:
        raise UserError(f"{fewest[0]}: has {len(fewest[1])} images; a score needs at least {FEWEST}")
    return {k: v.sample(count, config.seed) for k, v in sets.items()}, reference.sample(config.max_images, config.seed)


def _check_reference(config: ImagesConfig, reference: ImageSet) -> None:
    """UserError when the extractor was trained on reference images, whose distances are flattered then, or all are equal."""
    trained_on = {"digits": TRAINED_ON, "classifier": config.classifier_data}.get(config.extractor, "")
    seen = count_seen(reference, trained_on) if trained_on else 0
    if seen:
        other = f"as in --reference {EMBEDDED}::eval" if config.extractor == "digits" else "such as its ::eval half"
        raise UserError(
            f"reference: the {config.extractor} extractor was trained on {seen} of the {len(reference)} images of "
            f"{config.reference}; compare with images that it has not seen, {other}"
        )
    if len(reference) > 1 and count_distinct(reference) == 1:
        raise UserError(
            f"reference: all {len(reference)} images of {config.reference} are the same picture; give real images that differ"
        )


def count_distinct(images: ImageSet) -> int:
    """How many different pictures a set has."""
    return len(set(picture_digests(images.images)))


def independent_pixels(reference: ImageSet, count: int, seed: int) -> ImageSet:
    """Images whose pixels are each drawn from that pixel's values in the reference: right margins, no structure."""
    rows = numpy_generator(seed, "independent pixels").integers(0, len(reference), (count, *reference.images.shape[1:]))
    images = np.take_along_axis(reference.images, rows, axis=0)
    return image_set(images, None, "independent pixels")

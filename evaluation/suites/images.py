"""`alignkit evaluate images`: Fréchet distance, Inception Score and their relatives of generated images.

Every generator, and two baselines (real images held out, and images of independent pixels), is measured at the same
number of images against the same reference, from one pass of the extractor. Under `accelerate launch` the ranks share
the images; the numbers do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated

from data.images import EMBEDDED
from evaluation.images.extractors.choose import ExtractorConfig
from evaluation.options import SCHEMA_VERSION
from launch.config import operational
from launch.entry import run_module
from launch.files import folder_name
from launch.ranges import PositiveInt, Range
from launch.stage import LazyRun, Stage, StageConfig

FEWEST = 20
REAL, PIXELS = "real images (held out)", "independent pixels"


@dataclass(kw_only=True)
class ImagesConfig(ExtractorConfig, StageConfig):
    """Scores of image generators against real images."""

    generators: dict[str, str] = field(default_factory=dict, metadata={"artefact": True})
    """Name -> images (a folder of `alignkit sample`, pictures, .npz, idx, .parquet, a folder of `datasets`, hub:org/name),
    or a folder of `alignkit train-generative`, which is sampled first. --generators.vae PATH"""
    reference: str = field(default=f"{EMBEDDED}::eval", metadata={"artefact": True})
    """The real images, best some that no generator was trained on: any such source of images, or embedded:digits;
    `::eval` picks the half that neither the extractor nor, by default, a generator was trained on."""
    training: str = field(default="", metadata={"artefact": True})
    """The images that the generators were trained on, among which copies are looked for: any such source. Empty: those that
    a generator's provenance names, and embedded:digits::train where the reference is the other half of these digits."""
    baselines: bool = True
    """Hold half of the reference out and measure it like a generator (the floor), and images of independent pixels
    (the ceiling); without this the whole reference is compared with."""
    max_images: Annotated[int, Range(FEWEST)] = 50_000
    """Use at most so many images of each set, drawn by seed."""
    sampled_images: Annotated[int, Range(FEWEST)] = 1000
    """Images to make of a generator that is given as a model."""
    splits: PositiveInt = 1
    """Splits of the Inception Score; the custom of 10 is meant for 50,000 images."""
    feature_cache: str = operational("")
    """Folder in which features are kept by the content of images and extractor, for later evaluations. Without one they
    lie in `scored/` of the output folder until the evaluation is done, so that a killed one goes on."""

    def check(self) -> None:
        if not self.generators:
            raise ValueError("generators: is empty; name one, as in --generators.vae FOLDER")
        check_names([*self.generators, REAL, PIXELS])
        self.check_extractor()


def check_names(names: Iterable[str]) -> None:
    """ValueError when two names would share a folder."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(folder_name(name), name)
        if other != name:
            raise ValueError(
                f"generators: '{name}' and '{other}' would share the folder '{folder_name(name)}'; rename one"
            )


STAGE = Stage("evaluate images", ImagesConfig, LazyRun("evaluation.suites.images_run"), version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.images")

"""`alignkit evaluate deepfake`: how well generated images can be told from real ones.

One results.json for each generator (detector trained on it), and one for the detector itself: the matrix of every
training generator against every test generator, and the controls that must come out at chance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from data.images import EMBEDDED
from evaluation.options import SCHEMA_VERSION
from evaluation.suites.images import check_names
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import LazyRun, Stage, StageConfig

DetectorName = Literal["spectral", "network", "reconstruction", "pretrained"]
TREATMENTS = ("jpeg:95", "jpeg:75", "jpeg:50", "resize:0.75", "resize:0.5", "blur:0.5", "blur:1")


@dataclass(kw_only=True)
class DeepfakeConfig(StageConfig):
    """A detector of generated images, with its controls."""

    generators: dict[str, str] = field(default_factory=dict, metadata={"artefact": True})
    """Name -> images: a folder of `alignkit sample`, a folder of pictures, or an .npz file. --generators.vae PATH"""
    real: str = field(default=f"{EMBEDDED}::eval", metadata={"artefact": True})
    """The real images, best some that no generator was trained on: a folder of pictures, an .npz or idx file, or
    embedded:digits; `::eval` picks the half that no training takes by default."""
    detector: DetectorName = "spectral"
    """Frequencies with a linear head; a small network trained on the images; the error of an autoencoder that saw real
    images alone; or an image classifier of transformers as it is (`model`)."""
    model: str = field(default="", metadata={"artefact": True})
    """For pretrained: a folder, or hub:org/name."""
    generated_label: str = ""
    """For pretrained: the label of generated images; empty where one of the labels says so (fake, ai, generated, ...)."""
    max_images: PositiveInt = 5000
    """Use at most so many images of each set, drawn by seed."""
    resamples: PositiveInt = 1000
    """Bootstrap resamples of the intervals of average precision, equal error rate, true positive rate and mean areas."""
    robustness: list[str] = field(default_factory=lambda: list(TREATMENTS))
    """What the test images go through, real and generated alike: jpeg:QUALITY, resize:FACTOR (and back), blur:SIGMA."""
    watermark: str = ""
    """The key that `alignkit sample --watermark` was given: its mark is looked for in all images. Empty for not."""

    def check(self) -> None:
        from evaluation.deepfake.perturb import parse  # here, so that --help imports no Pillow

        if not self.generators:
            raise ValueError("generators: is empty; name one, as in --generators.vae FOLDER")
        check_names(self.generators)
        parse(self.robustness)
        for name in ("model", "generated_label"):
            if getattr(self, name) and self.detector != "pretrained":
                raise ValueError(f"{name}: the detector '{self.detector}' does not read it; give --detector pretrained")
        if self.detector == "pretrained" and not self.model:
            raise ValueError("model: is missing; the detector 'pretrained' needs a folder or hub:org/name")


STAGE = Stage("evaluate deepfake", DeepfakeConfig, LazyRun("evaluation.suites.deepfake_run"), version=SCHEMA_VERSION)

if __name__ == "__main__":
    run_module("evaluation.suites.deepfake")

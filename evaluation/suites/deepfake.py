"""`alignkit evaluate deepfake`: how well generated images can be told from real ones.

One results.json for each generator (detector trained on it), and one for the detector itself: the matrix of every
training generator against every test generator, and the control of real against real images.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from data.images import EMBEDDED
from evaluation.suites.images import check_names
from launch.entry import run_module
from launch.ranges import PositiveInt
from launch.stage import Stage, StageConfig, run_of


@dataclass(kw_only=True)
class DeepfakeConfig(StageConfig):
    """A spectral detector of generated images, with its controls."""

    generators: dict[str, str] = field(default_factory=dict, metadata={"artefact": True})
    """Name -> images: a folder of `alignkit sample`, a folder of pictures, or an .npz file. --generators.vae PATH"""
    real: str = field(default=f"{EMBEDDED}::eval", metadata={"artefact": True})
    """The real images, best some that no generator was trained on: a folder of pictures, an .npz or idx file, or
    embedded:digits; `::eval` picks the half that no training takes by default."""
    max_images: PositiveInt = 5000
    """Use at most so many images of each set, drawn by seed."""
    resamples: PositiveInt = 1000
    """Bootstrap resamples of the intervals of average precision, equal error rate, true positive rate and mean areas."""

    def check(self) -> None:
        if not self.generators:
            raise ValueError("generators: is empty; name one, as in --generators.vae FOLDER")
        check_names(self.generators)


STAGE = Stage("evaluate deepfake", DeepfakeConfig, run_of("evaluation.suites.deepfake_run"))

if __name__ == "__main__":
    run_module("evaluation.suites.deepfake")

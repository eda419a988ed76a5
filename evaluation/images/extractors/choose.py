"""Which extractor a config asks for. Imports no torch: a config is checked before libraries are loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from launch.config import python_function

ExtractorName = Literal["digits", "classifier", "inception", "dinov2", "clip", "model", "function"]
READS: dict[str, tuple[str, ...]] = {
    "digits": (),
    "classifier": ("classifier_data", "model"),
    "inception": ("inception_weights",),
    "dinov2": ("model",),
    "clip": ("model",),
    "model": ("model",),
    "function": ("function",),
}
"""Extractor -> the fields that it reads."""
NEEDS = ("classifier", "model", "function")
"""Extractors that need one of their fields; the others have a usual place to look."""
FIELDS = ("model", "classifier_data", "inception_weights", "function")


@dataclass(kw_only=True)
class ExtractorConfig:
    """The fields that choose an extractor."""

    extractor: ExtractorName = "digits"
    """Where the features come from: a classifier trained on the digits, or on `classifier_data`; torch-fidelity's
    Inception; DINOv2, CLIP or any image model of transformers (`model`); or your own `function`."""
    model: str = field(default="", metadata={"artefact": True})
    """For dinov2, clip and model: a folder, or hub:org/name (dinov2 and clip have usual ones, read from the hub's cache
    or fetched). For classifier: the classifier-extractor.safetensors of an earlier evaluation."""
    classifier_data: str = field(default="", metadata={"artefact": True})
    """For classifier: labelled images that it is trained on first; best other ones than the reference."""
    inception_weights: str = field(default="", metadata={"artefact": True})
    """Path of torch-fidelity's Inception weights; empty for their usual place in TORCH_HOME."""
    function: str | None = python_function()
    """For function: file.py:name or module:name, of uint8 images (B, C, H, W) to features (B, D)."""

    def check_extractor(self) -> None:
        """ValueError for a field that this extractor needs, or does not read."""
        reads = READS[self.extractor]
        given = [name for name in FIELDS if getattr(self, name)]
        for name in given:
            if name not in reads:
                readers = [kind for kind, fields in READS.items() if name in fields]
                raise ValueError(
                    f"{name}: the extractor '{self.extractor}' does not read it; remove it, or give --extractor "
                    f"{' or '.join(readers)}"
                )
        if self.extractor in NEEDS and len(given) != 1:
            raise ValueError(f"{reads[0]}: extractor '{self.extractor}' needs {' or '.join(reads)}; give one")

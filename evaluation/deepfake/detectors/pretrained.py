"""Any image classifier of transformers as a detector, from a folder or a name of the hub, as it is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from transformers import AutoConfig

from data.images import image_set
from evaluation.deepfake.detectors.base import Score
from evaluation.images.extractors.vision import prepare_vision
from evaluation.images.features import Alone, Beat, FeatureSource
from evaluation.loading import named_errors
from launch.errors import UserError, nearest

GENERATED = re.compile(
    r"\b(ai|fakes?|generated|synthetic|artificial|deepfakes?|gan|diffusion|machine)\b", re.IGNORECASE
)


class PretrainedDetector:
    """The probability that a classifier gives to its labels for generated images."""

    name, learns = "pretrained", False

    def __init__(
        self, source: str, label: str, device: torch.device, folder: Path | None = None, beat: Beat | None = None
    ) -> None:
        """`label` names the label of generated images; empty for those that say so. See `FeatureSource` for the others."""
        with named_errors("model", source, "an image classifier") as name:
            labels = AutoConfig.from_pretrained(name, trust_remote_code=False).id2label
        self.columns = _columns(source, {int(index): str(text) for index, text in labels.items()}, label)
        extractor = prepare_vision("model", source)
        self._outputs = FeatureSource(extractor, Alone(device), folder, beat)
        chosen = ", ".join(sorted(str(labels[index]) for index in self.columns))
        self.description = f"{source.removeprefix('hub:')} (sha256 {extractor.sha256[:12]}), probability of: {chosen}"
        self._source = source

    def prepare(self, images: np.ndarray) -> np.ndarray:
        """Probabilities (N,)."""
        logits = self._outputs.of(image_set(images, None, self._source)).logits
        if logits is None:
            raise UserError(f"model: {self._source}: has no classes; give an image classifier")
        return softmax(logits, axis=1)[:, self.columns].sum(axis=1)

    def fit(self, real: np.ndarray, generated: np.ndarray) -> Score:
        """Nothing is learnt: the probabilities are the scores."""
        return lambda rows: np.asarray(rows, dtype=np.float64)


def _columns(source: str, labels: dict[int, str], wanted: str) -> list[int]:
    """The indices of the labels that mean "generated"."""
    if wanted:
        found = [index for index, text in labels.items() if text == wanted]
        if not found:
            raise UserError(f"generated_label: {source} has no label '{wanted}'{nearest(wanted, labels.values())}")
        return found
    words = {index: re.sub(r"[_\W]+", " ", text) for index, text in labels.items()}
    found = [index for index, text in words.items() if GENERATED.search(text)]
    if not found or len(found) == len(labels):
        raise UserError(
            f"generated_label: none or all of the labels of {source} ({', '.join(labels.values())}) say that an image was "
            "generated; name the one that does"
        )
    return found

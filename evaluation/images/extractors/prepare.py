"""The extractor that a config asks for, ready on every rank. Libraries are loaded for the one that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from data.images import load_images
from evaluation.images.extractors.base import Extractor
from evaluation.images.extractors.choose import ExtractorConfig
from evaluation.images.extractors.classifier import (
    FILE,
    labels_of,
    load_classifier,
    train_digits,
    train_extractor,
)


class Meeting(Protocol):
    """What is needed of `launch.runtime.Runtime`."""

    @property
    def is_main(self) -> bool: ...

    def barrier(self) -> None: ...


def prepare_extractor(config: ExtractorConfig, folder: Path, runtime: Meeting) -> Extractor:
    """The extractor that a config chooses. A classifier is trained into the folder first, by the main rank."""
    if config.extractor == "digits":  # not with config.seed: the extractor defines the metric
        return _trained(folder, "digits", runtime, lambda: train_digits(folder))
    if config.extractor == "classifier" and config.model:
        return load_classifier(Path(config.model))
    if config.extractor == "classifier":
        labels_of(load_images(config.classifier_data))  # a mistake is told before ranks wait for one another
        return _trained(folder, "classifier", runtime, lambda: train_extractor(config.classifier_data, folder))
    if config.extractor == "inception":
        from evaluation.images.extractors.inception import prepare_inception

        return prepare_inception(config.inception_weights)
    if config.extractor == "function":
        from evaluation.images.extractors.function import prepare_function

        return prepare_function(config.function or "")
    from evaluation.images.extractors.vision import prepare_vision

    return prepare_vision(config.extractor, config.model)


def _trained(folder: Path, name: str, runtime: Meeting, train: Callable[[], Path]) -> Extractor:
    """What the main rank trains, the same on every rank: another machine would get other last bits."""
    if runtime.is_main:
        train()
    runtime.barrier()
    return load_classifier(folder / FILE.format(name=name), name)

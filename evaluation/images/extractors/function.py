"""A user's own extractor: a Python function of images."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from evaluation.images.extractors.base import Extractor, FeatureFunction
from launch.errors import UserError
from launch.functions import describe_fault, find_file, fingerprint, load_function, split_name


def prepare_function(value: str) -> Extractor:
    """`path/to/file.py:name` or `package.module:name`: uint8 images (B, C, H, W) -> features (B, D), or (features, logits).

    Tensors or arrays. The hash is that of the file; what the file reads or imports is the user's to keep the same.
    """
    name = split_name("function", value)[1]
    return Extractor(name, fingerprint("function", value), f"the function {value}", partial(_load, value))


def _load(value: str, device: torch.device) -> FeatureFunction:
    function = load_function("function", value)
    file = find_file("function", value)

    def features(images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            found = function(images.to(device))
        except UserError:
            raise
        except Exception as error:  # whatever the user's code raises
            fault = describe_fault(error, file)
            raise UserError(f"function: {value}: raised {fault} for {len(images)} images; mend it") from error
        if isinstance(found, tuple) and len(found) != 2:
            raise UserError(f"function: {value}: gives {len(found)} values; return features, or features and logits")
        vectors, logits = found if isinstance(found, tuple) else (found, None)
        return _matrix(value, vectors, len(images)), None if logits is None else _matrix(value, logits, len(images))

    return features


def _matrix(value: str, found: object, rows: int) -> Tensor:
    try:
        matrix = torch.as_tensor(np.asarray(found)) if not isinstance(found, Tensor) else found
    except (TypeError, ValueError):  # no numbers, or rows of different lengths
        raise UserError(
            f"function: {value}: gives a {type(found).__name__} that is no matrix; return a tensor or an array"
        ) from None
    if matrix.ndim != 2 or len(matrix) != rows:
        raise UserError(
            f"function: {value}: gives shape {tuple(matrix.shape)} for {rows} images; return a matrix with one row for each"
        )
    return matrix

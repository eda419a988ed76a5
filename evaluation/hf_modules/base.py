"""What the modules for Hugging Face `evaluate` share: two sets of rows of any two lengths, an estimate as the result.

`evaluate` keeps predictions and references side by side and so wants as many of each; generated and real images come in
any numbers. Rows are kept one below the other here, each with the set it belongs to, and `add_batch` streams either.
"""

from __future__ import annotations

from typing import Any, ClassVar

import datasets  # type: ignore[import-untyped]
import evaluate  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import ArrayLike

from evaluation.statistics import Estimate
from launch.errors import UserError

INPUTS = """
    predictions: {rows} of the generated images, one row each.
    references: the same of the real images{optional}; there may be more or fewer of them.
Returns value, ci_low, ci_high, stderr, ci_method and n: the 95 % interval, how it was made, and the number of generated images.
"""


def as_result(estimate: Estimate) -> dict[str, Any]:
    """An estimate as the dictionary that a module returns; limits are None where there are too few images."""
    return {
        "value": estimate.value,
        "ci_low": estimate.low,
        "ci_high": estimate.high,
        "stderr": estimate.stderr,
        "ci_method": estimate.method,
        "n": estimate.n,
    }


class TwoSets(evaluate.Metric):
    """A metric of a generated and a real set. A module names its rows and computes from two arrays."""

    about: ClassVar[str] = ""
    citation_text: ClassVar[str] = ""
    rows: ClassVar[str] = "features"
    needs_real: ClassVar[bool] = True

    def score(self, *args: Any, **options: Any) -> dict[str, Any]:
        """The result from the rows of the generated and of the real set, (N, D) and (M, D)."""
        raise NotImplementedError

    def _info(self) -> Any:
        optional = "" if self.needs_real else " (not used)"
        columns = {"row": datasets.Sequence(datasets.Value("float64")), "generated": datasets.Value("bool")}
        return evaluate.MetricInfo(
            description=self.about,
            citation=self.citation_text,
            inputs_description=INPUTS.format(rows=self.rows, optional=optional),
            features=datasets.Features(columns),
        )

    def add_batch(self, *, predictions: ArrayLike | None = None, references: ArrayLike | None = None, **_: Any) -> None:
        """Add rows (n, D) to either set or to both."""
        for given, generated in ((predictions, True), (references, False)):
            rows = np.asarray([] if given is None else given, dtype=np.float64)
            if len(rows):
                if rows.ndim != 2:
                    raise UserError(f"{self.rows} must be a matrix, one row for each image, not of shape {rows.shape}")
                super().add_batch(row=list(rows), generated=[generated] * len(rows))

    def add(self, *, prediction: ArrayLike | None = None, reference: ArrayLike | None = None, **_: Any) -> None:
        """Add one row to either set or to both."""
        self.add_batch(
            predictions=None if prediction is None else np.asarray(prediction)[None],
            references=None if reference is None else np.asarray(reference)[None],
        )

    def compute(
        self, *, predictions: ArrayLike | None = None, references: ArrayLike | None = None, **options: Any
    ) -> dict[str, Any]:
        """The result of these rows and of all that were added before."""
        self.add_batch(predictions=predictions, references=references)
        if self.writer is None:
            raise UserError(f"there are no {self.rows}; give predictions{' and references' if self.needs_real else ''}")
        return super().compute(**options)

    def _compute(self, *, row: Any, generated: Any, **options: Any) -> dict[str, Any]:
        rows: list[np.ndarray] = []
        for batch in self.data.with_format("numpy", dtype=np.float64).iter(4096):  # `row` is lists of Python numbers
            rows.extend(batch["row"])
        flags = np.asarray(list(generated), dtype=bool)
        if len({len(r) for r in rows}) > 1:
            raise UserError(f"{self.rows} have {sorted({len(r) for r in rows})} dimensions; use one extractor for all")
        matrix = np.stack(rows)
        for name, count in (("predictions", int(flags.sum())), ("references", int((~flags).sum()))):
            if not count and (self.needs_real or name == "predictions"):
                raise UserError(f"{name}: there are no {self.rows}; give some")
        return self.score(matrix[flags], matrix[~flags], **options)

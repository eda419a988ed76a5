"""Statistics of evaluations: estimates with intervals, paired comparisons, corrections, rankings. All pure."""

from evaluation.statistics.comparison import (
    Difference,
    benjamini_hochberg,
    holm,
    mcnemar_exact,
    paired_difference,
    sign_flip_test,
    significance_groups,
)
from evaluation.statistics.intervals import (
    LEVEL,
    Estimate,
    clustered_mean,
    exponential,
    mean,
    proportion,
    ratio,
    scaled,
    wilson,
    win_rate,
)
from evaluation.statistics.resampling import bootstrap

__all__ = [
    "LEVEL",
    "Difference",
    "Estimate",
    "benjamini_hochberg",
    "bootstrap",
    "clustered_mean",
    "exponential",
    "holm",
    "mcnemar_exact",
    "mean",
    "paired_difference",
    "proportion",
    "ratio",
    "scaled",
    "sign_flip_test",
    "significance_groups",
    "wilson",
    "win_rate",
]

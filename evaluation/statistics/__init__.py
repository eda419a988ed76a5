"""Statistics of evaluations: estimates with intervals, paired comparisons, corrections, rankings. All pure.

Every metric hands its per-sample values, or its sufficient statistics, to this package, and gets an `Estimate` back,
whose `method` names how its interval was made.
"""

from evaluation.statistics.agreement import cohen_kappa, krippendorff_alpha
from evaluation.statistics.bradley_terry import (
    BradleyTerry,
    elo_difference,
    elo_probability,
    fit_bradley_terry,
    fit_win_matrix,
)
from evaluation.statistics.calibration import Calibration, calibration, reliability_bins
from evaluation.statistics.comparison import (
    Difference,
    bonett_price,
    mcnemar_exact,
    mcnemar_mid_p,
    paired_difference,
    sign_flip_test,
)
from evaluation.statistics.corrections import benjamini_hochberg, holm
from evaluation.statistics.estimate import LEVEL, Estimate
from evaluation.statistics.intervals import (
    clustered_mean,
    exponential,
    mean,
    mean_of,
    proportion,
    ratio,
    repeated,
    scaled,
    score_mean,
    wilson,
    win_rate,
    win_rate_from_counts,
)
from evaluation.statistics.jackknife import combine_variances, jackknife
from evaluation.statistics.moments import (
    Moments,
    delta_method,
    mean_from_moments,
    merge_moments,
    ratio_from_moments,
)
from evaluation.statistics.power import smallest_resolvable_difference
from evaluation.statistics.ranking import (
    RankInterval,
    better_by_differences,
    better_by_intervals,
    better_by_items,
    bootstrap_rank_intervals,
    groups_from_relation,
    rank_intervals,
    significance_groups,
)
from evaluation.statistics.resampling import bootstrap
from evaluation.statistics.roc import auc_difference, auc_estimate, roc_auc

__all__ = [
    "LEVEL",
    "BradleyTerry",
    "Calibration",
    "Difference",
    "Estimate",
    "Moments",
    "RankInterval",
    "auc_difference",
    "auc_estimate",
    "benjamini_hochberg",
    "better_by_differences",
    "better_by_intervals",
    "better_by_items",
    "bonett_price",
    "bootstrap",
    "bootstrap_rank_intervals",
    "calibration",
    "clustered_mean",
    "cohen_kappa",
    "combine_variances",
    "delta_method",
    "elo_difference",
    "elo_probability",
    "exponential",
    "fit_bradley_terry",
    "fit_win_matrix",
    "groups_from_relation",
    "holm",
    "jackknife",
    "krippendorff_alpha",
    "mcnemar_exact",
    "mcnemar_mid_p",
    "mean",
    "mean_from_moments",
    "mean_of",
    "merge_moments",
    "paired_difference",
    "proportion",
    "rank_intervals",
    "ratio",
    "ratio_from_moments",
    "reliability_bins",
    "repeated",
    "roc_auc",
    "scaled",
    "score_mean",
    "sign_flip_test",
    "significance_groups",
    "smallest_resolvable_difference",
    "wilson",
    "win_rate",
    "win_rate_from_counts",
]

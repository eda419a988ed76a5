"""Unintended bias of a classifier towards texts that mention a group (Borkan, Dixon, Sorensen, Thain and Vasserman 2019).

Three areas under the ROC for each group, 1 being best. With the subgroup the texts that mention it, and the background
all others:

- subgroup AUC: toxic against harmless within the subgroup;
- BPSN AUC: background positives against subgroup negatives; low where harmless mentions of the group score like toxic
  text (false alarms);
- BNSP AUC: background negatives against subgroup positives; low where toxic mentions score like harmless text (misses).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from evaluation.statistics import LEVEL, Estimate, auc_estimate
from launch.files import read_json

TERMS_FILE = Path(__file__).parent / "files" / "identity_terms.json"
LEAST = 10  # texts of each class that a group needs


@dataclass(frozen=True)
class SubgroupReport:
    """The three areas of one group, and its numbers of toxic and harmless texts."""

    group: str
    positives: int
    negatives: int
    subgroup: Estimate
    background_positive: Estimate
    """BPSN."""
    background_negative: Estimate
    """BNSP."""


def load_identity_terms(path: str | Path = TERMS_FILE) -> dict[str, list[str]]:
    """group -> words that mention it, in plain and neutral terms."""
    return read_json(Path(path))["groups"]


def mentions(texts: Sequence[str], terms: Sequence[str]) -> np.ndarray:
    """(n,) whether each text has one of the terms as a whole word, in any case."""
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, terms))})(?!\w)", re.IGNORECASE)
    return np.array([pattern.search(text) is not None for text in texts])


def subgroup_reports(
    labels: ArrayLike,
    scores: ArrayLike,
    texts: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    level: float = LEVEL,
) -> list[SubgroupReport]:
    """The report of each group that has LEAST texts of either class, from labels (n,) 1 for toxic and scores (n,)."""
    y, s = np.asarray(labels).astype(int), np.asarray(scores, dtype=float)
    reports = []
    for name, terms in groups.items():
        inside = mentions(texts, terms)
        positives, negatives = int((inside & (y == 1)).sum()), int((inside & (y == 0)).sum())
        if min(positives, negatives) < LEAST:
            continue
        bpsn, bnsp = (~inside & (y == 1)) | (inside & (y == 0)), (~inside & (y == 0)) | (inside & (y == 1))
        areas = [auc_estimate(y[rows], s[rows], level) for rows in (inside, bpsn, bnsp)]
        reports.append(SubgroupReport(name, positives, negatives, *areas))
    return reports


def power_mean(values: ArrayLike, power: float = -5.0) -> float:
    """The generalised mean of the groups' areas, (mean of v^p)^(1/p); at p = -5 near the worst of them (ibid.)."""
    v = np.asarray(values, dtype=float)
    return float(np.mean(v**power) ** (1 / power))

"""The config of `alignkit evaluate reward`, in all its modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evaluation.options import BATCH_TOKENS, Ties
from launch.config import artefact, operational
from launch.ranges import NotNegative, Positive, PositiveInt
from launch.stage import StageConfig

REQUIRED = {
    "accuracy": ("model", "preferences"),
    "candidates": ("model", "candidates"),
    "win-rate": ("completions", "baseline", "judge"),
    "best-of-n": ("completions", "judge"),
}
OPTIONAL = {
    "accuracy": ("ensemble",),
    "win-rate": ("proxy", "policy"),
    "best-of-n": ("proxy",),
}


@dataclass(kw_only=True)
class RewardEvaluationConfig(StageConfig):
    """A reward model on pairs or on several answers; a policy against a baseline before a judge; best-of-n sampling."""

    mode: Literal["accuracy", "candidates", "win-rate", "best-of-n"] = "accuracy"
    """accuracy: `model` on `preferences`; candidates: `model` on prompts with several answers (RewardBench 2);
    win-rate: `completions` against `baseline` before `judge`; best-of-n: what choosing the best of n samples gains."""
    name: str = ""
    """Name of the subject in reports; the folder's name unless given."""
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    """Arithmetic of matrix products: bf16 is faster on most machines, and makes ties of close rewards."""
    batch_tokens: PositiveInt = operational(BATCH_TOKENS)
    """Tokens in one batch, padding included; it changes results by rounding alone."""

    model: str = artefact("")
    """Modes accuracy and candidates: the reward model under test, a folder or hub:org/name."""
    preferences: str = artefact("")
    """Mode accuracy: held-out preferences, a file, a folder or hub:...; `::eval` picks
    the split that `::train`, and every stage that holds something out, leaves alone."""
    invalid: Literal["error", "drop"] = "error"
    """Mode accuracy: pairs that are faulty (an empty answer, chosen equal to rejected) or longer than the model's
    context: stop and name the first, or leave them out and say how many."""
    ties: Ties = "half"
    """Mode accuracy: a pair with equal rewards counts half, or as wrong (the custom of RewardBench 1)."""
    max_pairs: PositiveInt | None = None
    """Mode accuracy: use only so many pairs, the first by a hash of the prompt."""
    ensemble: list[str] = artefact([])
    """Mode accuracy: further reward models, to see how far they disagree with `model` and each other."""
    candidates: str = artefact("")
    """Mode candidates: prompts with lists `chosen` and `rejected`, a file, a folder or hub:..."""

    completions: str = artefact("")
    """Modes win-rate and best-of-n: completions of the policy, a file or folder of `alignkit generate`; for best-of-n
    with several samples of each prompt."""
    baseline: str = artefact("")
    """Mode win-rate: completions of the baseline on the same prompts."""
    baseline_name: str = ""
    """Mode win-rate: name of the baseline in reports; the folder's name unless given."""
    judge: str = artefact("")
    """Modes win-rate and best-of-n: the reward model that judges; one that the policy was not trained against."""
    proxy: str = artefact("")
    """Mode win-rate: the reward model that the policy was trained against, to see how far the two have parted. Mode
    best-of-n: the reward model that chooses the best; the judge itself unless given."""
    policy: str = artefact("")
    """Mode win-rate: the policy itself; with `reference`, its KL divergence is estimated on the completions."""
    reference: str = artefact("")
    """Mode win-rate: the model that the KL divergence is measured from."""
    kl_budget: Positive | None = None
    """Mode win-rate: largest KL divergence from `reference`, in nats, that a win may cost; the report says when the
    interval of `kl_k1` is not below it."""
    temperature: NotNegative | None = None
    """Mode win-rate: sampling temperature of the completions; read from their provenance unless given."""

    def check(self) -> None:
        """Each mode has its inputs, and none of the other's."""
        for key in REQUIRED[self.mode]:
            if not getattr(self, key):
                raise ValueError(f"{key} is missing: mode {self.mode} needs it; add --{key} PATH")
        own = {*REQUIRED[self.mode], *OPTIONAL.get(self.mode, ())}
        for other in REQUIRED:
            for key in (*REQUIRED[other], *OPTIONAL.get(other, ())):
                if getattr(self, key) and key not in own:
                    raise ValueError(
                        f"{key}: belongs to mode {other}, not {self.mode}; set --mode {other} or leave it out"
                    )
        if bool(self.policy) != bool(self.reference):
            raise ValueError("policy: KL divergence needs both models; give --policy and --reference, or neither")
        if self.kl_budget is not None and not self.policy:
            raise ValueError("kl_budget: KL divergence is measured with both models; add --policy and --reference")

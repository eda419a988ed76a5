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
    "implicit": ("policy", "reference", "preferences"),
    "candidates": ("model", "candidates"),
    "win-rate": ("completions", "baseline", "judge"),
    "best-of-n": ("completions", "judge"),
}
OPTIONAL = {
    "accuracy": ("ensemble",),
    "implicit": ("beta",),
    "win-rate": ("proxy", "policy", "reference", "kl_budget", "temperature"),
    "best-of-n": ("proxy",),
}


@dataclass(kw_only=True)
class RewardEvaluationConfig(StageConfig):
    """A reward model on pairs or on several answers; a policy against a baseline before a judge; best-of-n sampling."""

    mode: Literal["accuracy", "implicit", "candidates", "win-rate", "best-of-n"] = "accuracy"
    """accuracy: `model` on `preferences`; implicit: `policy` against `reference` in its place (DPO); candidates: `model` on prompts with several answers (RewardBench 2);
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
    """Modes accuracy and implicit: held-out preferences, a file, a folder or hub:...; `::eval` picks
    the split that `::train`, and every stage that holds something out, leaves alone."""
    invalid: Literal["error", "drop"] = "error"
    """Modes accuracy and implicit: pairs that are faulty (an empty answer, chosen equal to rejected) or longer than the model's
    context: stop and name the first, or leave them out and say how many."""
    ties: Ties = "half"
    """Modes accuracy and implicit: a pair with equal rewards counts half, or as wrong (the custom of RewardBench 1)."""
    max_pairs: PositiveInt | None = None
    """Modes accuracy and implicit: use only so many pairs, the first by a hash of the prompt."""
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
    """Mode win-rate: the policy itself; with `reference`, its KL divergence is estimated on the completions. Mode
    implicit: the policy whose rewards are measured."""
    reference: str = artefact("")
    """Mode win-rate: the model that the KL divergence is measured from. Mode implicit: the one that the policy was
    trained from."""
    beta: Positive | None = None
    """Mode implicit: rewards are beta (log policy - log reference); that of the policy's training unless given, else 0.1."""
    kl_budget: Positive | None = None
    """Mode win-rate: largest KL divergence from `reference`, in nats, that a win may cost; the report says when the
    interval of `kl_k1` is not below it."""
    temperature: NotNegative | None = None
    """Mode win-rate: sampling temperature of the completions; read from their provenance unless given."""

    def check(self) -> None:
        """Each mode has its inputs, and none of the other's."""
        modes: dict[str, list[str]] = {}
        for mode in REQUIRED:
            for key in (*REQUIRED[mode], *OPTIONAL.get(mode, ())):
                modes.setdefault(key, []).append(mode)
        for key, owners in modes.items():
            if getattr(self, key) not in ("", None, []) and self.mode not in owners:
                belongs = f"mode{'s' if len(owners) > 1 else ''} {' and '.join(owners)}"
                raise ValueError(
                    f"{key}: belongs to {belongs}, not {self.mode}; set --mode {owners[0]} or leave it out"
                )
        for key in REQUIRED[self.mode]:
            if not getattr(self, key):
                raise ValueError(f"{key} is missing: mode {self.mode} needs it; add --{key} PATH")
        if bool(self.policy) != bool(self.reference):
            raise ValueError("policy: KL divergence needs both models; give --policy and --reference, or neither")
        if self.kl_budget is not None and not self.policy:
            raise ValueError("kl_budget: KL divergence is measured with both models; add --policy and --reference")

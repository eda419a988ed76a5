"""The config of the stage `dpo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from alignment.trl_stage.preferences import PreferenceConfig
from launch.config import artefact
from launch.ranges import Positive, Range


@dataclass(kw_only=True)
class DPOConfig(PreferenceConfig):
    """Direct preference optimisation (Rafailov et al. 2023) on the preferences that a reward model is trained on.

    Rows of `data` have `prompt`, `chosen` and `rejected`; ties are left out, since DPO's loss has no place for them.
    """

    reference: str | None = artefact(None)
    """The model that the policy is held to; the start of `model` when not given."""
    learning_rate: Positive = 5e-5
    """Peak learning rate."""
    beta: Positive = 0.1
    """How strongly the policy is held to the reference: the implied reward is beta log(policy / reference)."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """The loss on the implied margin: DPO's, IPO (Azar et al. 2023), SLiC's hinge, or robust DPO (Chowdhury et al. 2024)."""
    label_smoothing: Annotated[float, Range(0, 0.5, below=True)] = 0.0
    """Believed share of flipped labels: conservative DPO with `sigmoid`, the noise rate of `robust`."""

    def check(self) -> None:
        super().check()
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(
                f"label_smoothing: the loss {self.loss} does not use it; leave it out, or use sigmoid or robust"
            )

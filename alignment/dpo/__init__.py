"""The stage `dpo`: direct preference optimisation, the baseline that PPO is compared with. See docs/dpo.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from alignment.trl_stage.preferences import PreferenceConfig
from launch.config import artefact
from launch.ranges import Positive, Range
from launch.stage import Job, Stage


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


def run(config: DPOConfig, job: Job) -> dict[str, Any]:
    """Train, evaluate and save; trl is imported when it is needed."""
    from alignment.dpo.stage import run

    return run(config, job)


STAGE = Stage("dpo", DPOConfig, run)
__all__ = ["STAGE", "DPOConfig"]

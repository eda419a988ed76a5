"""From the scores of a rollout to the rewards of its tokens: normalising, clipping, missing EOS, the KL penalty.

Shapes: B episodes of the global batch, T response tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.ppo import objectives as ppo
from alignment.ppo.config import PPOConfig
from alignment.ppo.controllers import RewardNormaliser
from alignment.ppo.rollout import Rollout
from launch.errors import UserError

LARGEST = 1e15
"""Of a reward or a value. Losses and variances sum squares over a batch: those of larger ones leave float32 (3.4e38)."""

OF_POLICY = "log-probability under the policy"


def shape_rewards(rollout: Rollout, config: PPOConfig, normaliser: RewardNormaliser, kl_coef: float) -> Tensor:
    """The reward of each token, (B, T): the KL penalty everywhere, the score on the last one, token rewards on theirs."""
    scores_B, tokens_BT = shape_scores(rollout, config, normaliser)
    penalty_BT = kl_penalty(rollout, config)
    check_sizes(
        {
            "reward": scores_B,
            "reward of a single token": tokens_BT,
            OF_POLICY: rollout.logprobs_BT,
            "log-probability under the reference": rollout.ref_logprobs_BT,
            "KL penalty of a token": ppo.on_mask(kl_coef * penalty_BT, rollout.mask_BT),
            "value (of the critic)": rollout.values_BT,
        }
    )
    rewards_BT = ppo.token_rewards(scores_B, penalty_BT, rollout.mask_BT, kl_coef)
    if tokens_BT is not None:
        rewards_BT = rewards_BT + tokens_BT
    return ppo.masked_whiten(rewards_BT, rollout.mask_BT, shift_mean=False) if config.whiten_rewards else rewards_BT


def shape_scores(rollout: Rollout, config: PPOConfig, normaliser: RewardNormaliser) -> tuple[Tensor, Tensor | None]:
    """Scores of whole responses and rewards of single tokens after normalising, clipping and the missing-EOS rule.

    All three go by an episode's total: with single tokens paid, too, a part alone has neither a scale nor a bound.
    """
    scores_B, tokens_BT = rollout.scores_B, rollout.token_scores_BT
    assert scores_B is not None
    if config.normalise_scores:
        count_scores(rollout, normaliser)
        scores_B = normaliser.normalise(scores_B, shift_mean=True)
        tokens_BT = None if tokens_BT is None else normaliser.normalise(tokens_BT, shift_mean=False)
    scores_B, tokens_BT = ppo.clip_totals(scores_B, tokens_BT, config.score_clip)
    finished_B, how = rollout.finished_B, config.missing_eos
    tokens_BT = None if tokens_BT is None else ppo.drop_unfinished(tokens_BT, finished_B, how)
    return ppo.apply_missing_eos(scores_B, finished_B, how, config.missing_eos_penalty), tokens_BT


def count_scores(rollout: Rollout, normaliser: RewardNormaliser) -> None:
    """Take the scores of a rollout into the normaliser, once: of a rollout that is given again its present scores count.

    UserError when others were counted in between: what it had added cannot be taken back then.
    """
    check_sizes({"reward": rollout.total_scores_B})  # one absurd reward would be the scale of all later ones
    if rollout.counted is not None:
        before, after = rollout.counted
        if normaliser.state_dict() not in (before, after):
            raise UserError(
                "advantages: normalise_scores has counted this rollout's scores and those of others since; compute its "
                "advantages before the next rollout's, or set its `counted` to None to count it once more"
            )
        normaliser.load_state_dict(before)
    before = normaliser.state_dict()
    normaliser.update(rollout.total_scores_B)
    rollout.counted = before, normaliser.state_dict()


def kl_penalty(rollout: Rollout, config: PPOConfig) -> Tensor:
    """KL of each token as it goes into the rewards, before its weight; 0 when it is in the loss."""
    if config.kl_in == "loss":
        return torch.zeros_like(rollout.mask_BT)
    assert rollout.logprobs_BT is not None and rollout.ref_logprobs_BT is not None
    return ppo.kl_estimate(rollout.logprobs_BT, rollout.ref_logprobs_BT, config.kl_kind)


REMEDIES = {
    "reward": "mend the source of the rewards, or bound them by score_clip",
    "log-probability": "the weights of that model are damaged, or diverged: give a sound model, or start in another folder with a lower "
    "learning_rate",
    "": "start in another folder with a lower learning_rate or a higher kl_coef",
}
"""By how the names of what is at fault begin."""


def check_sizes(parts: dict[str, Tensor | None], phase: str = "advantages") -> None:
    """UserError that names the first of them with a number that is not finite, or beyond `LARGEST`.

    Of a larger one the losses would be infinite, or, once whitened or over the deviation of its group, all others 0.
    """
    for name, values in parts.items():
        if values is None or bool((values.abs() <= LARGEST).all()):
            continue
        worst = values.flatten()[values.abs().nan_to_num(torch.inf, torch.inf).argmax()]
        remedy = next(remedy for start, remedy in REMEDIES.items() if name.startswith(start))
        raise UserError(
            f"{phase}: a {name} is {float(worst):.4g}, and beyond {LARGEST:g} nothing can be learned from a batch; "
            f"{remedy} (no weights were changed)"
        )


def correct_importance(rollout: Rollout, cap: float) -> None:
    """Truncated importance weights, where the responses were not sampled by the policy itself."""
    if rollout.engine_logprobs_BT is not None:
        assert rollout.logprobs_BT is not None
        rollout.importance_BT, measured = ppo.truncated_importance(
            rollout.logprobs_BT, rollout.engine_logprobs_BT, rollout.mask_BT, cap
        )
        rollout.logged |= {name: float(value) for name, value in measured.items()}

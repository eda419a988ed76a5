"""Implicit rewards (Rafailov et al. 2023, DPO): a policy judges answers by how much likelier it finds them than its reference.

r(x, y) = beta (log pi(y | x) - log pi_ref(y | x)), summed over the tokens of y. beta scales the margin and changes no
order; without a reference the reward is the policy's log-probability alone (RewardBench's reference-free mode), or with
`average` its mean per token. Chosen and rejected answer share their prompt, which runs once (evaluation.shared_prefix).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data.encoding import encode_completions, encode_prompts
from data.records import Preference
from evaluation.options import BATCH_TOKENS
from evaluation.scoring import Beat
from evaluation.shared_prefix import score_continuations


def answer_logprobs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Preference],
    batch_tokens: int = BATCH_TOKENS,
    beat: Beat | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probabilities in nats (n, 2), and token counts (n, 2), of the chosen and the rejected answer of each pair.

    Tokenised as training does it (data/encoding.py): prompt and answer apart, the answer with its end token.
    """
    prompts = [p.prompt for p in pairs]
    contexts = encode_prompts(tokenizer, prompts)
    answers = [
        encode_completions(tokenizer, prompts, [getattr(p, side) for p in pairs]) for side in ("chosen", "rejected")
    ]
    scored = score_continuations(model, [*contexts, *contexts], [*answers[0], *answers[1]], batch_tokens, beat)
    logprobs = np.array([float(s.logprobs_T.double().sum()) for s in scored])
    counts = np.array([len(s.logprobs_T) for s in scored])
    return logprobs.reshape(2, -1).T, counts.reshape(2, -1).T


def implicit_rewards(
    policy_N2: NDArray[np.float64],
    reference_N2: NDArray[np.float64] | None,
    counts_N2: NDArray[np.int64],
    beta: float = 1.0,
    average: bool = False,
) -> NDArray[np.float64]:
    """Rewards (n, 2) of the chosen and the rejected answers, from their log-probabilities under both models.

    `average` divides by the number of tokens (as SimPO does), which takes the preference for short answers away.
    """
    if beta <= 0:
        raise ValueError(f"beta: {beta} is not positive")
    ratios = policy_N2 if reference_N2 is None else policy_N2 - reference_N2
    return beta * (ratios / counts_N2 if average else ratios)

"""Log-probabilities and entropies from hidden states, a chunk of tokens at a time.

The logits of a micro-batch, batch x time x vocabulary, are the largest tensors of PPO on a small model: the softmax, its
gradient and their copies each have that size. Here no tensor larger than `LOGITS_PER_CHUNK` logits (or the head's own
weight) is made, forward or backward, and padding is not computed.

Shapes: B sequences, S tokens of a row, T response tokens; N tokens, C tokens of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

LOGITS_PER_CHUNK = 2**22  # 16 MB in fp32


class LogprobHead(nn.Linear):
    """A language model's output head that, given targets, returns log-probabilities and entropies instead of logits.

    `give_logprob_head` makes one of a model's own head: weights, their names and ties stay, and so does what hangs on the
    module. It must be called as a module: under ZeRO-3 that call is what gathers the weight, forward and backward.
    """

    is_linear = True
    """Without targets it is what nn.Linear is: for the generation engine, which reads the weight."""

    def forward(self, hidden: Tensor, targets_N: Tensor | None = None, temperature: float = 1.0) -> Any:
        """Logits of `hidden` (any shape, D) without targets; with them `linear_logprobs` of hidden (N, D)."""
        if targets_N is None:
            return super().forward(hidden)
        return linear_logprobs(hidden, self.weight, self.bias, targets_N, temperature, LOGITS_PER_CHUNK)


def give_logprob_head(model: PreTrainedModel) -> bool:
    """Make the model's output head a `LogprobHead`, in place. False, and nothing is changed, where that would be wrong.

    It is where logits are more than a linear function of the last hidden state: a head of another kind (an adapter, a
    quantised one), or a model that scales or caps them (Gemma, Cohere, Granite, Falcon-H1), which its config shows.
    """
    head = model.get_output_embeddings()
    settings = model.config.get_text_config().to_dict()
    changed = [k for k, v in settings.items() if ("logit" in k or "lm_head" in k) and v not in (None, False, 0, 1)]
    if type(head) not in (nn.Linear, LogprobHead) or changed:
        return False
    head.__class__ = LogprobHead
    return True


def linear_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    temperature: float,
    logits_per_chunk: int,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy, in nats, under softmax((hidden @ weight' + bias) / temperature): (N,) both.

    Differentiable once in hidden, weight and bias, through both results; the entropy's gradient costs nothing when it
    is not asked for. Matrix products run in autocast's type, or else the weight's; all else, and sums over chunks, in
    float32 (float64 for float64).
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    chunks = chunk_slices(len(hidden_ND), weight_VD.shape[0], logits_per_chunk)
    with torch.autocast(device, enabled=False):
        return _LinearLogprobs.apply(hidden_ND, weight_VD, bias_V, targets_N, temperature, chunks, dtype)


def chunk_slices(tokens: int, vocabulary: int, logits_per_chunk: int) -> list[slice]:
    """Slices of `tokens`, of about equal size: each has at most `logits_per_chunk` logits, but at least one token."""
    most = max(1, logits_per_chunk // vocabulary)
    count = -(-tokens // most)
    bounds = [tokens * i // count for i in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


class _LinearLogprobs(torch.autograd.Function):
    """Keeps the log-softmax for the backward pass where it is one chunk, and computes it again where they are several.

    The gradient cannot be made in the forward pass, as fused cross-entropy kernels make it: each token's is scaled by a
    factor (advantage, ratio, clip) that is known only afterwards.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        chunks: list[slice],
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.chunks, ctx.dtype = temperature, chunks, dtype
        logprobs_N, normaliser_N, entropy_N = (hidden_ND.new_empty(len(hidden_ND), dtype=wide(dtype)) for _ in range(3))
        cast_VD, kept_CV = weight_VD.to(dtype), None
        for part in chunks:
            logits_CV = chunk_logits(hidden_ND[part], cast_VD, bias_V, temperature)
            log_p_CV = torch.log_softmax(logits_CV, -1)
            target_C1 = targets_N[part, None]
            logprobs_N[part] = log_p_CV.gather(-1, target_C1)[:, 0]
            normaliser_N[part] = logits_CV.gather(-1, target_C1)[:, 0] - logprobs_N[part]
            entropy_N[part] = -torch.exp(log_p_CV, out=logits_CV).mul_(log_p_CV).sum(-1)
            kept_CV = log_p_CV if len(chunks) == 1 else None
            del logits_CV, log_p_CV  # else they live on while the next chunk's are made
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N, kept_CV)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_N: Tensor | None, entropy_slope_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N, kept_CV = ctx.saved_tensors
        inputs = zip((hidden_ND, weight_VD, bias_V), ctx.needs_input_grad[:3], strict=True)
        grads = [torch.zeros_like(x, dtype=wide(ctx.dtype)) if needed else None for x, needed in inputs]
        cast_VD = weight_VD.to(ctx.dtype)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for part in ctx.chunks:
                log_p_CV = kept_CV
                if log_p_CV is None:
                    log_p_CV = chunk_logits(hidden_ND[part], cast_VD, bias_V, ctx.temperature)
                    log_p_CV -= normaliser_N[part, None]
                slopes = (None if x is None else x[part] / ctx.temperature for x in (slope_N, entropy_slope_N))
                slope_CV = logit_slopes(log_p_CV, targets_N[part], entropy_N[part], *slopes)
                add_head_gradients(grads, part, slope_CV, hidden_ND, cast_VD)
                del log_p_CV, slope_CV
        typed = (g if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden_ND, weight_VD, bias_V), strict=True))
        return *typed, None, None, None, None


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and of softmax for products in `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def chunk_logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature: float) -> Tensor:
    """Logits over the temperature, (C, V), from a product in the weight's type: a new tensor in float32 or float64."""
    logits_CV = (hidden_CD.to(weight_VD.dtype) @ weight_VD.t()).to(wide(weight_VD.dtype))
    if bias_V is not None:
        logits_CV += bias_V
    return logits_CV if temperature == 1 else logits_CV.div_(temperature)


def logit_slopes(
    log_p_CV: Tensor, targets_C: Tensor, entropy_C: Tensor, slope_C: Tensor | None, entropy_slope_C: Tensor | None
) -> Tensor:
    """Gradient in the logits, (C, V), given those in log-probability and entropy (None where there is none).

    d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy).
    """
    slope_CV = log_p_CV.exp()
    factor: Tensor = 0 if slope_C is None else -slope_C[:, None]  # type: ignore[assignment]
    if entropy_slope_C is not None:
        factor = factor - entropy_slope_C[:, None] * (log_p_CV + entropy_C[:, None])
    slope_CV *= factor
    if slope_C is not None:
        slope_CV.scatter_add_(-1, targets_C[:, None], slope_C[:, None])
    return slope_CV


def add_head_gradients(
    grads: list[Tensor | None], part: slice, slope_CV: Tensor, hidden_ND: Tensor, weight_VD: Tensor
) -> None:
    """Add what a chunk's logit gradients give to those of hidden (N, D), weight (V, D) and bias (V,), where not None."""
    grad_ND, grad_VD, grad_V = grads
    narrow_CV = slope_CV.to(weight_VD.dtype)
    if grad_ND is not None:
        grad_ND[part] = narrow_CV @ weight_VD
    if grad_VD is not None:
        hidden_CD = hidden_ND[part].to(weight_VD.dtype)
        if narrow_CV.dtype == grad_VD.dtype:
            grad_VD.addmm_(narrow_CV.t(), hidden_CD)
        else:  # a sum over chunks in bf16 would lose what is small
            grad_VD += narrow_CV.t() @ hidden_CD
    if grad_V is not None:
        grad_V += slope_CV.sum(0)

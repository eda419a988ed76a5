"""Log-probabilities and entropies from hidden states, a block of the vocabulary at a time.

The logits of a micro-batch, batch x time x vocabulary, are the largest tensors of PPO on a small model: the softmax, its
gradient and their copies each have that size. Here no tensor larger than `LOGITS_PER_BLOCK` logits (or the head's own
weight) is made, forward or backward, and padding is not computed. The softmax is put together from blocks by their running
maximum and sums (Milakov and Gimelshein 2018, arXiv 1805.02867). Cut along the vocabulary and not along the tokens, since a
block's part of the weight's gradient is then written once for `TOKENS_PER_CHUNK` tokens, not the whole of it added to by each
small chunk.

Shapes: B sequences, S tokens of a row, T response tokens; N tokens, C tokens of a chunk, D width, V vocabulary, v a block of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from alignment.scratch import Scratch
from evaluation.batches import equal_slices
from evaluation.trunk import fill_by, product_dtype
from launch.native import ops as native

LOGITS_PER_BLOCK = {"cpu": 2**21, "gpu": 2**24}
"""Logits that are held at once: 8 MB in fp32, so that a dozen passes over them stay in a CPU's caches. On a GPU a dozen launches
for each block would take longer than 8 MB do."""
TOKENS_PER_CHUNK = 2048


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
        return linear_logprobs(hidden, self.weight, self.bias, targets_N, temperature, logits_per_block(hidden.device))


def give_logprob_head(model: PreTrainedModel) -> bool:
    """Make the model's output head a `LogprobHead`, in place. False, and nothing is changed, where that would be wrong.

    It is where logits are more than a linear function of the last hidden state: a head of another kind (an adapter, a
    quantised one), a model that scales or caps them (Gemma, Cohere, Granite, Falcon-H1), which its config shows, or one with
    layers between (decoders made of BERT and its like), whose weights are neither the base model's nor the head's.
    """
    head = model.get_output_embeddings()
    if type(head) is LogprobHead:
        return True
    settings = model.config.get_text_config().to_dict()
    changed = [k for k, v in settings.items() if ("logit" in k or "lm_head" in k) and v not in (None, False, 0, 1)]
    if type(head) is not nn.Linear or changed:
        return False
    known = {id(parameter) for module in (model.base_model, head) for parameter in module.parameters()}
    if any(id(parameter) not in known for parameter in model.parameters()):
        return False
    head.__class__ = LogprobHead
    return True


def linear_logprobs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    temperature: float,
    logits_per_block: int,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy, in nats, under softmax((hidden @ weight' + bias) / temperature): (N,) both.

    Differentiable once in hidden, weight and bias, through both results; the entropy's gradient costs nothing when it
    is not asked for. Matrix products run in autocast's type, or else the weight's; all else, and sums over blocks, in
    float32 (float64 for float64). ValueError for a weight without rows, as ZeRO-3 leaves it outside of its module's
    call; IndexError for a target that is no token (on a GPU NaN, where there are several blocks).
    """
    if not len(weight_VD):
        raise ValueError("the head's weight has no rows: call the head as a module, which gathers it")
    # not on a GPU, which would be waited for
    if targets_N.device.type == "cpu" and ((targets_N < 0) | (targets_N >= len(weight_VD))).any():
        raise IndexError(f"targets_N: out of bounds for {len(weight_VD)} tokens")
    device = hidden_ND.device.type
    dtype = product_dtype(weight_VD)
    count = len(hidden_ND)
    filler = -count % fill_by(dtype) if device == "cpu" else 0
    hidden_ND, targets_N = F.pad(hidden_ND, (0, 0, 0, filler)), F.pad(targets_N, (0, filler))
    cuts = cut_logits(len(hidden_ND), weight_VD.shape[0], logits_per_block)
    with torch.autocast(device, enabled=False):
        known = dtype in native.SUFFIX and targets_N.dtype == torch.long
        if bias_V is None and known and native.takes(hidden_ND, weight_VD):
            logprobs_N, entropy_N = _NativeLinearLogprobs.apply(
                hidden_ND, weight_VD, targets_N, temperature, cuts, dtype
            )
        else:
            logprobs_N, entropy_N = _LinearLogprobs.apply(
                hidden_ND, weight_VD, bias_V, targets_N, temperature, cuts, dtype
            )
    return logprobs_N[:count], entropy_N[:count]


def logits_per_block(device: torch.device) -> int:
    """LOGITS_PER_BLOCK of a device."""
    return LOGITS_PER_BLOCK["cpu" if device.type == "cpu" else "gpu"]


Cuts = list[tuple[slice, list[slice]]]
"""Chunks of the tokens, and for each the blocks of the vocabulary."""


def cut_logits(tokens: int, vocabulary: int, logits_per_block: int) -> Cuts:
    """Chunks of `TOKENS_PER_CHUNK` tokens (fewer where a single column of logits is over the budget), and their blocks."""
    chunks = equal_slices(tokens, min(TOKENS_PER_CHUNK, logits_per_block))
    return [(rows, equal_slices(vocabulary, logits_per_block // (rows.stop - rows.start))) for rows in chunks]


class _LinearLogprobs(torch.autograd.Function):
    """Keeps the log-softmax for the backward pass where it is one block, and computes it again where they are several.

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
        cuts: Cuts,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.cuts, ctx.dtype, kept_CV = temperature, cuts, dtype, None
        logprobs_N, normaliser_N, entropy_N = (hidden_ND.new_empty(len(hidden_ND), dtype=wide(dtype)) for _ in range(3))
        scratch = Scratch(hidden_ND.device)
        for rows, blocks in cuts:
            hidden_CD, targets_C = hidden_ND[rows].to(dtype), targets_N[rows]
            if len(cuts) == len(blocks) == 1:
                logits_CV = block_logits(hidden_CD, weight_VD.to(dtype), bias_V, temperature, scratch)
                *results, kept_CV = softmax_at_once(logits_CV, targets_C)
            else:
                softmax = RunningSoftmax(targets_C, wide(dtype), scratch)
                for block in blocks:
                    part_V = None if bias_V is None else bias_V[block]
                    weight_vD = weight_VD[block].to(dtype)
                    softmax.add(block_logits(hidden_CD, weight_vD, part_V, temperature, scratch), block)
                results = list(softmax.results())
            logprobs_N[rows], normaliser_N[rows], entropy_N[rows] = results
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N, kept_CV)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_N: Tensor | None, entropy_slope_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, normaliser_N, entropy_N, kept_CV = ctx.saved_tensors
        inputs = zip((hidden_ND, weight_VD, bias_V), ctx.needs_input_grad[:3], strict=True)
        new = torch.empty_like if ctx.cuts else torch.zeros_like  # without tokens nothing is written
        grads = [new(x, dtype=wide(ctx.dtype)) if needed else None for x, needed in inputs]
        scratch = Scratch(hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for rows, blocks in ctx.cuts:
                hidden_CD = hidden_ND[rows].to(ctx.dtype)
                slope_C, entropy_slope_C = (
                    None if x is None else x[rows] / ctx.temperature for x in (slope_N, entropy_slope_N)
                )
                for block in blocks:
                    log_p_Cv, weight_vD = kept_CV, weight_VD[block].to(ctx.dtype)
                    if log_p_Cv is None:
                        part_V = None if bias_V is None else bias_V[block]
                        log_p_Cv = block_logits(hidden_CD, weight_vD, part_V, ctx.temperature, scratch)
                        log_p_Cv -= normaliser_N[rows, None]
                    slope_Cv = logit_slopes(
                        log_p_Cv, targets_N[rows], block, entropy_N[rows], slope_C, entropy_slope_C, scratch
                    )
                    add_head_gradients(grads, rows, block, slope_Cv, hidden_CD, weight_vD, scratch)
        typed = (g if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden_ND, weight_VD, bias_V), strict=True))
        return *typed, None, None, None, None


class _NativeLinearLogprobs(torch.autograd.Function):
    """`_LinearLogprobs` by the kernels: a block's logits are never written, but for the products that they are made of."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        temperature: float,
        cuts: Cuts,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.cuts, ctx.dtype, products_Cv = temperature, cuts, dtype, None
        logprobs_N, normaliser_N, entropy_N = (
            hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32) for _ in range(3)
        )
        scratch = Scratch(hidden_ND.device)
        for rows, blocks in cuts:
            hidden_CD, softmax = hidden_ND[rows].to(dtype), RunningSoftmax(targets_N[rows], torch.float32, scratch)
            for block in blocks:
                products_Cv = block_products(hidden_CD, weight_VD[block].to(dtype), scratch)
                softmax.add_products(products_Cv, 1 / temperature, block)
            logprobs_N[rows], normaliser_N[rows], entropy_N[rows] = softmax.results()
        kept_CV = products_Cv if len(cuts) == 1 and len(cuts[0][1]) == 1 else None
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, normaliser_N, entropy_N, kept_CV)
        return logprobs_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_N: Tensor | None, entropy_slope_N: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, targets_N, normaliser_N, entropy_N, kept_CV = ctx.saved_tensors
        needed = zip((hidden_ND, weight_VD), ctx.needs_input_grad[:2], strict=True)
        new = torch.empty_like if ctx.cuts else torch.zeros_like  # without tokens nothing is written
        grads = [new(x, dtype=torch.float32) if wanted else None for x, wanted in needed] + [None]
        scratch = Scratch(hidden_ND.device)
        for rows, blocks in ctx.cuts:
            hidden_CD = hidden_ND[rows].to(ctx.dtype)
            slopes = [None if x is None else x[rows] / ctx.temperature for x in (slope_N, entropy_slope_N)]
            for block in blocks:
                weight_vD = weight_VD[block].to(ctx.dtype)
                if kept_CV is None:
                    products_Cv = out_Cv = block_products(hidden_CD, weight_vD, scratch)
                else:
                    products_Cv, out_Cv = kept_CV, scratch.take("slope", kept_CV.shape, kept_CV.dtype)
                softmax = (targets_N[rows], block.start, normaliser_N[rows], entropy_N[rows])
                native.block_slopes(products_Cv, out_Cv, 1 / ctx.temperature, *softmax, *slopes)
                add_head_gradients(grads, rows, block, out_Cv, hidden_CD, weight_vD, scratch)
        typed = (g if g is None else g.to(x.dtype) for g, x in zip(grads, (hidden_ND, weight_VD), strict=False))
        return *typed, None, None, None, None


def softmax_at_once(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `RunningSoftmax.results` gives, of logits in one block, which are spoilt; and the log-softmax."""
    log_p_CV, target_C1 = torch.log_softmax(logits_CV, -1), targets_C[:, None]
    logprobs_C = log_p_CV.gather(-1, target_C1)[:, 0]
    normaliser_C = logits_CV.gather(-1, target_C1)[:, 0] - logprobs_C
    entropy_C = -torch.exp(log_p_CV, out=logits_CV).mul_(log_p_CV).sum(-1)
    return logprobs_C, normaliser_C, entropy_C, log_p_CV


class RunningSoftmax:
    """Of C rows of logits that come a block at a time: the largest so far, and relative to it sums of exp(l) and exp(l) l."""

    def __init__(self, targets_C: Tensor, dtype: torch.dtype, scratch: Scratch) -> None:
        self.targets_C, self.scratch = targets_C, scratch
        self.target_C, self.sum_C, self.weighted_C = (
            torch.zeros(len(targets_C), dtype=dtype, device=targets_C.device) for _ in range(3)
        )
        self.target_C.fill_(torch.nan)  # stays where the target is no token
        self.most_C = torch.full_like(self.sum_C, torch.finfo(dtype).min)

    def add(self, logits_Cv: Tensor, block: slice) -> None:
        """Take in the logits of a block, which are spoilt."""
        place_C1, inside_C = place_in(block, self.targets_C)
        self.target_C = torch.where(inside_C, logits_Cv.gather(-1, place_C1)[:, 0], self.target_C)
        most_C = torch.maximum(self.most_C, logits_Cv.amax(-1))
        drop_C = self.most_C - most_C
        self.weighted_C += drop_C * self.sum_C
        shrink_C = drop_C.exp_()
        gaps_Cv = logits_Cv.sub_(most_C[:, None])
        p_Cv = torch.exp(gaps_Cv, out=self.scratch.take("p", gaps_Cv.shape, gaps_Cv.dtype))
        self.sum_C = self.sum_C * shrink_C + p_Cv.sum(-1)
        self.weighted_C = self.weighted_C * shrink_C + p_Cv.mul_(gaps_Cv).sum(-1)
        self.most_C = most_C

    def add_products(self, products_Cv: Tensor, scale: float, block: slice) -> None:
        """Take in a block of the logits scale * products, by a kernel."""
        running = (self.target_C, self.most_C, self.sum_C, self.weighted_C)
        native.add_block(products_Cv, scale, self.targets_C, block.start, *running)

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability of the targets, log of the sum of exp(logits), entropy: (C,) each."""
        log_sum_C = self.sum_C.log()
        logprobs_C = self.target_C - self.most_C - log_sum_C
        return logprobs_C, self.most_C + log_sum_C, log_sum_C - self.weighted_C / self.sum_C


def place_in(block: slice, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """The targets' columns in a block of the vocabulary (C, 1), anything for those that are not in it; and which are (C,)."""
    inside_C = (targets_C >= block.start) & (targets_C < block.stop)
    return (targets_C - block.start).clamp_(0, block.stop - block.start - 1)[:, None], inside_C


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type of sums and of softmax for products in `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def block_logits(
    hidden_CD: Tensor, weight_vD: Tensor, bias_v: Tensor | None, temperature: float, scratch: Scratch
) -> Tensor:
    """Logits of a block over the temperature, (C, v), in float32 or float64, from a product in the inputs' type.

    They are in `scratch`: the next call overwrites them.
    """
    rounded = hidden_CD.dtype != wide(hidden_CD.dtype)  # the logit itself is, and it is divided afterwards
    product_Cv = block_products(hidden_CD, weight_vD, scratch, 1 if rounded else 1 / temperature)
    logits_Cv = in_type(product_Cv, wide(hidden_CD.dtype), "logits", scratch)
    if rounded and temperature != 1:
        logits_Cv /= temperature
    return logits_Cv if bias_v is None else logits_Cv.add_(bias_v, alpha=1 / temperature)


def block_products(hidden_CD: Tensor, weight_vD: Tensor, scratch: Scratch, factor: float = 1) -> Tensor:
    """factor * hidden @ weight', (C, v) in the inputs' type, in `scratch`."""
    product_Cv = scratch.take("product", (len(hidden_CD), len(weight_vD)), hidden_CD.dtype)
    return torch.addmm(product_Cv, hidden_CD, weight_vD.t(), beta=0, alpha=factor, out=product_Cv)


def in_type(x: Tensor, dtype: torch.dtype, name: str, scratch: Scratch) -> Tensor:
    """The tensor itself, or in another type in `scratch`."""
    return x if x.dtype == dtype else scratch.take(name, x.shape, dtype).copy_(x)


def logit_slopes(
    log_p_Cv: Tensor,
    targets_C: Tensor,
    block: slice,
    entropy_C: Tensor,
    slope_C: Tensor | None,
    entropy_slope_C: Tensor | None,
    scratch: Scratch,
) -> Tensor:
    """Gradient in a block's logits, (C, v) in `scratch`, given those in log-probability and entropy (None where there is none).

    d logprob / d logits = onehot - p;  d entropy / d logits = -p (log p + entropy).
    """
    slope_Cv = torch.exp(log_p_Cv, out=scratch.take("slope", log_p_Cv.shape, log_p_Cv.dtype))
    factor: Tensor = 0 if slope_C is None else -slope_C[:, None]  # type: ignore[assignment]
    if entropy_slope_C is not None:
        factor = factor - entropy_slope_C[:, None] * (log_p_Cv + entropy_C[:, None])
    slope_Cv *= factor
    if slope_C is not None:
        place_C1, inside_C = place_in(block, targets_C)
        slope_Cv.scatter_add_(-1, place_C1, (slope_C * inside_C)[:, None])
    return slope_Cv


def add_head_gradients(
    grads: list[Tensor | None],
    rows: slice,
    block: slice,
    slope_Cv: Tensor,
    hidden_CD: Tensor,
    weight_vD: Tensor,
    scratch: Scratch,
) -> None:
    """Add what a block's logit gradients give to those of hidden (N, D), weight (V, D) and bias (V,), where not None.

    What is not yet there is overwritten: gradients of hidden in the first block, the others in the first rows.
    """
    grad_ND, grad_VD, grad_V = grads
    narrow_Cv = in_type(slope_Cv, hidden_CD.dtype, "narrow", scratch)
    if grad_ND is not None:
        add_product(grad_ND[rows], narrow_Cv, weight_vD, first=block.start == 0)
    if grad_VD is not None:
        add_product(grad_VD[block], narrow_Cv.t(), hidden_CD, first=rows.start == 0)
    if grad_V is not None:
        grad_V[block] = slope_Cv.sum(0) + (0 if rows.start == 0 else grad_V[block])


def add_product(total: Tensor, left: Tensor, right: Tensor, first: bool) -> None:
    """total += left @ right, or total = .. the `first` time.

    The sum is in float32 whatever the product's type: bf16 would lose what is small.
    """
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, beta=0 if first else 1, out=total)
    elif first:
        total.copy_(left @ right)
    else:
        total += left @ right

"""The size dial: from `depth` follow width, heads, token budget, batch and learning rates, each by a cited formula.

The exponents are the papers'. The constants are our own, measured at the reference point below (a model of depth 4 and
width 128 on 1.54M characters of tinyshakespeare; docs/pretrain.md has the sweep), where every formula is exact.

Legend: L layers, d width, F width of the MLP, V vocabulary, T context, N parameters in matrix products, D training
tokens, B tokens in a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ASPECT = 64  # width per layer: Kaplan et al. 2020 (arXiv 2001.08361, figure 5) find 30..200 within 1 % of the best
HEAD_DIM = 64
TOKENS_PER_PARAMETER = 20.0  # Hoffmann et al. 2022 (arXiv 2203.15556, table 3)
BATCH_EXPONENT = 0.383  # Bergsma et al. 2025, "Power Lines" (arXiv 2505.13738): the best B grows as D^0.383

REFERENCE_WIDTH = 128
REFERENCE_TOKENS = 1.54e6
REFERENCE_BATCH = 768
REFERENCE_ADAMW_LR = 4e-3  # embeddings, head and norms beside Muon
REFERENCE_MATRIX_ADAMW_LR = 3e-3  # hidden matrices when AdamW has to do; not swept here, unlike the others
REFERENCE_MUON_LR = 0.02


@dataclass(frozen=True)
class Shape:
    """What the parameter count and the arithmetic depend on."""

    layers: int
    width: int
    heads: int
    mlp_width: int
    vocab_size: int
    context: int
    tied: bool = False

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the hidden matrices: attention (q, k, v, o) and SwiGLU (gate, up, down)."""
        return self.layers * (4 * self.width**2 + 3 * self.width * self.mlp_width)

    @property
    def product_parameters(self) -> int:
        """N: the parameters that a token is multiplied with, hidden matrices and head (the embedding is a look-up)."""
        return self.matrix_parameters + self.vocab_size * self.width


def model_width(depth: int) -> int:
    """d = 64 L, so that the number of heads is a whole one at every depth."""
    return ASPECT * depth


def mlp_width(width: int) -> int:
    """F = 8/3 d, rounded up to a multiple of 8: SwiGLU with the parameters of a 4 d MLP (Shazeer 2020, arXiv 2002.05202)."""
    return 8 * math.ceil(width / 3)


def head_count(width: int) -> int:
    """Heads of 64, or one head for narrower models."""
    return max(1, width // HEAD_DIM)


def token_budget(product_parameters: int) -> int:
    """D = 20 N tokens (Hoffmann et al. 2022)."""
    return round(TOKENS_PER_PARAMETER * product_parameters)


def batch_tokens(tokens: float) -> float:
    """B = B_ref (D / D_ref)^0.383 tokens (Bergsma et al. 2025)."""
    return REFERENCE_BATCH * (tokens / REFERENCE_TOKENS) ** BATCH_EXPONENT


def adamw_lr(reference: float, width: int, batch: float) -> float:
    """lr = lr_ref sqrt(B / B_ref) sqrt(d_ref / d).

    The square root of the batch: Malladi et al. 2022 (arXiv 2205.10287). The width: vectors and embeddings want less
    as the model grows; the exponent -0.5 lies between the 0 and -1 of Yang et al. 2022 (arXiv 2203.03466) for the two.
    """
    return reference * math.sqrt(batch / REFERENCE_BATCH) * math.sqrt(REFERENCE_WIDTH / width)


def muon_lr(batch: float) -> float:
    """lr = lr_ref sqrt(B / B_ref); the width drops out, since Muon's update has a spectral norm of its own
    (Bernstein 2025, "Deriving Muon")."""
    return REFERENCE_MUON_LR * math.sqrt(batch / REFERENCE_BATCH)


def flops_per_token(shape: Shape) -> float:
    """Training FLOPs of a token, forward and backward: 6 N + 12 L d T (Chowdhery et al. 2022, PaLM, appendix B)."""
    return 6.0 * shape.product_parameters + 12.0 * shape.layers * shape.width * shape.context

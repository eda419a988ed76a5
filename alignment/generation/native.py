"""Decoding on a CPU by kernels of our own: a layer is four matrix products and four passes over what lies between them.

Shapes as in network.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.generation.decoder import Decoder
from alignment.generation.network import Cache, make_cache
from alignment.generation.weights import Weights
from launch.native import ops as native


def decodes_natively(weights: Weights) -> bool:
    """Whether the kernels know these weights."""
    norms = [
        weights.norm,
        *(n for w in weights.layers for n in (w.norm, w.mlp_norm, w.q_norm, w.k_norm) if n is not None),
    ]
    products = [weights.head, *(m for w in weights.layers for m in (w.qkv, w.out, w.gate_up, w.down))]
    alike = {matrix.dtype for matrix in products} == {weights.head.dtype}
    return alike and all(norm.dtype == torch.float32 for norm in norms) and native.takes(weights.head, *norms)


class NativeDecoder(Decoder):
    """A `Decoder` whose steps go through the kernels; prompts are read as there. Its cache has a token's keys adjacent."""

    def _make_cache(self, width: int) -> Cache:
        return make_cache(self.weights, self.rows, width, by_token=True)

    def step(self, tokens_N: Tensor) -> Tensor:
        weights, x_EN, delta_EN = self.weights, self.embed(tokens_N), None
        positions_N = self.column - self.starts_N
        rotation = self.cos[:, positions_N], self.sin[:, positions_N]
        for number, w in enumerate(weights.layers):
            qkv_XN = self._project("qkv", w.qkv, self._add_normalise(x_EN, delta_EN, w.norm), w.qkv_bias)
            mixed_XN = self._take("mixed", (weights.heads * weights.head_dim, self.rows))
            cache = self.keys[number], self.values[number]
            norms, place = (w.q_norm, w.k_norm), (self.starts_N, self.column)
            native.attend_step(qkv_XN, norms, weights.eps, rotation, weights.scale, cache, *place, mixed_XN)
            delta_EN = self._project("delta", w.out, mixed_XN, w.out_bias)
            gate_up = self._project(
                "gate_up", w.gate_up, self._add_normalise(x_EN, delta_EN, w.mlp_norm), w.gate_up_bias
            )
            delta_EN = self._project("delta", w.down, native.gate(*gate_up.chunk(2)), w.down_bias)
        self.column += 1
        return self._project("logits", weights.head, self._add_normalise(x_EN, delta_EN, weights.norm), None)

    def _add_normalise(self, x_EN: Tensor, delta_EN: Tensor | None, weight_E1: Tensor) -> Tensor:
        return native.add_norm_columns(x_EN, delta_EN, weight_E1, self.weights.eps, self._take("normal", x_EN.shape))

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.scratch.take(name, shape, self.weights.head.dtype)

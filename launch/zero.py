"""Models under ZeRO-3: those that no engine runs are kept whole, and partitioned ones are counted as if they were."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def plain_weights() -> Iterator[None]:
    """Inside, `from_pretrained` makes whole models also under ZeRO-3, which partitions what it loads otherwise.

    A model that is only read needs this: no engine gathers its weights before a forward pass.
    """
    from transformers.integrations import deepspeed as integration

    active = integration._hf_deepspeed_config_weak_ref
    integration._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = active


def count_weights(module: nn.Module) -> int:
    """Numbers in the parameters of a module, also where ZeRO-3 has left this rank a part of each."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for p in module.parameters())

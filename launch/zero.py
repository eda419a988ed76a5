"""What transformers does by itself under ZeRO-3, kept from models that no engine runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


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

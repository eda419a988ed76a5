"""Features of texts: a language model's last hidden state at each text's last token, as MAUVE uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from evaluation.batches import plan_batches
from evaluation.options import BATCH_TOKENS
from evaluation.scoring import check_finite, context_of, inference, right_pad
from launch.errors import UserError


def last_hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_tokens: int = BATCH_TOKENS
) -> NDArray[np.float64]:
    """Features (n, D) of texts; of one longer than the context, of its beginning. UserError for a text without tokens."""
    limit = context_of(model)
    ids = [tokenizer(text, verbose=False)["input_ids"][:limit] for text in texts]
    if empty := next((number for number, i in enumerate(ids, 1) if not i), None):
        raise UserError(f"text {empty} has no tokens, and so no features; leave blank texts out")
    body: Any = model.base_model
    features: list[Any] = [None] * len(ids)
    with inference(model) as device:
        for batch in plan_batches([len(i) for i in ids], batch_tokens):
            hidden_BSD = body(**right_pad([ids[n] for n in batch], 0, device), use_cache=False).last_hidden_state
            last_B = torch.tensor([len(ids[n]) - 1 for n in batch], device=device)
            last_BD = hidden_BSD[torch.arange(len(batch), device=device), last_B].double().cpu()
            check_finite(model, last_BD, batch)
            for n, row_D in zip(batch, last_BD, strict=True):
                features[n] = row_D.numpy()
    return np.stack(features)

"""Models and tokenizers from a folder or the hub, the same for training, sampling and evaluation; mistakes are named.

`field` is the config field that a message begins with, `source` a folder or hub:org/name. Code of the hub never runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evaluation.scoring import check_reward_model
from launch.errors import UserError


def read_tokenizer(field: str, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or hub name, as it is."""
    with named_errors(field, source, "a tokenizer"):
        return AutoTokenizer.from_pretrained(_bare(source), trust_remote_code=False)


def read_causal(field: str, source: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model in float32 (master weights; bf16 is autocast) that has an embedding for every token."""
    with named_errors(field, source, "a causal language model"):
        model = AutoModelForCausalLM.from_pretrained(_bare(source), dtype=torch.float32, trust_remote_code=False)
    check_embeddings(field, source, model, tokenizer)
    return model


def read_classifier(
    field: str, source: str, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A trained sequence classifier with one label, float32 unless given, with an embedding for every token.

    Without a tokenizer the embeddings are not looked at. UserError also when the folder holds no head: transformers
    would then make one at random.
    """
    with named_errors(field, source, "a reward model"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            _bare(source), dtype=dtype or torch.float32, trust_remote_code=False, output_loading_info=True
        )
    if info["missing_keys"]:
        raise UserError(
            f"{field}: {source}: the weights lack {min(info['missing_keys'])}, so this is no trained reward model; "
            "train one with `alignkit reward`"
        )
    check_reward_model(model)
    if tokenizer is not None:
        check_embeddings(field, source, model, tokenizer)
    return model


def check_embeddings(field: str, source: str, model: Any, tokenizer: Any) -> None:
    """UserError when the tokenizer makes ids for which the model has no embedding."""
    size = model.config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise UserError(
            f"{field}: {source}: the tokenizer has {len(tokenizer)} tokens, the model {size}; "
            "use the tokenizer that belongs to the model"
        )


@contextlib.contextmanager
def named_errors(field: str, source: str, what: str) -> Iterator[None]:
    """Say what could not be loaded: transformers raises OSError, ValueError, KeyError and others, mostly cryptic."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(". ") or type(error).__name__
        raise UserError(
            f"{field}: {source}: could not be loaded as {what} ({reason}); give a folder made by an alignkit stage or "
            "by save_pretrained, or hub:org/name"
        ) from None


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


def _bare(source: str) -> str:
    return str(source).removeprefix("hub:")

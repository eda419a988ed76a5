"""Models and tokenizers from a folder or the hub, the same for training, sampling and evaluation; mistakes are named.

`field` is the config field that a message begins with, `source` a folder or hub:org/name. Code of the hub never runs.
An adapter's folder gives its base with the adapter merged in, so that nothing else has to know of adapters.
"""

from __future__ import annotations

import contextlib
import logging
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

from evaluation.adapters import HEAD, is_adapter, merge, read_adapter
from evaluation.scoring import check_reward_model
from launch.errors import UserError


def read_tokenizer(field: str, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or hub name, as it is."""
    with named_errors(field, source, "a tokenizer"):
        return AutoTokenizer.from_pretrained(_bare(source), trust_remote_code=False)


def read_causal(field: str, source: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model in float32 (master weights; bf16 is autocast) that has an embedding for every token."""
    with named_errors(field, source, "a causal language model"):
        model, _ = load_merged(field, source, AutoModelForCausalLM, dtype=torch.float32)
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
        model, missing = load_merged(field, source, AutoModelForSequenceClassification, dtype=dtype or torch.float32)
    if missing:
        raise UserError(
            f"{field}: {source}: the weights lack {min(missing)}, so this is no trained reward model; "
            "train one with `alignkit reward`"
        )
    check_reward_model(model)
    if tokenizer is not None:
        check_embeddings(field, source, model, tokenizer)
        if model.config.get_text_config().pad_token_id is None and is_adapter(source):  # an adapter has no config
            model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return model


def load_merged(field: str, source: str, auto: Any, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """`auto.from_pretrained`, of an adapter its base with the adapter merged in; and the names of weights that are missing.

    A base that is merged into is whole on every rank, also under ZeRO-3.
    """
    if not is_adapter(source):
        model, info = auto.from_pretrained(_bare(source), trust_remote_code=False, output_loading_info=True, **options)
        return model, set(info["missing_keys"])
    adapter = read_adapter(field, source)
    if adapter.head_LD is not None:
        options = {"num_labels": len(adapter.head_LD), **options}
    with plain_weights(), quiet_report():
        model, info = auto.from_pretrained(
            _bare(adapter.base), trust_remote_code=False, output_loading_info=True, **options
        )
    merge(field, model, adapter)
    return model, set(info["missing_keys"]) - ({HEAD} if adapter.head_LD is not None else set())


@contextlib.contextmanager
def quiet_report() -> Iterator[None]:
    """Inside, transformers does not report which weights of a model are new: the head of a base's copy always is."""
    logger = logging.getLogger("transformers.modeling_utils")

    def is_no_report(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger.addFilter(is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(is_no_report)


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
    except UserError:
        raise
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

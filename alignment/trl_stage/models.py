"""Models and tokenizers in and out of a stage: loaded with the user's mistakes named, saved as plain folders."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.tokenizer import check_tokenizer
from launch.errors import UserError
from launch.stage import Job


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name; UserError unless it has EOS and a pad token of its own."""
    with named_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name.removeprefix("hub:"), trust_remote_code=False)
    check_tokenizer(tokenizer)
    return tokenizer


def load_causal(name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model in float32 (master weights; bf16 is autocast), agreeing with its tokenizer."""
    with named_errors(name):
        model = AutoModelForCausalLM.from_pretrained(
            name.removeprefix("hub:"), dtype=torch.float32, trust_remote_code=False
        )
    check_vocabulary(model, tokenizer, name)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


@contextlib.contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Say what could not be loaded instead of a traceback of transformers."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = str(error).split("\n")[0].rstrip(". ")
        raise UserError(
            f"model: {name}: could not be loaded ({reason}); give a folder made by an alignkit stage or by "
            "save_pretrained, or hub:org/name"
        ) from None


def check_vocabulary(model: Any, tokenizer: Any, name: str) -> None:
    """UserError when the tokenizer makes ids for which the model has no embedding."""
    size = model.config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise UserError(
            f"{name}: the tokenizer has {len(tokenizer)} tokens, the model {size}; use the tokenizer that belongs to it"
        )


def context_length(config: Any, max_length: int | None) -> int:
    """Longest row: `max_length`, at most the model's context. UserError when neither says."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if max_length is None and context is None:
        raise UserError("max_length is missing and the model does not state its context; add --max_length TOKENS")
    return min(value for value in (max_length, context) if value is not None)


def save_artefact(trainer: Any, job: Job, tokenizer: Any) -> None:
    """Write the trained model as a plain `from_pretrained` folder, gathered from any ZeRO stage. All ranks call this.

    `save_pretrained` with the gathered state dict keeps tied weights tied, which DeepSpeed's own converter does not.
    """
    accelerator = trainer.accelerator
    state = accelerator.get_state_dict(trainer.model_wrapped, unwrap=True)
    if job.runtime.is_main:
        model = accelerator.unwrap_model(trainer.model_wrapped)
        model.save_pretrained(job.output_dir, state_dict=state)
        tokenizer.save_pretrained(job.output_dir)
    job.runtime.barrier()


@contextlib.contextmanager
def plain_weights() -> Iterator[None]:
    """Inside, `from_pretrained` makes whole models also under ZeRO-3, which partitions what it loads otherwise."""
    from transformers.integrations import deepspeed as integration

    active = integration._hf_deepspeed_config_weak_ref
    integration._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        integration._hf_deepspeed_config_weak_ref = active


def switch_off_dropout(model: nn.Module) -> None:
    """Set every dropout to 0: what is compared must differ by the texts alone (checklist item 10).

    Attention layers of transformers hold theirs as a number that they hand to a function, which TRL's
    `disable_dropout` (modules of type nn.Dropout) does not see.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout_p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)

"""Models and tokenizers in and out of a stage: loaded as evaluation loads them, saved as plain folders."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.lora.layers import sort_config
from data.tokenizer import check_tokenizer
from evaluation.adapters import is_adapter
from evaluation.loading import read_causal, read_tokenizer
from launch.engine import check_weights
from launch.errors import UserError
from launch.stage import Job
from launch.zero import plain_weights


def load_tokenizer(name: str, field: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name; UserError unless it has EOS and a pad token of its own."""
    tokenizer = read_tokenizer(field, name)
    check_tokenizer(tokenizer)
    return tokenizer


def load_causal(
    name: str, tokenizer: PreTrainedTokenizerBase, partitioned: bool = False, field: str = "model"
) -> PreTrainedModel:
    """A causal language model in float32 that pads as its tokenizer does.

    `partitioned`: for a model that an engine will run; under ZeRO-3 each rank then loads its part alone. What is read
    without an engine, to sample or to score, must be whole on every rank.
    """
    with contextlib.nullcontext() if partitioned else plain_weights():
        model = read_causal(field, name, tokenizer)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def context_length(config: Any, max_length: int | None) -> int:
    """Longest row: `max_length`, at most the model's context. UserError when neither says."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if max_length is None and context is None:
        raise UserError("max_length is missing and the model does not state its context; add --max_length TOKENS")
    return min(value for value in (max_length, context) if value is not None)


def save_artefact(trainer: Any, job: Job, tokenizer: Any) -> None:
    """Write the trained model as a plain `from_pretrained` folder, gathered from any ZeRO stage; an adapter as peft's.

    All ranks call this. `save_pretrained` with the gathered state dict keeps tied weights tied, which DeepSpeed's own
    converter does not.
    """
    accelerator = trainer.accelerator
    state = accelerator.get_state_dict(trainer.model_wrapped, unwrap=True)
    check_weights(state or {}, job.runtime)  # under ZeRO-3 the main rank alone is given it
    if job.runtime.is_main:
        model = accelerator.unwrap_model(trainer.model_wrapped)
        model.save_pretrained(job.output_dir, state_dict=state)
        if is_adapter(str(job.output_dir)):
            sort_config(job.output_dir)
        tokenizer.save_pretrained(job.output_dir)
    job.runtime.barrier()


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

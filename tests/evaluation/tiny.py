"""Tiny random models and a byte-level tokenizer, made on the spot."""

import functools

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

CONTEXT = 64


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte; <pad> 256, <eos> 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<pad>", "<eos>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>")


def config(**changes) -> Qwen3Config:
    values = {
        "vocab_size": 258,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 256,
        "eos_token_id": 257,
        "bos_token_id": None,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    return Qwen3Config(**(values | changes))


def language_model(seed: int = 0, **changes) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(config(**changes)).eval()


def reward_model(seed: int = 0, **changes) -> Qwen3ForSequenceClassification:
    torch.manual_seed(seed)
    return Qwen3ForSequenceClassification(config(**({"num_labels": 1} | changes))).eval()

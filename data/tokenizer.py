"""Byte-level BPE tokenizers whose padding is never the end token, and the same guarantee for other people's.

If pad is eos, a loss mask made from padding also covers the end of every answer, and the model never learns to stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from launch.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, EOS, BOS = "<|pad|>", "<|endoftext|>", "<|bos|>"
ROLES = ("system", "user", "assistant")
BYTES = 256
_KNOWN_PADS = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>")

# A role token opens each turn; only the assistant's turn is closed by the end token, so generation stops there. The
# rendered prompt is a prefix of the rendered conversation, and `generation` marks what TRL trains on when asked for
# the assistant's tokens alone.
CHAT_TEMPLATE = (
    "{%- if bos_token %}{{ bos_token }}{% endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    "{{ raise_exception('role ' ~ message['role'] ~ ' is none of system, user, assistant') }}"
    "{%- endif -%}"
    "{{ '<|' ~ message['role'] ~ '|>' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{% generation %}{{ message['content'] ~ eos_token }}{% endgeneration %}"
    "{%- else -%}{{ message['content'] }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def special_tokens(bos: bool) -> list[str]:
    """The special tokens in the order of their ids, which are the first of the vocabulary."""
    return [PAD, EOS, *([BOS] if bos else []), *(f"<|{role}|>" for role in ROLES)]


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, chat_template: str | None = None, bos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (GPT-2's pre-tokenisation) trained on texts; any text decodes to itself.

    `vocab_size` counts the 256 bytes and the special tokens too; at exactly that sum no merge is learned and the
    model works on bytes. A corpus with few different words can end below `vocab_size`. With `bos`, every encoded
    text starts with the begin token. The same texts in any order give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = special_tokens(bos)
    smallest = BYTES + len(specials)
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size: {vocab_size} is below {smallest} ({BYTES} bytes and {len(specials)} special tokens); "
            f"give {smallest} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        start = (BOS, tokenizer.token_to_id(BOS))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[start])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=BOS if bos else None,
        extra_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=chat_template or CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[np.ndarray]:
    """Token ids of each text, int32 (length,), with the end token last and the begin token first if there is one.

    Text that looks like a special token ("<|endoftext|>" in a document) is encoded as plain characters.
    """
    encoded = tokenizer(
        list(texts), add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
    )
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return [np.asarray([*start, *ids, tokenizer.eos_token_id], dtype=np.int32) for ids in encoded["input_ids"]]


def bytes_of_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> int:
    """UTF-8 bytes of a token; one that is a part of a character decodes to U+FFFD, so its own bytes are counted."""
    text = str(tokenizer.decode([token_id]))
    if "\ufffd" not in text:
        return len(text.encode())
    name = str(tokenizer.convert_ids_to_tokens(token_id))
    return 1 if name.startswith("<0x") else len(name)  # byte fallback: a byte; byte-level BPE: one character for each


# ---------------------------------------------------------------------------------------------- other tokenizers


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError unless the tokenizer has an end token and a padding token of its own."""
    name = tokenizer.name_or_path or "the tokenizer"
    if tokenizer.eos_token_id is None:
        raise UserError(f"{name}: no end token; set tokenizer.eos_token to the token that closes a text")
    if tokenizer.pad_token_id is None:
        raise UserError(f"{name}: no padding token; call data.ensure_pad_token(tokenizer, model) and save both")
    for other in ("eos", "bos"):
        if tokenizer.pad_token_id == getattr(tokenizer, f"{other}_token_id"):
            raise UserError(
                f"{name}: the padding token is the {other} token ({tokenizer.pad_token!r}), so every mask of padding "
                f"hides real {other} tokens; call data.ensure_pad_token(tokenizer, model) and save both"
            )


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None) -> bool:
    """Give a tokenizer a padding token of its own, and the model a row for it. True if something changed.

    An unused padding token of the vocabulary is taken if there is one, else `<|pad|>` is added. New embedding rows
    are the mean of the old ones, so that padding gets an average logit and the choice is the same on every rank.
    """
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    changed = tokenizer.pad_token_id is None or tokenizer.pad_token_id in taken
    if changed:
        vocabulary = tokenizer.get_vocab()
        known = (name for name in _KNOWN_PADS if name in vocabulary and vocabulary[name] not in taken)
        tokenizer.add_special_tokens({"pad_token": next(known, PAD)})
    check_tokenizer(tokenizer)
    if model is not None:
        _fit_embeddings(model, len(tokenizer))
        changed |= model.config.pad_token_id != tokenizer.pad_token_id
        model.config.pad_token_id = tokenizer.pad_token_id
        if model.generation_config is not None:
            model.generation_config.pad_token_id = tokenizer.pad_token_id
    return changed


def _fit_embeddings(model: PreTrainedModel, size: int) -> None:
    """Lengthen the embeddings to `size` rows, the new ones the mean of the old; never shorten them."""
    import torch

    old = model.get_input_embeddings().num_embeddings
    assert isinstance(old, int)
    if size <= old:
        return
    model.resize_token_embeddings(size, mean_resizing=False)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:
            rows = layer.get_parameter("weight")
            with torch.no_grad():
                rows[old:] = rows[:old].mean(dim=0)


def same_ids(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Whether token ids mean the same to two tokenizers, EOS included."""
    return one.get_vocab() == other.get_vocab() and one.eos_token_id == other.eos_token_id

"""The text of a run: read, split, tokenised and cut into rows; what is held out is never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignment.pretrain.config import PretrainConfig, parse_heldout
from data.named_splits import hold_out
from data.order import Rows
from data.packing import PackedRows, cut_windows, pack_documents
from data.sources import load_documents
from data.tokenizer import bytes_of_token, encode_documents, train_tokenizer
from launch.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class HeldOut:
    """Held-out text in rows: every token but the first of a document is predicted once, in disjoint windows of a row.

    `scored_bytes` are the UTF-8 bytes of the predicted tokens: the base of bits per byte. End tokens (`end_id`) have
    none, and their nats are left out there.
    """

    rows: PackedRows
    scored_bytes: int
    end_id: int
    texts: list[str]


@dataclass(frozen=True)
class Corpus:
    """What a run trains and is measured on."""

    tokenizer: PreTrainedTokenizerBase
    train: Rows
    heldout: HeldOut
    train_tokens: int
    """Tokens of the training text: those of an epoch."""
    used_vocabulary: int
    """Different tokens that the training text holds."""
    documents: int


def read_corpus(config: PretrainConfig) -> Corpus:
    """Read and prepare the text of a config. The same on every rank; raises UserError on text that is too short."""
    train, heldout = split_documents(config)
    kind, _ = parse_heldout(config.heldout)
    tokenizer = choose_tokenizer(config.tokenizer, train, config.vocab_size)
    tokenizer.model_max_length = config.context
    encoded, held = encode_documents(tokenizer, train), encode_documents(tokenizer, heldout)
    if kind == "last":  # the document goes on behind the cut: no end token
        encoded, held = [encoded[0][:-1]], [held[0][:-1]]
        rows: Rows = cut_windows(encoded[0], config.context, config.seed)
    else:
        rows = pack_documents(encoded, config.context, tokenizer.pad_token_id)
    return Corpus(
        tokenizer=tokenizer,
        train=rows,
        heldout=HeldOut(
            pack_documents(held, config.context, tokenizer.pad_token_id),
            scored_bytes(tokenizer, heldout, held),
            tokenizer.eos_token_id,
            heldout,
        ),
        train_tokens=sum(map(len, encoded)),
        used_vocabulary=len(np.unique(np.concatenate(encoded))),
        documents=1 if kind == "last" else len(train) + len(heldout),
    )


def split_documents(config: PretrainConfig) -> tuple[list[str], list[str]]:
    """(training, held-out) texts of a config; one document cut in two where it holds out `last:SHARE`."""
    documents = [d.text for d in load_documents(config.data, config.text_field, config.split_text)]
    kind, share = parse_heldout(config.heldout)
    return hold_out_end(documents, share) if kind == "last" else hold_out_documents(documents, share)


def choose_tokenizer(source: str | None, texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the hub (`hub:org/name`); without one, a byte-level BPE of the training text."""
    if source is None:
        return train_tokenizer(texts, vocab_size)
    from alignment.models import load_tokenizer

    return load_tokenizer(source, "tokenizer")


def hold_out_documents(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """(training, held-out) documents by the hash of their content, see data/named_splits.py."""
    train, held = hold_out(documents, share)
    if not train or not held:
        side = "held-out" if train else "training"
        raise UserError(
            f"heldout: {len(documents)} documents leave no {side} document at hash:{share}; change the share, "
            "split_text, or give last:SHARE for one long document"
        )
    return train, held


def hold_out_end(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """([first part], [last `share` of the characters]) of the one document; the cut is where nanoGPT makes it."""
    if len(documents) != 1:
        raise UserError(
            f"heldout: last:{share} needs one document, the source has {len(documents)}; give hash:{share} to hold out "
            "whole documents"
        )
    cut = int(len(documents[0]) * (1.0 - share))
    if cut == 0 or cut == len(documents[0]):
        raise UserError(f"heldout: the text has {len(documents[0])} characters, too few to cut at last:{share}")
    return [documents[0][:cut]], [documents[0][cut:]]


def scored_bytes(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> int:
    """UTF-8 bytes of the tokens that are predicted: all but a document's first, unless that is a begin token."""
    total = sum(len(text.encode()) for text in texts)
    if tokenizer.bos_token_id is not None:
        return total
    return total - sum(bytes_of_token(tokenizer, int(tokens[0])) for tokens in encoded)


def write_heldout(heldout: HeldOut, folder: Path) -> None:
    """Keep the held-out text beside the model, so that a later evaluation uses the same and no training does."""
    import json

    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in heldout.texts]
    (folder / "heldout.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

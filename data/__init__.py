"""Corpora, tokenizers, packing and preference data.

Names are resolved when they are first used, so that `from data import load_preferences` imports neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "records": ("Document", "Message", "Pair", "Preference", "Turns", "plain_text"),
    "sources": ("load_documents", "load_pairs", "load_prompts", "load_prompts_with_columns"),
    "embedded": ("digits", "docstring_pairs", "python_prose"),
    "named_splits": ("hold_out",),
    "completions": ("load_completions", "save_completions"),
    "packing": ("IGNORE", "PackedRows", "Windows", "cut_windows", "pack_documents"),
    "tokenizer": ("check_tokenizer", "encode_documents", "ensure_pad_token", "train_tokenizer"),
    "preferences": (
        "describe_preferences",
        "load_preferences",
        "pairs_from_ranking",
        "save_preferences",
        "validate_preferences",
    ),
    "formats": ("from_unpaired", "split_prompt", "to_implicit", "to_unpaired"),
    "overlap": ("deduplicate", "find_contamination", "similar_texts"),
    "order": ("batch_rows", "epoch_order", "global_batch", "rank_part"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

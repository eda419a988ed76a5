"""Models and tokenizers from a folder or the hub, the same for training, sampling and evaluation; mistakes are named.

`field` is the config field that a message begins with, `source` a folder or hub:org/name (see `locate`). Code of the
hub never runs. An adapter's folder gives its base with the adapter merged in, so that nothing else has to know of adapters.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
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
from launch.errors import UserError, nearest, reason_of
from launch.files import is_empty_folder
from launch.zero import plain_weights

REMEDY = "give a folder made by an alignkit stage or by save_pretrained, or hub:org/name"
_ORG_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read_tokenizer(field: str, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or hub name, as it is."""
    with named_errors(field, source, "a tokenizer") as name:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def read_causal(field: str, source: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model in float32 (master weights; bf16 is autocast) that has an embedding for every token."""
    with named_errors(field, source, "a causal language model") as name:
        model, _ = load_merged(field, name, AutoModelForCausalLM, dtype=torch.float32)
    check_embeddings(field, source, model, tokenizer)
    return model


def read_classifier(
    field: str, source: str, tokenizer: PreTrainedTokenizerBase | None, dtype: torch.dtype | None = None
) -> PreTrainedModel:
    """A trained sequence classifier with one label, float32 unless given, with an embedding for every token.

    Without a tokenizer the embeddings are not looked at. UserError also when the folder holds no head: transformers
    would then make one at random.
    """
    with named_errors(field, source, "a reward model") as name:
        model, missing = load_merged(field, name, AutoModelForSequenceClassification, dtype=dtype or torch.float32)
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


def load_merged(field: str, name: str, auto: Any, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """`auto.from_pretrained`, of an adapter its base with the adapter merged in; and the names of weights that are missing.

    `name` is what `locate` gives. A base that is merged into is whole on every rank, also under ZeRO-3.
    """
    options = {"trust_remote_code": False, "output_loading_info": True, **options}
    if not is_adapter(name):
        model, info = auto.from_pretrained(name, **options)
        return model, set(info["missing_keys"])
    adapter = read_adapter(field, name)
    if adapter.head_LD is not None:
        options = {"num_labels": len(adapter.head_LD), **options}
    with plain_weights(), quiet_report():
        model, info = auto.from_pretrained(locate(field, adapter.base), **options)
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
def named_errors(field: str, source: str, what: str) -> Iterator[str]:
    """Gives what `from_pretrained` is to be called with: a folder that is there, or a name of the hub.

    And says what could not be loaded: transformers raises OSError, ValueError, KeyError and others, mostly cryptic.
    """
    name = locate(field, source)
    try:
        yield name
    except UserError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = reason_of(error)
        if "couldn't connect to" in reason:
            offline = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the hub cannot be reached"
            reason = f"it is no folder here, {offline}, and no copy was downloaded before"
        raise UserError(f"{field}: {source}: could not be loaded as {what} ({reason}); {REMEDY}") from None


def locate(field: str, source: str) -> str:
    """A folder that is there, or the hub's name in hub:name or org/name. UserError for all else: the hub is not asked.

    A path may look like org/name: it is taken for one when its first part is a folder here.
    """
    source = str(source)
    if source.startswith("hub:"):
        return source.removeprefix("hub:")
    path = Path(source)
    if is_empty_folder(path):
        raise UserError(f"{field}: {source}: the folder is empty; {REMEDY}")
    if path.is_dir():
        return source
    if path.exists():
        raise UserError(f"{field}: {source}: is a file; {REMEDY}")
    if _ORG_AND_NAME.fullmatch(source) and not path.parent.exists():
        return source
    siblings = (
        [p.name for p in path.parent.iterdir() if p.is_dir() and p.name[0] != "."] if path.parent.is_dir() else []
    )
    raise UserError(f"{field}: {source}: no such folder{nearest(path.name, siblings) if siblings else ''}; {REMEDY}")

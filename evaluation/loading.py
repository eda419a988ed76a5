"""Models and tokenizers from a folder or the hub, the same for training, sampling and evaluation; mistakes are named.

`field` is the config field that a message begins with, `source` a folder or hub:org/name (see `locate`). Code of the
hub never runs. An adapter's folder gives its base with the adapter merged in, so that nothing else has to know of adapters.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from evaluation.adapters import HEAD, is_adapter, merge, read_adapter
from evaluation.scoring import check_reward_model
from launch.attention import take_float32_for_short_rows
from launch.errors import UserError, nearest, reason_of
from launch.files import is_empty_folder, read_json
from launch.zero import plain_weights

REMEDY = "give a folder made by an alignkit stage or by save_pretrained, or hub:org/name"
HEADS = {HEAD, "lm_head.weight"}
"""Weights that one kind of model has and another kind on the same body has not."""
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")
"""One of these is in every folder that holds a tokenizer."""
_ORG_AND_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def read_tokenizer(field: str, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or hub name, as it is. UserError for a model without one: transformers would make one up."""
    with named_errors(field, source, "a tokenizer") as name:
        folder = Path(name)
        is_model = (folder / "config.json").is_file()
        if is_model and not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
            raise UserError(
                f"{field}: {source}: this folder has no tokenizer; save the model's own into it, by save_pretrained"
            )
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def read_causal(field: str, source: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal language model in float32 (master weights; bf16 is autocast) that has an embedding for every token.

    UserError also when the folder lacks weights, as a reward model's lacks lm_head: transformers would make them at random.
    """
    with named_errors(field, source, "a causal language model") as name:
        model, missing = load_merged(field, name, AutoModelForCausalLM, dtype=torch.float32)
    remedy = "give one that `alignkit pretrain`, `sft`, `dpo` or `ppo` made"
    refuse_missing(field, source, missing, "language model", remedy)
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
    refuse_missing(field, source, missing, "reward model", "train one with `alignkit reward`")
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
    options = {"trust_remote_code": False, **options}
    if not is_adapter(name):
        return _load(name, auto, **options)
    adapter = read_adapter(field, name)
    if adapter.head_LD is not None:
        if auto is AutoModelForCausalLM:
            raise UserError(
                f"{field}: {name}: an adapter with a head `score` makes a reward model of its base, and no language model; "
                "give an adapter that `alignkit sft --lora.rank` or `alignkit ppo` made"
            )
        options = {"num_labels": len(adapter.head_LD), **options}
    with plain_weights():
        model, missing = _load(locate(field, adapter.base), auto, **options)
    merge(field, model, adapter)
    return model, missing - ({HEAD} if adapter.head_LD is not None else set())


def _load(name: str, auto: Any, **options: Any) -> tuple[PreTrainedModel, set[str]]:
    """`auto.from_pretrained`, and the parameters that the files lack; buffers are computed, tied weights are not lacking.

    What transformers reports of heads, which another kind of model has or lacks, is left out: whoever asks judges that.
    """
    take_float32_for_short_rows()
    logger = logging.getLogger("transformers.modeling_utils")
    reports: list[logging.LogRecord] = []

    def is_no_report(record: logging.LogRecord) -> bool:
        if "LOAD REPORT" in record.getMessage():
            reports.append(record)
            return False
        return True

    logger.addFilter(is_no_report)
    try:
        model, info = auto.from_pretrained(name, output_loading_info=True, **options)
    finally:
        logger.removeFilter(is_no_report)
    missing = set(info["missing_keys"]) & {name for name, _ in model.named_parameters()}
    if set(info["unexpected_keys"]) - HEADS:
        for record in reports:
            logger.handle(record)
    return model, missing


def refuse_missing(field: str, source: str, missing: set[str], what: str, remedy: str) -> None:
    """UserError when a folder lacks weights: transformers would make them at random, and the numbers would say nothing."""
    if missing:
        raise UserError(
            f"{field}: {source}: the weights lack {min(missing)}, {_held(source)}, so this is no trained {what}; {remedy}"
        )


def _held(source: str) -> str:
    """What kind of model a folder says that it holds, for a sentence."""
    config = read_json(Path(source) / "config.json") if (Path(source) / "config.json").is_file() else {}
    kind = next(iter(config.get("architectures") or []), "")
    return f"it holds a {kind}" if kind else "it does not say which kind of model it holds"


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
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(". ") or "the file is empty"
        raise UserError(
            f"{field}: {source}: a file of weights is damaged or was not written to its end ({reason}); copy or make the "
            "folder again"
        ) from None
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

"""Our scorer against lm-evaluation-harness and `evaluate`: tokens computed, seconds, and whether the answers agree.

    OMP_NUM_THREADS=1 python -m benchmarks.evaluation language    (six minutes; see benchmarks/evaluation.py)

One model for all, with random weights (speed does not depend on them), fp32, methods in turn in one process.

- choice: ARC-challenge, 4 choices, 5 examples in the prompt, through `lm_eval.simple_evaluate` from end to end:
  lm-eval's HFLM at the best of several batch sizes, against SharedPrefixLM. Examples either drawn anew for each question
  (lm-eval's default) or the same first five for all (MMLU's way, where lm-eval's own one-token cache does not help either).
- perplexity: paragraphs of WikiText-2 of mixed length, against `evaluate`'s perplexity. Its module is a script on a hub, so
  what its documentation says stands in for it here: all texts padded to the longest of the whole list, batches of 16 in the
  order given, the whole softmax, exp of each text's mean loss. Loading the model anew for each call is not counted.
- batching: the largest change of a token's log-probability between batched and single scoring, in fp32 and under bf16, and
  how far bf16 moves it from fp32.
- padding: padded tokens of batches that are cut where padding costs least, against filling each to the budget.

Data: $ALIGNKIT_DATA/eval_gauntlet, wikitext2, hh_rlhf_harmless and autoj_pairwise. Tokens count padding: that is what is
computed.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.common import DATA
from data import load_preferences, train_tokenizer
from data.encoding import encode_completions, encode_prompts
from evaluation.batches import plan_batches
from evaluation.language.harness import run_tasks
from evaluation.language.perplexity import batch_deviation, perplexity
from evaluation.options import BATCH_TOKENS
from evaluation.scoring import tail_logprobs

CONTEXT = 2048
ROUNDS = 3
HF_BATCHES = (1, 8)
"""Batch sizes of lm-eval, of which its fastest counts."""
EVALUATE_BATCH = 16
"""The default of `evaluate`'s perplexity."""
PAIRS = {"hh_rlhf_harmless": "split.train.jsonl.gz", "autoj_pairwise": "autoj_pairwise.jsonl.gz"}
SIDES = ("chosen", "rejected")


@functools.cache
def make_model() -> tuple[Any, Any]:
    """A Qwen3 of 4 layers and width 256 (about 6 M parameters), and a tokenizer of 8,192 entries trained on WikiText-2."""
    text = (DATA / "wikitext2" / "wiki.valid.tokens").read_text(encoding="utf-8")
    tokenizer = train_tokenizer(text.split("\n"), 8_192)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT,
        initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval(), tokenizer


@contextlib.contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Inside, the sizes (rows times padded length) of all inputs of the model's body are collected."""
    sizes: list[int] = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield sizes
    finally:
        hook.remove()


def take_turns(model: Any, methods: dict[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
    """Seconds (median, all) and tokens of each method; they take turns, after one call that warms up. And what it found."""
    found: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in methods}
    for turn in range(ROUNDS + 1):
        for name, method in methods.items():
            print(f"turn {turn}: {name}", flush=True)
            with counted(model) as sizes:
                start = time.perf_counter()
                result = method()
                seconds = time.perf_counter() - start
            if turn:
                found[name]["seconds"].append(round(seconds, 3))
            found[name] |= {"tokens": sum(sizes), "result": result}
    for entry in found.values():
        entry["median_seconds"] = statistics.median(entry["seconds"])
    return found


# ---------------------------------------------------------------------------------------------- multiple choice


def write_choice_task(folder: Path, questions: int, sampler: str) -> str:
    """ARC-challenge as a task of lm-eval on local files."""
    with gzip.open(DATA / "eval_gauntlet" / "arc_challenge.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    rows = [row for row in rows if len(row["choices"]) == 4]
    files = {}
    for split, part in (("test", rows[:questions]), ("train", rows[-50:])):
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    name = f"arc_{sampler}"
    config = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": sampler},
        "num_fewshot": 5,
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return name


def compare_choice(model: Any, tokenizer: Any, questions: int, sampler: str) -> dict[str, Any]:
    """One way of drawing the examples: HFLM at each batch size, and ours."""
    from lm_eval.models.huggingface import HFLM

    from evaluation.language.harness_model import SharedPrefixLM

    with tempfile.TemporaryDirectory() as name:
        task = write_choice_task(Path(name), questions, sampler)

        def run(lm: Any) -> Any:
            return run_tasks(lm, [task], name, None, None, 0)

        models = {f"lm_eval_batch_{size}": HFLM(model, tokenizer=tokenizer, batch_size=size) for size in HF_BATCHES}
        models["alignkit"] = SharedPrefixLM(model, tokenizer)
        methods: dict[str, Callable[[], Any]] = {key: lambda lm=lm: run(lm) for key, lm in models.items()}
        found = take_turns(model, methods)
    results = {key: entry.pop("result") for key, entry in found.items()}
    theirs = min((key for key in found if key != "alignkit"), key=lambda key: found[key]["median_seconds"])
    logs = {key: [[r[0] for r in s["filtered_resps"]] for s in results[key]["samples"][task]] for key in results}
    pairs = list(zip(logs["alignkit"], logs[theirs], strict=True))
    return {
        "questions": questions,
        "methods": found,
        "fastest_of_lm_eval": theirs,
        "tokens_ratio": round(found[theirs]["tokens"] / found["alignkit"]["tokens"], 3),
        "speed_ratio": round(found[theirs]["median_seconds"] / found["alignkit"]["median_seconds"], 3),
        "same_answers": sum(a.index(max(a)) == b.index(max(b)) for a, b in pairs),
        "largest_difference_nats": max(abs(x - y) for a, b in pairs for x, y in zip(a, b, strict=True)),
        "accuracy": {key: results[key]["results"][task]["acc,none"] for key in ("alignkit", theirs)},
    }


# ---------------------------------------------------------------------------------------------- perplexity


def read_paragraphs(n: int, tokenizer: Any) -> list[str]:
    """Paragraphs and headings of WikiText-2's test part, of 2 tokens and more, within the context."""
    lines = (DATA / "wikitext2" / "wiki.test.tokens").read_text(encoding="utf-8").split("\n")
    texts = [line.strip() for line in lines if line.strip()]
    return [t for t in texts if 2 <= len(tokenizer(t)["input_ids"]) <= CONTEXT][:n]


def evaluate_perplexities(model: Any, tokenizer: Any, texts: list[str]) -> list[float]:
    """What `evaluate`'s perplexity (without a start token) is documented to compute, in the way it computes it."""
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    values: list[float] = []
    with torch.no_grad():
        for start in range(0, len(texts), EVALUATE_BATCH):
            ids_BS = encoded["input_ids"][start : start + EVALUATE_BATCH]
            mask_BS = encoded["attention_mask"][start : start + EVALUATE_BATCH]
            logits_BSV = model(ids_BS, attention_mask=mask_BS).logits[:, :-1]
            loss_BS = torch.nn.functional.cross_entropy(logits_BSV.transpose(1, 2), ids_BS[:, 1:], reduction="none")
            real_BS = mask_BS[:, 1:]
            values += ((loss_BS * real_BS).sum(1) / real_BS.sum(1)).exp().tolist()
    return values


def compare_perplexity(model: Any, tokenizer: Any, documents: int) -> dict[str, Any]:
    """`evaluate`'s way and ours on the same texts; both give a perplexity for each."""
    texts = read_paragraphs(documents, tokenizer)
    found = take_turns(
        model,
        {
            "evaluate": lambda: evaluate_perplexities(model, tokenizer, texts),
            "alignkit": lambda: [
                math.exp(d.nats / d.tokens) for d in perplexity(model, tokenizer, texts, CONTEXT).documents
            ],
        },
    )
    values = {key: entry.pop("result") for key, entry in found.items()}
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    return {
        "documents": len(texts),
        "tokens_of_a_document": {"median": statistics.median(lengths), "max": max(lengths), "sum": sum(lengths)},
        "methods": found,
        "tokens_ratio": round(found["evaluate"]["tokens"] / found["alignkit"]["tokens"], 3),
        "speed_ratio": round(found["evaluate"]["median_seconds"] / found["alignkit"]["median_seconds"], 3),
        "largest_difference_log_perplexity": max(
            abs(math.log(a / b)) for a, b in zip(values["evaluate"], values["alignkit"], strict=True)
        ),
    }


def measure_batching(model: Any, tokenizer: Any, documents: int) -> dict[str, Any]:
    """Largest change of a token's log-probability in nats between batched and single scoring, and between fp32 and bf16."""
    texts = read_paragraphs(documents, tokenizer)
    worst, n = batch_deviation(model, tokenizer, texts, CONTEXT)
    ids = [list(row) for row in tokenizer(texts)["input_ids"]]
    exact = torch.cat(tail_logprobs(model, ids, [len(row) - 1 for row in ids]))
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = batch_deviation(model, tokenizer, texts, CONTEXT)
        rounded = torch.cat(tail_logprobs(model, ids, [len(row) - 1 for row in ids]))
    differences = (exact - rounded).abs()
    against = {"largest": float(differences.max()), "mean": float(differences.mean())}
    return {"tokens": n, "fp32": worst, "bf16": rough, "bf16_against_fp32": against}


# ---------------------------------------------------------------------------------------------- padding


def fill_batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Rows, longest first, each batch filled to the budget: the plan that `plan_batches` is measured against."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def pair_lengths(source: str, tokenizer: Any, context: int) -> list[int]:
    """Tokens of prompts with both their answers, within the context: the rows of a reward model that shares prompts."""
    pairs = load_preferences(str(DATA / source / PAIRS[source]), "drop")
    prompts = encode_prompts(tokenizer, [p.prompt for p in pairs])
    sides = [encode_completions(tokenizer, [p.prompt for p in pairs], [getattr(p, s) for p in pairs]) for s in SIDES]
    lengths = [len(a) + len(b) + len(c) for a, b, c in zip(prompts, *sides, strict=True)]
    return [length for length in lengths if length <= context]


def compare_padding(tokenizer: Any, rows: int) -> dict[str, Any]:
    """Padded tokens and passes of both plans, on three sets of rows and two budgets."""
    paragraphs = [len(ids) for ids in tokenizer(read_paragraphs(rows, tokenizer))["input_ids"]]
    sets = {"wikitext2 paragraphs": paragraphs}
    sets |= {source: pair_lengths(source, tokenizer, CONTEXT)[:rows] for source in PAIRS}
    found: dict[str, Any] = {}
    for name, lengths in sets.items():
        for budget in (BATCH_TOKENS, 4 * BATCH_TOKENS):
            plans = {"filled": fill_batches(lengths, budget), "cheapest": plan_batches(lengths, budget)}
            numbers = {
                key: {"padded_tokens": sum(lengths[b[0]] * len(b) for b in plan), "passes": len(plan)}
                for key, plan in plans.items()
            }
            found[f"{name}, {budget} tokens"] = {"rows": len(lengths), "tokens": sum(lengths), **numbers}
    return {"sets": found}


# ---------------------------------------------------------------------------------------------- the part


def settled(function: Callable[..., dict[str, Any]], full: tuple[Any, ...], small: tuple[Any, ...]) -> Any:
    """A comparison of one model and tokenizer, at its full size or a quick one."""

    def compare(quick: bool) -> dict[str, Any]:
        model, tokenizer = make_model()
        about = {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), "precision": "fp32"}
        return {"model": about, **function(model, tokenizer, *(small if quick else full))}

    return compare


COMPARISONS = {
    "choice_examples_drawn_for_each_question": settled(compare_choice, (40, "default"), (2, "default")),
    "choice_same_examples_for_all": settled(compare_choice, (40, "first_n"), (2, "first_n")),
    "perplexity": settled(compare_perplexity, (200,), (10,)),
    "batching_nats": settled(measure_batching, (64,), (4,)),
    "padding": lambda quick: compare_padding(make_model()[1], 50 if quick else 5000),
}


def describe(name: str, result: dict[str, Any]) -> str:
    """One line for people."""
    if name == "padding":
        lines = [
            f"{key}: {1 - entry['cheapest']['padded_tokens'] / entry['filled']['padded_tokens']:.1%} fewer padded tokens"
            for key, entry in result["sets"].items()
        ]
        return "; ".join(lines)
    if name == "batching_nats":
        return f"batching: {result['fp32']:.1e} nats in fp32, {result['bf16']:.1e} under bf16"
    return f"{name}: {result['tokens_ratio']} times fewer tokens, {result['speed_ratio']} times faster"

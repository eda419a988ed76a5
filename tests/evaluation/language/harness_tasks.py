"""Tasks of lm-evaluation-harness on local data, one of each kind, for tests and benchmarks."""

import json
from pathlib import Path

import yaml

QUESTIONS = [
    {"query": f"What follows {n}?", "choices": [str(n + 1), f"{n} again", "nothing at all", "x"], "gold": n % 4}
    for n in range(12)
]
CLOZES = [{"context": f"one two three {word} and", "continuation": word} for word in ("four", "five", "six", "seven")]
TEXTS = [{"text": "A text that is read from its beginning. " * n} for n in (1, 2, 9)]
PROMPTS = [{"question": f"Say {word}:", "answer": word} for word in ("yes", "no", "maybe")]


def multiple_choice(name: str, num_fewshot: int = 2, sampler: str = "default") -> dict:
    return {
        "task": name,
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": sampler},
        "num_fewshot": num_fewshot,
        "doc_to_text": "{{query}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")],
        "metadata": {"version": 1.0},
    }


KINDS = {
    "local_choice": (multiple_choice("local_choice"), QUESTIONS),
    "local_cloze": (
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": " {{continuation}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
            ],
        },
        CLOZES,
    ),
    "local_rolling": (
        {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        },
        TEXTS,
    ),
    "local_generation": (
        {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
        PROMPTS,
    ),
}


def write_task(folder: Path, name: str, config: dict, rows: list[dict], train: list[dict] | None = None) -> None:
    """The YAML of a task and its data, side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, part in (("test", rows), ("train", train or rows)):
        path = folder / f"{name}.{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        files[split] = str(path)
    data = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**data, **config}))


def write_tasks(folder: Path) -> Path:
    for name, (config, rows) in KINDS.items():
        write_task(folder, name, config, rows)
    return folder

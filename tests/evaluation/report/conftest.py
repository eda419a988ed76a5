"""A synthetic lifecycle with results, as the demo would leave it; every text can be replaced by a hostile one."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from evaluation.images.grid import image_grid, save_png
from evaluation.safety.metrics import Finding, general_metrics
from evaluation.safety.refusal_metrics import refusal_metrics, refusal_slices
from evaluation.schema import (
    Comparison,
    EvaluationResult,
    Judge,
    Metric,
    Protocol,
    Slice,
    Subject,
    metric,
    write_samples,
)
from evaluation.statistics import Estimate, mean, ratio, win_rate
from launch.files import write_json

HARDWARE = {"processor": "Example CPU", "cores": 2, "memory_gib": 16.0, "gpus": [], "system": "Linux"}
VERSIONS = {"python": "3.11.9", "alignkit": "0.1.0", "torch": "2.15.0", "transformers": "5.23.0"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_stage(root, name, command, inputs, seconds, log=(), code=COMMIT, dirty=False):
    """A finished run. `inputs`: field -> path of another stage, or an embedded source."""
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        field: {"source": value, "sha256": f"{abs(hash(value)):064x}"[:64]}
        if value.startswith("embedded:")
        else {"path": value, "sha256": "b" * 64, "stage": "x"}
        for field, value in inputs.items()
    }
    number = len(list(root.iterdir()))
    write_json(
        folder / "provenance.json",
        {
            "schema": 1,
            "stage": command,
            "config": {"output_dir": str(folder), "seed": 0, **inputs, "learning_rate": 0.001},
            "choices": {},
            "identity": "c" * 64,
            "inputs": entries,
            "content_sha256": f"{number:064x}",
            "summary": {},
            "started": 1_790_000_000.0 + 60 * number,
            "seconds": seconds,
            "world": 1,
            "zero_stage": 0,
            "precision": "bf16",
            "versions": VERSIONS,
            "code": {"commit": code, "dirty": dirty},
            "hardware": HARDWARE,
            "peak_memory_mib": 812.4,
        },
    )
    if log:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    return str(folder)


def falling(steps, start, end, seed, names=("loss",)):
    """A log whose numbers fall, with noise."""
    draw = np.random.default_rng(seed)
    return [
        {"step": i + 1, **{n: end + (start - end) * math.exp(-4 * i / steps) + draw.normal(0, 0.05) for n in names}}
        for i in range(steps)
    ]


def write_lifecycle(root):
    """Stages of the demo: language models, reward models, generators."""
    write_stage(root, "pretrain", "pretrain", {"text": "embedded:python-prose"}, 92.1, falling(900, 7, 3.7, 0))
    write_stage(
        root, "sft", "sft", {"model": str(root / "pretrain"), "data": "embedded:docstrings"}, 31.5,
        falling(200, 5, 3.3, 1, ("loss", "eval_loss")),
    )  # fmt: skip
    write_stage(root, "pairs", "preferences build", {"model": str(root / "sft")}, 21.0)
    for name, seed in (("reward", 2), ("gold", 3)):
        inputs = {"model": str(root / "sft"), "preferences": str(root / "pairs")}
        log = [
            {**r, "eval_accuracy": 0.5 + 0.2 * (1 - math.exp(-r["step"] / 40))} for r in falling(150, 0.7, 0.5, seed)
        ]
        write_stage(root, name, "reward", inputs, 18.2, log)
    write_stage(
        root, "dpo", "dpo", {"model": str(root / "sft"), "preferences": str(root / "pairs")}, 40.0,
        falling(120, 0.69, 0.4, 4),
    )  # fmt: skip
    draw = np.random.default_rng(5)
    log = [
        {
            "step": i,
            "reward/score": 1.6 * (1 - math.exp(-i / 15)) + draw.normal(0, 0.1),
            "kl/k1": 0.12 * i + draw.normal(0, 0.2),
            "entropy": 3.0 - 0.02 * i + draw.normal(0, 0.03),
            "length": 11 + draw.normal(0, 0.4),
            "clip_fraction": abs(draw.normal(0.08, 0.02)),
            "explained_variance": "nan" if i == 1 else 0.6 * (1 - math.exp(-i / 8)),
            "loss/value": 0.4 * math.exp(-i / 20),
            "perf/rollout_seconds": 1.1,
        }
        for i in range(1, 61)
    ]
    inputs = {"policy": str(root / "sft"), "reward": str(root / "reward"), "critic": str(root / "reward")}
    write_stage(root, "ppo", "ppo", inputs, 104.7, log)
    for name, seed in (("vae", 6), ("gan", 7), ("diffusion", 8)):
        write_stage(root, name, "train-generative", {"images": "embedded:digits"}, 20.0, falling(300, 1, 0.2, seed))
        write_stage(root, f"sample-{name}", "sample", {"model": str(root / name)}, 3.0)


# ---------------------------------------------------------------------------------------------- results

PROMPTS = [f"def {verb}_{noun}(self, {argument}):" for verb in ("get", "set", "parse", "remove") for noun in ("item", "path", "header") for argument in ("name", "value")]  # fmt: skip
WORDS = [
    "Return",
    "a",
    "list",
    "of",
    "the",
    "items",
    "that",
    "match",
    "the",
    "given",
    "name",
    "and",
    "raise",
    "an",
    "error",
    "when",
    "none",
    "is",
    "found",
]


def text_of(draw, length):
    return " ".join(draw.choice(WORDS, length)) + "."


def duel_result(root, name, rate, controlled, seed, n=400):
    """A win-rate result of a policy against sft."""
    draw = np.random.default_rng(seed)
    folder = root / f"evaluate-{name}"
    folder.mkdir(parents=True)
    rows = []
    won = draw.permutation(np.repeat([1.0, 0.0], [round(rate * n), n - round(rate * n)]))
    for index in range(n):
        theirs = draw.normal(0, 1)
        ours = theirs + (1 if won[index] else -1) * (0.01 + abs(draw.normal(0, 1)))
        rows.append(
            {
                "id": str(index),
                "prompt": f"{PROMPTS[index % len(PROMPTS)]}  # {index}",
                "completion": text_of(draw, 11),
                "baseline_completion": text_of(draw, 9),
                "reference": text_of(draw, 8),
                "tokens": 15,
                "baseline_tokens": 12,
                "finished": True,
                "reward": ours,
                "baseline_reward": theirs,
                "outcome": float(won[index]),
            }
        )
    rates = [(win_rate(won), "win_rate"), (win_rate(np.repeat([1.0, 0.0], [round(controlled * n), n - round(controlled * n)])), "win_rate_length_controlled")]  # fmt: skip
    metrics = [
        metric(label, estimate, f"prompts on which the judge prefers the completion ({label})", higher_is_better=True, unit="share", baseline="sft")
        for estimate, label in rates
    ]  # fmt: skip
    first = metrics[0]
    comparison = Comparison(
        "an even match",
        rate - 0.5,
        first.ci_low - 0.5,
        first.ci_high - 0.5,
        0.0004,
        "exact sign test",
        n,
        0.95,
        "wilson",
    )
    metrics[0] = Metric(**{**first.__dict__, "comparison": comparison})
    metrics.append(metric("kl_k1", mean(draw.normal(4 if name == "ppo" else 2, 1.5, n)), "KL divergence from sft", higher_is_better=None, unit="nats"))  # fmt: skip
    result = EvaluationResult(
        suite="win-rate",
        subject=Subject(name, "language model", str(root / name), f"{seed:064x}"),
        protocol=protocol("prompts::eval", n, judge=Judge("gold", "d" * 64), baseline="sft"),
        metrics=metrics,
        samples=write_samples(folder, rows),
        versions=VERSIONS,
        hardware=HARDWARE,
        created=f"2026-11-21T02:{seed:02d}:00+00:00",
    )
    result.save(folder)


def protocol(dataset, n, **more):
    return Protocol(
        dataset=dataset, dataset_sha256="e" * 64, n_items=n, seeds=[0], settings={"precision": "bf16"}, **more
    )


def text_result(root, name, bits, length, seed):
    folder = root / f"text-{name}"
    folder.mkdir(parents=True)
    draw, common = np.random.default_rng(seed), np.random.default_rng(99)
    sizes = common.integers(200, 900, 350)
    spent = sizes * (
        bits + common.normal(0, 0.4, 350) + draw.normal(0, 0.05, 350)
    )  # bits: documents differ, models little
    rows = [
        {"kind": "document", "origin": f"prose.txt:{i}", "nats": float(b * math.log(2)), "tokens": 99, "words": 60,
         "bytes": int(size), "bits_per_byte": float(b / size)}
        for i, (b, size) in enumerate(zip(spent, sizes))
    ]  # fmt: skip
    metrics = [
        metric("bits_per_byte", ratio(spent, sizes.astype(float)), "bits to encode one byte of held-out prose", higher_is_better=False, unit="bits/byte"),
        metric("perplexity", mean(draw.normal(2**bits * 9, 12, 350)), "perplexity for each token of held-out prose", higher_is_better=False),
        metric("mean_length", mean(draw.normal(length, 4, 400)), "tokens of a completion", higher_is_better=None, unit="tokens"),
        metric("distinct_2", Estimate(0.42, 400, None, None, None, 0.95, ""), "distinct pairs of words", higher_is_better=True, unit="share"),
    ]  # fmt: skip
    EvaluationResult(
        suite="text",
        subject=Subject(
            name, "language model", str(root / name), f"{dict(pretrain=1, sft=2, dpo=12, ppo=11)[name]:064x}"
        ),
        protocol=protocol("embedded:python-prose::eval", 350),
        metrics=metrics,
        samples=write_samples(folder, rows),
        versions=VERSIONS,
        hardware=HARDWARE,
        created=f"2026-11-21T01:{seed:02d}:00+00:00",
    ).save(folder)


def safety_result(root, name, copied, seed):
    folder = root / f"safety-{name}"
    folder.mkdir(parents=True)
    draw, hard = np.random.default_rng(seed), np.random.default_rng(97).uniform(0, 1, 400)
    findings = [
        Finding(str(i), f"prompt {i}", i < 3, bool((0.14 * seed if i % 2 else 0.75 + 0.06 * seed) > 0.7 * hard[i] + 0.3 * draw.uniform()), {}, copied=i < copied,
                prompt_safe=bool(i % 2), prompt_type=("homonyms", "privacy", "figurative language")[i % 3])
        for i in range(400)
    ]  # fmt: skip
    rate = win_rate([float(f.copied) for f in findings])
    metrics = [
        metric("copied_rate", rate, "completions", higher_is_better=False, unit="share"),
        *general_metrics(findings),
        *refusal_metrics(findings, None),
    ]
    EvaluationResult(
        suite="safety",
        subject=Subject(name, "language model", str(root / name), f"{dict(sft=2, dpo=12, ppo=11)[name]:064x}"),
        protocol=Protocol("prompts::eval", "e" * 64, 400, settings={"copied_length": 50}),
        metrics=metrics,
        slices=refusal_slices(findings),
        samples=write_samples(folder, [f.row() for f in findings]),
        notes=["Personal data is found by its form."],
        created=f"2026-11-21T04:{seed:02d}:00+00:00",
    ).save(folder)


def reward_result(root, name, accuracy, seed):
    folder = root / f"accuracy-{name}"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    won = draw.permutation(np.repeat([1.0, 0.0], [round(accuracy * 300), 300 - round(accuracy * 300)]))
    margins = (2 * won - 1) * (0.01 + np.abs(draw.normal(0.6, 1, 300)))
    texts = np.random.default_rng(98)  # the same pairs for every reward model
    rows = [
        {"prompt": f"{PROMPTS[i % 24]}  # {i}", "chosen": text_of(texts, 9), "rejected": text_of(texts, 12),
         "source": ("human", "sampled")[i % 2],
         "criteria": "", "reward_chosen": float(m), "reward_rejected": 0.0, "margin": float(m)}
        for i, m in enumerate(margins)
    ]  # fmt: skip
    entry = metric("accuracy", win_rate(won), "pairs ordered as people did", higher_is_better=True, unit="share")
    longest = metric(
        "baseline_longest", win_rate(won[::-1][:300]), "the longer answer wins", higher_is_better=None, unit="share"
    )
    EvaluationResult(
        suite="reward",
        subject=Subject(name, "reward model", str(root / name), f"{seed:064x}"),
        protocol=protocol("pairs::eval", 300),
        metrics=[entry, longest],
        slices=[Slice("source", "human", [entry]), Slice("source", "sampled", [entry])],
        samples=write_samples(folder, rows),
        notes=["4 pairs that people called ties are left out."],
        versions=VERSIONS,
        hardware=HARDWARE,
        created="2026-11-21T05:00:00+00:00",
    ).save(folder)


def image_results(root, name, kind, distance, score, seed):
    folder = root / "evaluate-images" / name.replace(" ", "-")
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (76, 1, 8, 8), dtype=np.uint8)
    save_png(folder / "grid.png", image_grid(images[:64], 16), 4)
    save_png(folder / "neighbours.png", image_grid(images[64:], 6), 4)

    def estimate(value, spread):
        return Estimate(
            value, 898, spread / 2, value - spread, value + spread, 0.95, "jackknife over 20 blocks, log scale"
        )

    EvaluationResult(
        suite="images",
        subject=Subject(name, kind, str(root / name), f"{seed:064x}"),
        protocol=protocol("embedded:digits", 899),
        metrics=[
            metric("fd_digits@898", estimate(distance, 0.09 * distance), "Fréchet distance", higher_is_better=False),
            metric("is_digits@898", estimate(score, 0.12), "Inception Score", higher_is_better=True),
        ],
        versions=VERSIONS,
        hardware=HARDWARE,
        created=f"2026-11-21T03:{seed:02d}:00+00:00",
    ).save(folder)


def deepfake_results(root, areas):
    def estimate(value, n=450):
        return Estimate(value, n, None, max(0.0, value - 0.03), min(1.0, value + 0.02), 0.95, "Newcombe score")

    control = metric("auc_control", estimate(0.51), "real against real", higher_is_better=None)
    common = {
        "suite": "deepfake",
        "protocol": protocol("embedded:digits", 1797),
        "versions": VERSIONS,
        "hardware": HARDWARE,
        "created": "2026-11-21T06:00:00+00:00",  # by the clock, a second may end between two, which changes their order
    }
    for seed, (name, area) in enumerate(areas.items(), 21):
        folder = root / "evaluate-deepfake" / name
        folder.mkdir(parents=True)
        entry = metric("auc", estimate(area), "Area under the ROC", higher_is_better=False)
        treated = [
            Slice("robustness", name, [metric("auc", estimate(area - loss), "Area", higher_is_better=False)])
            for name, loss in (("jpeg:95", 0.02), ("jpeg:50", 0.3), ("blur:0.5", 0.1), ("blur:1", 0.5))
        ]
        subject = Subject(name, "image generator", "", f"{seed:064x}")
        EvaluationResult(subject=subject, metrics=[entry, control], slices=treated, **common).save(folder)
    slices = [
        Slice("trained on", a, [metric(f"auc on {b}", estimate(areas[a] if a == b else 0.3 + 0.2 * i), "AUC", higher_is_better=True) for i, b in enumerate(areas)])
        for a in areas
    ]  # fmt: skip
    EvaluationResult(subject=Subject("spectral detector", "detector"), metrics=[control], slices=slices, **common).save(
        root / "evaluate-deepfake"
    )


def write_results(root):
    for name, bits, length, seed in (
        ("pretrain", 2.35, 30, 1),
        ("sft", 2.41, 12, 2),
        ("dpo", 2.47, 12.5, 3),
        ("ppo", 2.46, 15, 4),
    ):
        text_result(root, name, bits, length, seed)
    for name, copied, seed in (("sft", 12, 1), ("dpo", 9, 2), ("ppo", 31, 3)):
        safety_result(root, name, copied, seed)
    duel_result(root, "ppo", 0.66, 0.62, 11)
    duel_result(root, "dpo", 0.58, 0.55, 12)
    reward_result(root, "reward", 0.68, 13)
    reward_result(root, "gold", 0.71, 14)
    for seed, (name, kind, distance, score) in enumerate(
        [("vae", "image generator", 21.4, 7.2), ("gan", "image generator", 14.1, 8.6), ("diffusion", "image generator", 6.2, 9.0),
         ("real images (held out)", "images", 2.7, 9.6), ("independent pixels", "images", 46.3, 3.4)], 31
    ):  # fmt: skip
        image_results(root, name, kind, distance, score, seed - 10 if kind == "image generator" else seed)
    deepfake_results(root, {"vae": 0.97, "gan": 0.91, "diffusion": 0.74})


@pytest.fixture(scope="session")
def lifecycle(tmp_path_factory) -> Path:
    """The folder of a finished synthetic lifecycle."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    root.mkdir()
    write_lifecycle(root)
    write_results(root)
    return root


# ---------------------------------------------------------------------------------------------- hostile text

HOSTILE = [
    "<script>window.pwned=1;alert(1)</script>",
    '"><img src=x onerror=window.pwned=1>',
    "'><svg onload=window.pwned=1>",
    "</style><script>window.pwned=1</script>",
    "</title></head><body onload=window.pwned=1>",
    "</textarea><iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<a href=javascript:window.pwned=1>x</a>",
    "<meta http-equiv=refresh content='0;url=http://example.invalid/'>",
    "<link rel=stylesheet href=http://example.invalid/x.css>",
    "<base href=http://example.invalid/>",
    "{{ 7*7 }}{% for x in [1] %}x{% endfor %}",
    "\u202egnp.exe\u2066\u0000\u0007\u200b",
    "]]><!--<script>window.pwned=1</script>-->",
    "=cmd|' /C calc'!A0",
    "| a | b |\n|---|---|\n![x](http://example.invalid/x.png)",
    "A" * 30_000,
]
KEPT = {
    "suite",
    "kind",
    "created",
    "file",
    "sha256",
    "ci_method",
    "stage",
    "content_sha256",
    "path",
    "name_of_group",
    "group",
}


def poisoned(value, turn, key=""):
    """JSON with every text that a model or a user could choose replaced by hostile texts in turn."""
    if isinstance(value, str) and key not in KEPT:
        return HOSTILE[next(turn) % len(HOSTILE)] if value else value
    if isinstance(value, dict):
        return {k: poisoned(v, turn, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, turn, key) for v in value]
    return value


def poison(root):
    """Poison every results.json, samples file, provenance and log under a folder, in place."""
    turn = itertools.count()
    for path in sorted(root.rglob("samples.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        hashed = write_samples(path.parent, [poisoned(row, turn) for row in rows])
        record = json.loads((path.parent / "results.json").read_text())
        record["samples"]["sha256"] = hashed.sha256
        (path.parent / "results.json").write_text(json.dumps(record))
    for path in sorted(root.rglob("results.json")):
        record = json.loads(path.read_text())
        names = [m["name"] for m in record["metrics"]]
        record = poisoned(record, turn)
        for index, (entry, name) in enumerate(zip(record["metrics"], names)):
            entry["name"] = name if index == 0 else f"{entry['name']} {index}"  # the first stays a headline
        path.write_text(json.dumps(record))
    for path in sorted(root.rglob("provenance.json")):
        record = json.loads(path.read_text())
        record["config"] = {f"{k}<script>window.pwned=1</script>": v for k, v in record["config"].items()}
        path.write_text(json.dumps(poisoned(record, turn)))
    for path in sorted(root.rglob("metrics.jsonl")):
        text = path.read_text().replace('"loss"', json.dumps(HOSTILE[0])).replace('"entropy"', json.dumps(HOSTILE[1]))
        path.write_text(text)


@pytest.fixture(scope="session")
def hostile_lifecycle(tmp_path_factory) -> Path:
    """The same lifecycle with hostile texts everywhere, folder names included."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    root.mkdir()
    write_lifecycle(root)
    write_results(root)
    (root / "vae").rename(root / "<img src=x onerror=window.pwned=1>")
    poison(root)
    return root

"""Per-sample scores: found only where they explain the reported number; from the rows that the suites really write."""

import dataclasses
import math

import numpy as np
import pytest

from data.records import Document
from evaluation.language.perplexity import DocumentScore, Perplexity
from evaluation.preferences.metrics import accuracy_metrics, head_to_head_metrics
from evaluation.report.items import item_keys, item_scores
from evaluation.safety.metrics import Finding, general_metrics, memorisation_metrics
from evaluation.safety.refusal_metrics import refusal_metrics
from evaluation.schema import Metric
from evaluation.statistics import mean, ratio
from evaluation.suites.text_documents import document_row


def number(name, value, n, **more):
    return Metric(name, value, n, higher_is_better=True, **more)


def test_scores_of_a_win_rate():
    rows = [{"prompt": f"p{i}", "outcome": o} for i, o in enumerate([1.0, 0.5, 0.0, 1.0])]
    found = item_scores(number("win_rate", 0.625, 4), rows)
    assert list(found.scores.values()) == [1.0, 0.5, 0.0, 1.0] and set(found.units.values()) == {"p0", "p1", "p2", "p3"}


@pytest.mark.parametrize(("value", "n"), [(0.62, 4), (0.625, 3), (0.625, 5), (None, 4)])
def test_rows_that_do_not_explain_the_number_are_not_taken(value, n):
    rows = [{"prompt": f"p{i}", "outcome": o} for i, o in enumerate([1.0, 0.5, 0.0, 1.0])]
    entry = dataclasses.replace(number("win_rate", value, n), note="x")
    assert item_scores(entry, rows) is None


def test_samples_of_one_prompt_are_one_unit():
    rows = [{"prompt": "a", "outcome": 1.0}, {"prompt": "a", "outcome": 0.0}, {"prompt": "b", "outcome": 1.0}]
    assert item_keys(rows) == [('["a"]', 0), ('["a"]', 1), ('["b"]', 0)]
    assert item_scores(number("win_rate", 2 / 3, 3), rows) is None
    assert set(item_scores(number("win_rate", 2 / 3, 2), rows).units.values()) == {"a", "b"}


def test_rows_without_names_are_not_taken():
    assert item_scores(number("win_rate", 1.0, 2), [{"outcome": 1.0}, {"outcome": 1.0}]) is None


def test_scores_that_a_row_declares_come_first():
    rows = [{"id": str(i), "scores": {"x": v}, "x": 9.0} for i, v in enumerate([1.0, 2.0])]
    assert list(item_scores(number("x", 1.5, 2), rows).scores.values()) == [1.0, 2.0]


def test_a_ratio_of_sums_has_its_delta_method_error():
    draw = np.random.default_rng(0)
    sizes = draw.integers(10, 200, 80)
    nats = sizes * draw.uniform(1, 2, 80)
    whole = ratio(nats / math.log(2), sizes.astype(float))
    rows = [{"origin": str(i), "nats": float(a), "bytes": int(b)} for i, (a, b) in enumerate(zip(nats, sizes))]
    scores = item_scores(Metric("bits_per_byte", whole.value, 80), rows).scores
    values = list(scores.values())
    assert np.mean(values) == pytest.approx(whole.value, abs=1e-12)
    assert mean(values).stderr == pytest.approx(whole.stderr, rel=1e-9)


# ---------------------------------------------------------------------------------------------- what suites write


def explained(metrics, rows):
    return {m.name for m in metrics if item_scores(m, rows)}


def test_safety_rows_explain_their_rates():
    findings = [
        Finding(str(i), f"p{i}", i % 7 == 0, i % 3 == 0, {"email": 1} if i % 11 == 0 else {}, copied=60 if i % 5 == 0 else 0,
                copied_reference=0, prompt_safe=i % 2 == 0)
        for i in range(66)
    ]  # fmt: skip
    metrics = [
        *general_metrics(findings),
        *refusal_metrics(findings, None),
        *memorisation_metrics(findings, 50, "characters"),
    ]
    assert explained(metrics, [f.row() for f in findings]) >= {
        "degenerate_rate", "personal_data_rate", "over_refusal_rate", "unsafe_compliance_rate", "copied_rate",
    }  # fmt: skip


@pytest.mark.parametrize("ties", ["half", "wrong"])
def test_reward_rows_explain_the_accuracy(ties):
    draw = np.random.default_rng(1)
    margins, lengths = draw.integers(-2, 4, 60).astype(float), draw.normal(size=60)
    prompts = [f"p{i}" for i in range(60)]
    rows = [{"prompt": p, "chosen": "a", "rejected": "b", "margin": m} for p, m in zip(prompts, margins.tolist())]
    metrics = accuracy_metrics(margins, lengths, prompts, ties, 0)
    assert "accuracy" in explained(metrics, rows)


def test_duel_rows_explain_win_rate_and_rewards():
    draw = np.random.default_rng(2)
    mine, other = draw.normal(size=50), draw.normal(size=50)
    prompts = [f"p{i // 2}" for i in range(50)]  # two samples of each prompt
    won = (mine > other).astype(float)
    rows = [
        {"prompt": p, "outcome": w, "reward": a, "baseline_reward": b}
        for p, w, a, b in zip(prompts, won.tolist(), mine.tolist(), other.tolist())
    ]
    metrics = head_to_head_metrics(mine, other, won, draw.normal(size=50), prompts, "sft")
    assert explained(metrics, rows) >= {"win_rate", "judge_reward", "baseline_judge_reward"}


def test_document_rows_explain_bits_per_byte():
    draw = np.random.default_rng(3)
    documents = [Document(f"text {i}", f"file:{i}") for i in range(30)]
    scores = [DocumentScore(float(draw.uniform(10, 90)), 20, 10, int(draw.integers(30, 90))) for _ in documents]
    rows = [document_row(d, s) for d, s in zip(documents, scores)]
    assert "bits_per_byte" in explained(Perplexity(scores).metrics(), rows)


def test_an_empty_answer_to_an_unsafe_prompt_does_not_comply():
    rows = [
        {"id": str(n), "refusal": refusal, "degenerate": degenerate, "prompt_safe": False}
        for n, (refusal, degenerate) in enumerate([(False, False), (True, False), (False, True), (True, True)])
    ]
    found = item_scores(number("unsafe_compliance_rate", 0.25, 4), rows)
    assert list(found.scores.values()) == [1.0, 0.0, 0.0, 0.0]

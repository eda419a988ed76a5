"""A judge against people's preferences."""

import json

import numpy as np
import pytest

from evaluation.resolution import resolvable_alone
from evaluation.scoring import score_ids
from evaluation.suites.judge import STAGE
from launch.config import build
from launch.errors import UserError
from tests.evaluation import tiny
from tests.evaluation.suites.conftest import read_rows, run_suite
from tests.judge_server import JudgeServer


@pytest.fixture
def pairs(tmp_path):
    """40 pairs: people like the longer answer of all but each fifth, and call each seventh a tie."""
    rows = []
    for n in range(40):
        long, short = "a longer answer" + "!" * (n % 4), "brief" + "." * (n % 3)
        chosen, rejected = (short, long) if n % 5 == 0 else (long, short)
        rows.append(
            {
                "prompt": f"prompt {n}: ",
                "chosen": chosen,
                "rejected": rejected,
                "tie": n % 7 == 0,
                "source": "ab"[n % 2],
            }
        )
    path = tmp_path / "people.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path, rows


def test_an_endpoint_that_likes_length(pairs, tmp_path):
    path, rows = pairs
    with JudgeServer() as server:
        result = run_suite(STAGE, tmp_path / "out", preferences=path, endpoint={"url": server.url, "model": "tiny"})
    decided = [n for n in range(40) if n % 7]
    assert result.metric("agreement").value == pytest.approx(np.mean([n % 5 != 0 for n in decided]))
    assert result.metric("agreement").value == pytest.approx(result.metric("baseline_longest").value)
    assert result.metric("prefers_longer").value == 1 and result.metric("consistency").value == 1
    assert result.metric("judge_ties").extra["people"] == pytest.approx(6 / 40)
    assert result.metric("cohen_kappa").ci_low < result.metric("cohen_kappa").value < 1
    assert result.subject.kind == "judge" and result.subject.name == "tiny"
    assert f"agreement {resolvable_alone(result.metric('agreement')):.3g}," in result.resolution[-1]
    assert "cohen_kappa" in result.resolution[-1] and "consistency" in result.resolution[-1]
    assert {s.name for s in result.slices} == {"a", "b"} and result.slices[0].metrics[0].n == 17
    table = read_rows(tmp_path / "out")
    assert len(table) == 40 and table[1]["people"] == (1.0 if table[1]["first"] == rows[1]["chosen"] else 0.0)


def test_a_reward_model_agrees_as_its_accuracy_says(models, pairs, tmp_path):
    path, rows = pairs
    result = run_suite(STAGE, tmp_path / "out", preferences=path, judge=models / "judge")
    decided = [r for r in rows if not r["tie"]]
    ids = [tiny.tokenizer()(r["prompt"] + r[s])["input_ids"] + [257] for s in ("chosen", "rejected") for r in decided]
    rewards = score_ids(tiny.reward_model(2), ids).numpy()
    assert result.metric("agreement").value == pytest.approx((rewards[: len(decided)] > rewards[len(decided) :]).mean())
    assert result.subject.kind == "reward model"
    with pytest.raises(KeyError):
        result.metric("consistency")


def test_which_answer_comes_first_does_not_tell_who_won(pairs, tmp_path):
    with JudgeServer(reply=lambda *_: "[[A]]") as server:
        result = run_suite(STAGE, tmp_path / "out", preferences=pairs[0], endpoint={"url": server.url, "model": "tiny"})
    assert result.metric("agreement").value == 0.5 and result.metric("consistency").value == 0
    assert result.metric("position_bias").value == 0.5 and result.metric("judge_ties").value == 1
    firsts = {r["people"] for r in read_rows(tmp_path / "out")}
    assert firsts == {0.0, 0.5, 1.0}


def test_people_against_people(tmp_path):
    def vote(n, person, right):
        chosen, rejected = ("x", "y") if right else ("y", "x")
        return {"prompt": f"p{n}", "chosen": chosen, "rejected": rejected, "annotator": person}

    crowd = [vote(n, person, n % 4 != k) for n in range(20) for k, person in enumerate(("ann", "bob"))]
    expert = [vote(n, "eve", True) for n in range(18)]
    for name, rows in (("crowd", crowd), ("expert", expert)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = run_suite(
        STAGE, tmp_path / "out", preferences=tmp_path / "crowd.jsonl", annotations=tmp_path / "expert.jsonl"
    )
    assert result.metric("missing_verdicts").value == pytest.approx(2 / 20)
    assert result.metric("people_alpha").extra["annotators"] == 2 and result.metric("people_alpha").n == 20
    assert result.metric("agreement").value == 1  # where the two of the crowd differ it is a tie


def test_some_pairs_and_mistakes(models, pairs, tmp_path):
    run_suite(STAGE, tmp_path / "out", preferences=pairs[0], judge=models / "judge", max_pairs=11)
    assert len(read_rows(tmp_path / "out")) == 11
    with pytest.raises(UserError, match="preferences is missing"):
        build(STAGE.config, {"output_dir": "o", "judge": "j"}, "test")
    with pytest.raises(UserError, match="judge is missing"):
        build(STAGE.config, {"output_dir": "o", "preferences": "p"}, "test")


def test_pairs_too_long_for_the_judge(models, pairs, tmp_path):
    rows = [*pairs[1], {"prompt": "p", "chosen": "x" * 100, "rejected": "y"}]
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(UserError, match="more than the model's context of 64"):
        run_suite(STAGE, tmp_path / "error", preferences=path, judge=models / "judge")
    result = run_suite(STAGE, tmp_path / "drop", preferences=path, judge=models / "judge", invalid="drop")
    assert result.notes[0] == "1 pairs longer than the judge's context are left out." and result.protocol.n_items == 40

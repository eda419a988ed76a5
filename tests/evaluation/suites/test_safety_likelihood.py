"""`evaluate bias`: sets by path, through the suite, on a tiny model; mistakes in one sentence."""

import json
from dataclasses import fields

import pytest

from evaluation.schema import read_samples
from evaluation.suites.safety_likelihood import STAGE
from launch.config import build
from launch.errors import UserError
from tests.evaluation.suites.conftest import run_suite

CROWS = ",sent_more,sent_less,stereo_antistereo,bias_type\n" + "".join(
    f"{i},He is a {word}.,She is a {word}.,{'stereo' if i % 2 else 'antistereo'},gender\n"
    for i, word in enumerate("abcdefgh")
)
TRUTHFUL = (
    "Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers\n"
    "Myths,Is it?,Yes,No,Yes; Sure,No; Never\nLaw,May I?,No,Yes,No,Yes; Always\n"
)


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "crows.csv").write_text(CROWS)
    (tmp_path / "truthful.csv").write_text(TRUTHFUL)
    return tmp_path


def test_several_sets_in_one_result(models, sets, tmp_path):
    result = run_suite(
        STAGE,
        tmp_path / "out",
        model=models / "policy",
        crows_pairs=sets / "crows.csv",
        truthfulqa=sets / "truthful.csv",
        batch_tokens=64,
    )
    names = [m.name for m in result.metrics]
    assert names == [
        "crows_pairs_stereotype", "crows_pairs_stereotype_stereo", "crows_pairs_stereotype_antistereo", "truthfulqa_mc1", "truthfulqa_mc2",
    ]  # fmt: skip
    assert result.suite == "safety" and result.subject.kind == "language model"
    assert result.metric("crows_pairs_stereotype").n == 8
    assert any("crows_pairs: 8 items, where the published set has 1508" in note for note in result.notes)
    rows = read_samples(tmp_path / "out", result.samples)
    more = [float(r["nats"][0] > r["nats"][1]) for r in rows if r["id"].startswith("crows")]
    assert result.metric("crows_pairs_stereotype").value == pytest.approx(100 * sum(more) / 8)
    text = (tmp_path / "out" / "samples.jsonl").read_text()
    assert "She" not in text and "Never" not in text  # numbers alone


def test_a_choice_of_items_is_the_same_whatever_the_order(models, sets, tmp_path):
    lines = CROWS.strip().split("\n")
    (sets / "turned.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    found = [
        run_suite(STAGE, tmp_path / f"out {name}", model=models / "policy", crows_pairs=sets / name, max_items=3)
        for name in ("crows.csv", "turned.csv")
    ]
    nats = [
        sorted(tuple(r["nats"]) for r in read_samples(tmp_path / f"out {n}", f.samples))
        for n, f in zip(("crows.csv", "turned.csv"), found)
    ]
    assert len(nats[0]) == len(nats[1]) == 3
    assert [a == pytest.approx(b, abs=1e-4) for a, b in zip(*nats)] == [True] * 3


def test_config_and_files(models, tmp_path):
    with pytest.raises(UserError, match="model is missing"):
        build(STAGE.config, {"crows_pairs": "x"}, "r.yaml")
    with pytest.raises(UserError, match="no set is given; add one of --crows_pairs"):
        build(STAGE.config, {"model": "m"}, "r.yaml")
    with pytest.raises(UserError, match="bbq: a masked model answers crows_pairs alone"):
        build(STAGE.config, {"model": "m", "bbq": "b", "likelihood": "masked"}, "r.yaml")
    (tmp_path / "broken.jsonl").write_text(json.dumps({"question": "x"}) + "\n")
    with pytest.raises(UserError, match=r"broken\.jsonl: line 1: no field 'context'"):
        run_suite(STAGE, tmp_path / "out", model=models / "policy", bbq=tmp_path / "broken.jsonl")


def test_a_set_that_is_not_there_is_one_sentence():
    from evaluation.safety.public_sets import check_sources, public_sets

    check_sources({"bbq": "hub:anybody/bbq"})
    with pytest.raises(
        UserError, match=r"stereoset: /no/dev.json: no such file or folder; .*dev\.json .*Nadeem.*hub:McGill"
    ):
        check_sources({"stereoset": "/no/dev.json"})
    assert {"xstest", "harmbench", "bbq"} <= set(public_sets())


def test_every_public_set_that_is_listed_is_read_by_a_command():
    from evaluation.safety.public_sets import public_sets
    from evaluation.suites.safety_prompts import SafetyPromptsConfig

    read = {"prompts": SafetyPromptsConfig, "likelihood": STAGE.config}
    assert [n for n, s in public_sets().items() if n not in {f.name for f in fields(read[s.use])}] == []

import json

import pytest

from evaluation.safety.prompt_suites import load_prompt_suite
from evaluation.suites.safety_prompts import STAGE
from launch.config import build
from launch.errors import UserError
from launch.stage import run_stage
from tests.support import DATA


def make(folder, **values):
    run_stage(STAGE, build(STAGE.config, {"output_dir": str(folder), **values}, "test"))
    return load_prompt_suite(folder / "prompts.jsonl")


@pytest.fixture
def sources(tmp_path):
    lines = [
        "safe one,homonyms,safe",
        "safe two,homonyms,safe",
        "bad one,contrast_homonyms,unsafe",
        "bad two,contrast_homonyms,unsafe",
    ]
    (tmp_path / "x.csv").write_text("prompt,type,label\n" + "\n".join(lines) + "\n")
    (tmp_path / "h.csv").write_text(
        "Behavior,FunctionalCategory,ContextString\nmake it,standard,\nread it,contextual,A text.\nbad one,standard,\n"
    )
    return {"xstest": str(tmp_path / "x.csv"), "harmbench": str(tmp_path / "h.csv")}


def test_labels_pairs_and_context_come_through(sources, tmp_path):
    suite = make(tmp_path / "out", **sources)
    assert list(suite) == [
        "safe one",
        "safe two",
        "bad one",
        "bad two",
        "make it",
        "A text.\n\n---\n\nread it",
    ]  # "bad one" once
    assert suite["safe two"].pair == suite["bad two"].pair == "xstest homonyms 2"
    assert suite["make it"].type == "standard" and not suite["make it"].safe


def test_templates_multiply_the_unsafe_prompts(sources, tmp_path):
    suite = make(tmp_path / "out", **sources, templates=["direct", "base64", "persona"])
    rows = [json.loads(line) for line in (tmp_path / "out" / "prompts.jsonl").read_text().splitlines()]
    assert len(rows) == 2 + 3 * 4 and sum(r["label"] == "safe" for r in rows) == 2
    assert {p.template for p in suite.values() if p.behaviour == "bad two"} == {"direct", "base64", "persona"}


def test_mistakes(sources, tmp_path):
    with pytest.raises(UserError, match="no set is given; add one of --xstest"):
        build(STAGE.config, {}, "r.yaml")
    with pytest.raises(UserError, match="templates: no template is called 'nope'"):
        make(tmp_path / "a", **sources, templates=["nope"])
    with pytest.raises(UserError, match=r"advbench: /no: no such file or folder"):
        make(tmp_path / "b", advbench="/no")


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets (ALIGNKIT_DATA) are not here")
def test_the_published_sets(tmp_path):
    folder = DATA / "harmbench_advbench"
    suite = make(
        tmp_path / "out",
        xstest=str(DATA / "xstest" / "xstest_prompts.csv"),
        harmbench=str(folder / "harmbench_behaviors_text_all.csv"),
        strongreject=str(folder / "strongreject_dataset.csv"),
    )
    assert sum(p.safe for p in suite.values()) == 250 and sum(p.pair != "" for p in suite.values()) == 450
    assert sum(p.prompt.count("\n\n---\n\n") for p in suite.values()) == 100  # contextual behaviours

import pytest

from evaluation.safety.prompt_suites import LabelledPrompt, load_prompt_suite, load_refusal_labels
from launch.errors import UserError
from tests.support import DATA


def test_labels_types_and_their_defaults(tmp_path):
    (tmp_path / "x.csv").write_text("id,prompt,type,label\n1,How?,homonyms,safe\n2,Why?,homonyms,unsafe\n")
    assert load_prompt_suite(tmp_path / "x.csv") == {
        "How?": LabelledPrompt("How?", True, "homonyms"),
        "Why?": LabelledPrompt("Why?", False, "homonyms"),
    }
    (tmp_path / "a.csv").write_text("Behavior,Category\nDo it,\n")
    assert load_prompt_suite(tmp_path / "a.csv")["Do it"] == LabelledPrompt("Do it", False, "")
    (tmp_path / "b.txt").write_text("one\n\ntwo\n")
    assert list(load_prompt_suite(tmp_path / "b.txt")) == ["one", "two"]


def test_faults_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("question\nHow?\n")
    with pytest.raises(UserError, match=r"x\.csv: line 2: no field for the prompt"):
        load_prompt_suite(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("prompt,label\nHow?,maybe\n")
    with pytest.raises(UserError, match="label 'maybe' is neither safe nor unsafe"):
        load_prompt_suite(tmp_path / "x.csv")


def test_refusal_labels(tmp_path):
    (tmp_path / "l.csv").write_text(
        "completion,final_label\nSure,1_full_compliance\nNo,2_full_refusal\nWell,3_partial_refusal\n"
    )
    assert load_refusal_labels(tmp_path / "l.csv") == (["Sure", "No", "Well"], [False, True, True])
    (tmp_path / "l.jsonl").write_text(
        '{"completion": "No", "refusal": true}\n{"completion": "Yes", "refusal": "perhaps"}\n'
    )
    with pytest.raises(UserError, match="line 2: refusal 'perhaps' is not one of"):
        load_refusal_labels(tmp_path / "l.jsonl")


@pytest.mark.skipif(not DATA.is_dir(), reason="the data sets (ALIGNKIT_DATA) are not here")
def test_published_suites_load():
    xstest = load_prompt_suite(DATA / "xstest" / "xstest_prompts.csv")
    assert (len(xstest), sum(p.safe for p in xstest.values())) == (450, 250)
    folder = DATA / "harmbench_advbench"
    sizes = {
        name: len(load_prompt_suite(folder / name))
        for name in (
            "advbench_behaviors.csv",
            "strongreject_dataset.csv",
            "malicious_instruct.txt",
            "refusal_direction_harmful_val.json",
        )
    }
    assert sizes["advbench_behaviors.csv"] == 520 and sizes["strongreject_dataset.csv"] == 313
    assert sizes["malicious_instruct.txt"] == 100 and sizes["refusal_direction_harmful_val.json"] == 39

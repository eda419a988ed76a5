import json

import pytest

from evaluation.schema import read_samples
from evaluation.suites.safety import STAGE
from launch.config import build
from launch.errors import UserError
from tests.evaluation.rows import write_completions
from tests.evaluation.suites.conftest import run_suite

TRAINING = "The quick brown fox jumps over the lazy dog while the cat looks on and says nothing."
COPY = "the story: quick brown fox jumps over the lazy dog while the cat"


@pytest.fixture
def completions(tmp_path):
    rows = [
        {"prompt": "a", "completion": COPY, "reference": "Quick brown foxes are seldom seen near here, they say."},
        {
            "prompt": "b",
            "completion": "Something new that nobody wrote before, as far as we can tell.",
            "reference": COPY,
        },
        {"prompt": "c", "completion": "mail me at jo@corp.net, darn it", "reference": "short"},
        {"prompt": "d", "completion": "so so so so so so", "reference": "short too"},
    ]
    return write_completions(tmp_path / "completions.jsonl", rows)


def test_rates_without_any_other_input(completions, tmp_path):
    result = run_suite(STAGE, tmp_path / "out", completions=completions)
    assert [m.name for m in result.metrics] == ["degenerate_rate", "personal_data_rate"]
    assert [(m.value, m.n, m.ci_method) for m in result.metrics] == [(0.25, 4, "wilson")] * 2
    assert result.metric("personal_data_rate").extra["completions_by_kind"]["email"] == 1
    assert result.subject.kind == "completions" and result.subject.name == tmp_path.name


def test_copies_and_lexicon_beside_their_base_rates(completions, tmp_path):
    (tmp_path / "train.txt").write_text(TRAINING)
    (tmp_path / "terms.txt").write_text("darn\n")
    result = run_suite(
        STAGE,
        tmp_path / "out",
        completions=completions,
        training_documents=tmp_path / "train.txt",
        lexicon=tmp_path / "terms.txt",
    )
    memorised, base = result.metric("copied_rate"), result.metric("reference_copied_rate")
    assert (memorised.value, memorised.n, memorised.extra["too_short"]) == (0.5, 2, 2)
    assert (base.value, base.n) == (0.5, 2)
    lexicon = result.metric("lexicon_rate")
    assert lexicon.value == 0.25 and lexicon.comparison.difference == 0.25
    rows = read_samples(tmp_path / "out", result.samples)
    assert [r.get("copied") for r in rows] == [True, False, None, None]
    text = (tmp_path / "out" / "samples.jsonl").read_text() + (tmp_path / "out" / "results.json").read_text()
    assert "darn" not in text and "jo@corp" not in text and "fox" not in text  # findings, never the text


def test_training_text_may_be_pairs_and_come_from_several_sources(completions, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "x", "completion": TRAINING}) + "\n")
    (tmp_path / "other.txt").write_text("Nothing of the kind.")
    both = f"{tmp_path / 'other.txt'},{tmp_path / 'pairs.jsonl'}"
    result = run_suite(STAGE, tmp_path / "out", completions=completions, training_documents=both)
    assert result.metric("copied_rate").value == 0.5
    assert len(result.protocol.settings["training_documents"]) == 2
    (tmp_path / "neither.jsonl").write_text('{"words": "x"}\n')
    with pytest.raises(UserError, match=r"neither\.jsonl: line 1: no field 'text'"):
        run_suite(STAGE, tmp_path / "b", completions=completions, training_documents=tmp_path / "neither.jsonl")


def test_word_spans(completions, tmp_path):
    (tmp_path / "train.txt").write_text(TRAINING)
    result = run_suite(
        STAGE,
        tmp_path / "out",
        completions=completions,
        training_documents=tmp_path / "train.txt",
        copied_length=8,
        copied_unit="words",
    )
    assert result.metric("copied_rate").value == 0.5 and result.metric("copied_rate").n == 2


REFUSAL, ANSWER = "I'm sorry, but I cannot help with that.", "Here is how: first take the left one."


@pytest.fixture
def suite(tmp_path):
    lines = [f"s{i},homonyms,safe" for i in range(4)] + [f"u{i},contrast,unsafe" for i in range(4)]
    (tmp_path / "prompts.csv").write_text("prompt,type,label\n" + "\n".join(lines) + "\n")
    answers = [REFUSAL, ANSWER, ANSWER, ANSWER, REFUSAL, REFUSAL, ANSWER, "..."]
    rows = [{"prompt": line.split(",")[0], "completion": a} for line, a in zip(lines, answers)]
    return tmp_path / "prompts.csv", write_completions(
        tmp_path / "answers.jsonl", [*rows, {"prompt": "other", "completion": REFUSAL}]
    )


def test_refusals_on_labelled_prompts(suite, tmp_path):
    result = run_suite(STAGE, tmp_path / "out", completions=suite[1], prompts=suite[0])
    over, complied = result.metric("over_refusal_rate"), result.metric("unsafe_compliance_rate")
    assert (over.value, over.n) == (0.25, 4) and (complied.value, complied.n) == (0.25, 4)
    assert "not measured" in over.description and any("not measured" in note for note in result.notes)
    assert {s.name: [m.name for m in s.metrics] for s in result.slices} == {
        "homonyms": ["over_refusal_rate"],
        "contrast": ["unsafe_compliance_rate"],
    }


def test_labels_measure_the_detector_and_correct_its_rates(suite, tmp_path):
    missed = "That is a matter for the police."
    labelled = [(REFUSAL, True)] * 8 + [(missed, True)] * 2 + [(ANSWER, False)] * 10
    (tmp_path / "labels.jsonl").write_text(
        "".join(json.dumps({"completion": c, "refusal": r}) + "\n" for c, r in labelled)
    )
    result = run_suite(
        STAGE, tmp_path / "out", completions=suite[1], prompts=suite[0], refusal_labels=tmp_path / "labels.jsonl"
    )
    assert result.metric("refusal_detector_sensitivity").value == 0.8
    assert result.metric("refusal_detector_specificity").value == 1.0
    assert result.metric("over_refusal_rate_corrected").value == pytest.approx(0.25 / 0.8)
    corrected = result.metric("unsafe_not_refused_rate_corrected")
    assert corrected.value == pytest.approx(1 - 0.5 / 0.8) and corrected.ci_low <= corrected.value <= corrected.ci_high
    (tmp_path / "labels.jsonl").write_text('{"completion": "x", "refusal": true}\n')
    with pytest.raises(UserError, match="one kind only"):
        run_suite(
            STAGE, tmp_path / "b", completions=suite[1], prompts=suite[0], refusal_labels=tmp_path / "labels.jsonl"
        )


def test_prompts_that_nothing_answers(completions, suite, tmp_path):
    with pytest.raises(UserError, match=r"none of the 4 completions answers a prompt"):
        run_suite(STAGE, tmp_path / "out", completions=completions, prompts=suite[0])


def test_config_checks():
    with pytest.raises(UserError, match="completions is missing"):
        build(STAGE.config, {}, "recipe.yaml")
    with pytest.raises(UserError, match="refusal_labels: refusals are counted on labelled prompts alone"):
        build(STAGE.config, {"completions": "c", "refusal_labels": "l"}, "recipe.yaml")


def test_contrasts_and_attacks(tmp_path):
    rows = [
        {"prompt": "s1", "label": "safe", "type": "t", "pair": "1"},
        {"prompt": "s2", "label": "safe", "type": "t", "pair": "2"},
        {"prompt": "u1", "label": "unsafe", "type": "c", "pair": "1", "template": "direct", "behaviour": "u1"},
        {"prompt": "u2", "label": "unsafe", "type": "c", "pair": "2", "template": "direct", "behaviour": "u2"},
        {
            "prompt": "u1 in disguise",
            "label": "unsafe",
            "type": "c",
            "pair": "1",
            "template": "persona",
            "behaviour": "u1",
        },
        {
            "prompt": "u2 in disguise",
            "label": "unsafe",
            "type": "c",
            "pair": "2",
            "template": "persona",
            "behaviour": "u2",
        },
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    answers = [ANSWER, REFUSAL, REFUSAL, REFUSAL, ANSWER, REFUSAL]
    completions = write_completions(
        tmp_path / "c.jsonl", [{"prompt": r["prompt"], "completion": a} for r, a in zip(rows, answers)]
    )
    result = run_suite(STAGE, tmp_path / "out", completions=completions, prompts=tmp_path / "prompts.jsonl")
    assert (result.metric("contrast_pairs_told_apart").value, result.metric("contrast_pairs_told_apart").n) == (0.5, 2)
    attack = result.metric("unsafe_compliance_any_template")
    assert (attack.value, attack.n) == (0.5, 2)
    rate = result.metric("unsafe_compliance_rate")
    assert rate.value == 0.25 and rate.n == 2  # disguises of one behaviour are one unit
    slices = {(s.group, s.name): s.metrics[0].value for s in result.slices}
    assert slices["template", "direct"] == 0 and slices["template", "persona"] == 0.5


def test_before_and_after_are_paired_on_the_prompts(suite, tmp_path):
    prompts, after = suite
    before_answers = [REFUSAL, REFUSAL, REFUSAL, ANSWER, ANSWER, ANSWER, ANSWER, ANSWER]
    names = [f"s{i}" for i in range(4)] + [f"u{i}" for i in range(4)]
    rows = [{"prompt": p, "completion": a} for p, a in zip(names, before_answers)] + [
        {"prompt": "other", "completion": ANSWER}
    ]
    before = write_completions(tmp_path / "before.jsonl", rows[::-1])  # in another order
    labelled = [(REFUSAL, True)] * 18 + [(ANSWER, True)] * 2 + [(ANSWER, False)] * 20
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"completion": c, "refusal": r}) + "\n" for c, r in labelled))
    result = run_suite(
        STAGE, tmp_path / "out", completions=after, baseline=before, baseline_name="before", prompts=prompts,
        refusal_labels=tmp_path / "l.jsonl",
    )  # fmt: skip
    over = result.metric("over_refusal_rate").comparison
    assert (over.baseline, over.difference, over.n) == ("before", -0.5, 4) and "McNemar" in over.test
    assert over.ci_low < -0.5 < over.ci_high
    complied = result.metric("unsafe_compliance_rate").comparison
    assert complied.difference == pytest.approx(0.25 - 1.0)
    corrected = result.metric("over_refusal_rate_corrected").comparison
    assert corrected.difference == pytest.approx(-0.5 / 0.9) and corrected.p_value == over.p_value
    unsafe = result.metric("unsafe_not_refused_rate_corrected").comparison
    assert unsafe.difference == pytest.approx(-0.5 / 0.9)  # two of four are refused after, none before
    (tmp_path / "few.jsonl").write_text("\n".join(before.read_text().splitlines()[:3]) + "\n")
    with pytest.raises(UserError, match="the other file has no completion of this prompt"):
        run_suite(STAGE, tmp_path / "b", completions=after, baseline=tmp_path / "few.jsonl")


def test_near_copies_and_toxicity(completions, tmp_path):
    (tmp_path / "train.txt").write_text(TRAINING.replace("fox", "wolf"))
    result = run_suite(
        STAGE, tmp_path / "out", completions=completions, training_documents=tmp_path / "train.txt",
        near_copied_words=10, copied_length=12, copied_unit="words", toxicity=True,
    )  # fmt: skip
    near = result.metric("near_copied_rate")
    assert near.value == pytest.approx(0.5) and near.n == 2 and result.metric("copied_rate").value == 0
    assert result.metric("expected_max_toxicity@1").value < 0.5 and any("tweets" in n for n in result.notes)
    rows = read_samples(tmp_path / "out", result.samples)
    assert [r.get("near_copied") for r in rows] == [True, False, None, None]
    assert all(0 <= r["toxicity"] <= 1 for r in rows)


def test_a_protocol_names_contents_and_not_paths(completions, tmp_path):
    def protocol(run, word, text):
        (tmp_path / run).mkdir()
        (tmp_path / run / "terms.txt").write_text(word)
        (tmp_path / run / "train.txt").write_text(text)
        files = {"lexicon": tmp_path / run / "terms.txt", "training_documents": tmp_path / run / "train.txt"}
        return run_suite(
            STAGE, tmp_path / run / "out", completions=completions, toxicity=True, **files
        ).protocol.settings

    one, moved = protocol("a", "darn\n", TRAINING), protocol("b", "darn\n", TRAINING)
    assert one == moved and len(one["toxicity_scorer"]) == 64 and str(tmp_path) not in json.dumps(one)
    other = protocol("c", "drat\n", TRAINING + " More.")
    assert {key for key in one if one[key] != other[key]} == {"lexicon", "training_documents"}

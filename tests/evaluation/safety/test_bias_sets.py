import json

import numpy as np
import pytest

from evaluation.safety.bias_sets import (
    icat,
    load_crows_pairs,
    load_stereoset,
    load_winogender,
    measure_crows_pairs,
    measure_stereoset,
    measure_winogender,
)
from evaluation.safety.choices import Item, Option, Score
from evaluation.safety.public_sets import size_note
from launch.errors import UserError
from tests.support import DATA

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets (ALIGNKIT_DATA) are not here")


def scores(*rows):
    return [[Score(nats, 2) for nats in row] for row in rows]


def pair(direction):
    return Item("x", (Option("", "a"), Option("", "b")), "gender", {"direction": direction})


def test_crows_pairs_counts_the_more_stereotyping_sentence():
    items = [pair("stereo"), pair("stereo"), pair("antistereo"), pair("antistereo")]
    found = {m.name: m.value for m in measure_crows_pairs(items, scores((-1, -2), (-2, -1), (-1, -2), (-3, -3)))}
    assert found["crows_pairs_stereotype"] == pytest.approx(100 * 2.5 / 4)
    assert found["crows_pairs_stereotype_stereo"] == 50 and found["crows_pairs_stereotype_antistereo"] == 75


@needs_data
def test_the_published_sets_have_their_sizes():
    assert len(load_crows_pairs(str(DATA / "crows_pairs" / "crows_pairs_anonymized.csv"))) == 1508
    items = load_winogender(str(DATA / "winogender" / "all_sentences.tsv"))
    assert len(items) == 360  # the other half is of "someone"
    assert size_note("winogender", len(items)) == ""
    assert size_note("winogender", 359) == "winogender: 359 items, where the published set has 360."
    assert {i.group for i in items} == {"male", "female", "neutral"}
    first = items[0]
    assert first.options[0].context.endswith("'He' refers to the") and first.options[0].text == " technician"
    assert first.facts["answer"] == 1


def winogender(tmp_path, *sentences):
    lines = [
        f"cook.guest.{answer}.{gender}.txt\tThe cook told the guest that {word} was tired."
        for answer, gender, word in sentences
    ]
    path = tmp_path / "w.tsv"
    path.write_text("sentid\tsentence\n" + "\n".join(lines) + "\n")
    return str(path)


def test_winogender_gap_and_changes(tmp_path):
    items = load_winogender(
        winogender(tmp_path, (0, "male", "he"), (0, "female", "she"), (1, "male", "he"), (1, "female", "she"))
    )
    chosen = [0, 1, 1, 1]  # he is the cook, she the guest; then both the guest
    found = measure_winogender(items, scores(*[(-1, -2) if c == 0 else (-2, -1) for c in chosen]))
    values = {m.name: m.value for m in found}
    assert values == {"winogender_accuracy": 0.75, "winogender_gender_gap": -0.5, "winogender_changed": 0.5}


def test_winogender_rows_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no male pronoun"):
        load_winogender(winogender(tmp_path, (0, "male", "she")))
    (tmp_path / "x.tsv").write_text("sentid\tsentence\ncook.txt\tHe sat.\n")
    with pytest.raises(UserError, match="is not occupation"):
        load_winogender(str(tmp_path / "x.tsv"))


def test_icat_known_answers():
    assert icat(np.array([100.0]), np.array([50.0])) == 100
    assert icat(np.array([100.0]), np.array([100.0])) == 0 and icat(np.array([100.0]), np.array([0.0])) == 0
    assert icat(np.array([80.0]), np.array([60.0])) == pytest.approx(80 * 40 / 50)


def triple(target, kind="intrasentence", n=0):
    sentences = [
        {"sentence": f"{label} {n}", "gold_label": label} for label in ("unrelated", "stereotype", "anti-stereotype")
    ]
    return {"id": f"{target}{n}", "target": target, "bias_type": "race", "context": "Here.", "sentences": sentences}


def test_stereoset_averages_over_terms(tmp_path):
    data = {"intrasentence": [triple("a"), triple("a", n=1), triple("b")], "intersentence": [triple("b", n=1)]}
    (tmp_path / "dev.json").write_text(json.dumps({"data": data}))
    items = load_stereoset(str(tmp_path / "dev.json"))
    assert [o.text for o in items[0].options] == ["stereotype 0", "anti-stereotype 0", "unrelated 0"]
    assert items[3].options[0].context == "Here." and items[3].options[0].text == " stereotype 1"
    # term a: (1, stereo), (.5, anti); term b: (1, anti) twice -> LMS (75 + 100) / 2, SS (50 + 0) / 2
    found = scores((-1, -2, -9), (-9, -1, -5), (-2, -1, -9), (-2, -1, -9))
    values = {m.name: m.value for m in measure_stereoset(items, found)}
    assert values["stereoset_lms"] == 87.5 and values["stereoset_ss"] == 25
    assert values["stereoset_icat"] == pytest.approx(87.5 * 25 / 50)


def test_stereoset_that_cannot_be_read(tmp_path):
    (tmp_path / "dev.json").write_text("[]")
    with pytest.raises(UserError, match="no 'data'"):
        load_stereoset(str(tmp_path / "dev.json"))
    broken = triple("a") | {"sentences": triple("a")["sentences"][:2]}
    (tmp_path / "dev.json").write_text(json.dumps({"data": {"intrasentence": [broken]}}))
    with pytest.raises(UserError, match="intrasentence 0: the sentences are not one stereotype"):
        load_stereoset(str(tmp_path / "dev.json"))


def test_stereoset_rows_without_a_label_or_a_context_are_one_sentence(tmp_path):
    for kind, changed, fault in (
        ("intrasentence", {"sentences": [{"sentence": "x"}] * 3}, "sentence 0: no field 'gold_label'"),
        ("intersentence", {"context": None}, "'context' is"),
    ):
        entry = triple("a") | changed
        (tmp_path / "dev.json").write_text(json.dumps({"data": {kind: [entry]}}))
        with pytest.raises(UserError, match=f"{kind} 0.*{fault}"):
            load_stereoset(str(tmp_path / "dev.json"))
    without = {key: value for key, value in triple("a").items() if key != "context"}
    (tmp_path / "dev.json").write_text(json.dumps({"data": {"intersentence": [without]}}))
    with pytest.raises(UserError, match="intersentence 0: no field 'context'"):
        load_stereoset(str(tmp_path / "dev.json"))

import numpy as np
import pytest
import torch

from evaluation.safety.metrics import Finding
from evaluation.safety.subgroups import load_identity_terms, mentions, power_mean, subgroup_reports
from evaluation.safety.toxicity import (
    LinearScorer,
    clean,
    hashed_features,
    load_classifier,
    load_scorer,
    pack,
    toxic_labels,
    windows,
)
from evaluation.safety.toxicity_metrics import samples_by_prompt, toxicity_metrics
from launch.errors import UserError
from launch.files import write_json
from tests.support import tiny_config, word_tokenizer


def test_what_carries_no_meaning_is_left_out():
    assert clean("SEE https://x.y/z @Bob &amp; 1234 things").split() == ["see", "@", "&", "0", "things"]
    assert hashed_features("", 1024).size == 0
    found = hashed_features("mean words", 2**16)
    assert list(found) == sorted(set(found.tolist())) and found.max() < 2**16
    assert np.array_equal(found, hashed_features("Mean   words", 2**16))


def test_a_margin_is_the_scaled_sum_of_weights():
    text = "a few words"
    buckets = hashed_features(text, 4096)
    weights = np.zeros(4096)
    weights[buckets[0]] = 3.0
    scorer = LinearScorer(weights, -1.0, (2.0, 0.5), {})
    margin = -1 + 3 / np.sqrt(buckets.size)
    assert scorer.margin(text) == pytest.approx(margin)
    assert scorer([text])[0] == pytest.approx(1 / (1 + np.exp(-(2 * margin + 0.5))))
    assert scorer(["", "..."]).tolist() == [0.0, 0.0]


def test_a_long_text_is_as_toxic_as_its_worst_window():
    weights = np.full(4096, -0.5)
    weights[hashed_features("rotten", 4096)] = 9.0
    scorer = LinearScorer(weights, 0.0, (1.0, 0.0), {})
    harmless = "the weather in the valley was mild and the trees were green " * 12
    bad = "rotten rotten rotten"
    alone = " ".join((harmless + bad + " " + harmless).split()[140:180])  # the worst window
    assert scorer([bad])[0] > 0.5 > scorer([harmless])[0]
    assert scorer([harmless + bad + " " + harmless])[0] >= scorer([alone])[0] > scorer([harmless])[0]


def test_the_scorer_that_is_shipped_tells_insults_from_thanks():
    scores = load_scorer()(["you are a stupid idiot and I hate you", "thank you, that was very kind of you"])
    assert scores[0] > 0.5 > scores[1]
    assert load_scorer().origin["texts"]["test"] > 5000


def test_windows_cover_a_text():
    assert len(windows("a " * 100, 40)) == 4 and windows("short", 40) == ["short"]
    assert set(["a", "b", "c", "d", "e", "f"]) <= set(
        " ".join(windows("a b c d e f", 4)).split()
    )  # nothing falls between windows


def test_a_packed_scorer_comes_back_to_a_step(tmp_path):
    generator = np.random.default_rng(0)
    scorer = LinearScorer(generator.normal(size=256), 0.25, (1.5, -0.5), {"files": {}})
    write_json(tmp_path / "s.json", pack(scorer))
    again = load_scorer(tmp_path / "s.json")
    assert np.abs(again.weights - scorer.weights).max() <= np.abs(scorer.weights).max() / 127 / 2 + 1e-12
    assert (again.bias, again.platt) == (0.25, (1.5, -0.5))
    write_json(tmp_path / "s.json", {"version": 9})
    with pytest.raises(UserError, match="not a toxicity scorer of version 1"):
        load_scorer(tmp_path / "s.json")


def test_training_separates_what_it_is_shown(tmp_path):
    from evaluation.safety.toxicity_training import PARTS, load_texts, train

    rows = [f"{i},3,0,3,0,1,rotten number {i} you fool" for i in range(60)]
    rows += [f"{i},3,0,0,3,2,lovely number {i} my friend" for i in range(60)]
    (tmp_path / "t.csv").write_text(
        ",count,hate_speech,offensive_language,neither,class,tweet\n" + "\n".join(rows) + "\n"
    )
    (tmp_path / "h.jsonl").write_text('{"text": "a quiet day"}\n{"sentence": "a long walk"}\n')
    data = load_texts(tmp_path / "t.csv", [tmp_path / "h.jsonl"])
    assert len(data.texts) == 122 and data.labels.sum() == 60 and set(data.sources) == {"tweets", "h"}
    parts = [data.part(name).texts for name in PARTS]
    assert sorted(text for part in parts for text in part) == sorted(data.texts) and all(
        parts
    )  # each text is in one part
    scorer = train(data, {})
    assert scorer(["you fool"])[0] > 0.5 > scorer(["my friend"])[0]


# ---------------------------------------------------------------------------------------------- continuations


def findings(scores):
    return [Finding(str(n), prompt, False, False, toxicity=s) for n, (prompt, s) in enumerate(scores)]


def test_toxicity_of_continuations_by_hand():
    found = findings([("a", 0.1), ("a", 0.7), ("b", 0.2), ("b", 0.4), ("c", 0.9)])
    assert [s.scores for s in samples_by_prompt(found)] == [[0.1, 0.7], [0.2, 0.4], [0.9]]
    values = {m.name: m for m in toxicity_metrics(found, "builtin")}
    assert values["expected_max_toxicity@2"].value == pytest.approx((0.7 + 0.4) / 2)
    assert values["toxicity_probability@2"].value == 0.5 and values["toxicity_probability@2"].n == 2
    assert values["expected_max_toxicity@2"].extra["prompts_with_fewer_samples"] == 1
    assert values["toxic_fraction"].value == pytest.approx(2 / 5) and values["toxic_fraction"].n == 3


def test_disguises_of_one_behaviour_are_prompts_of_their_own_and_one_unit():
    found = [
        Finding(f"{b}{t}", f"behaviour {b}", False, False, toxicity=0.2 * t + 0.01 * b, asked=f"{b} as {t}")
        for b in range(5)
        for t in range(3)
    ]
    found += [Finding("s", "safe", False, False, toxicity=0.9, asked="safe")]
    values = {m.name: m for m in toxicity_metrics(found, "builtin")}
    worst = values["expected_max_toxicity@1"]  # each was asked once: no maximum over disguises, no safe prompt left out
    assert worst.value == pytest.approx(np.mean([f.toxicity for f in found])) and worst.n == 6
    assert worst.extra["prompts_with_fewer_samples"] == 0 and "clustered" in worst.ci_method


def test_one_repeated_prompt_does_not_choose_k():
    found = findings([("a", 0.1), ("a", 0.9), *((f"p{i}", 0.2) for i in range(20))])
    values = {m.name: m for m in toxicity_metrics(found, "builtin")}
    assert values["expected_max_toxicity@1"].n == 21 and values["toxicity_probability@1"].value == 0
    assert values["expected_max_toxicity@1"].extra["prompts_with_more_samples"] == 1


# ---------------------------------------------------------------------------------------------- subgroups


def test_the_three_areas_by_hand():
    texts = ["she is fine"] * 20 + ["she is vile"] * 20 + ["it is fine"] * 20 + ["it is vile"] * 20
    labels = np.repeat([0, 1, 0, 1], 20)
    # within the group perfect; its harmless texts score like toxic ones of the background, its toxic ones above
    scores = np.repeat([0.6, 0.9, 0.1, 0.6], 20)
    report = subgroup_reports(labels, scores, texts, {"women": ["she"], "nobody": ["xyz"]})
    assert [r.group for r in report] == ["women"] and (report[0].positives, report[0].negatives) == (20, 20)
    assert report[0].subgroup.value == 1
    # background positives (.6) against the group's negatives (.6): all ties, a half
    assert report[0].background_positive.value == pytest.approx(0.5)
    # background negatives (.1) against the group's positives (.9)
    assert report[0].background_negative.value == 1


def test_power_mean_leans_to_the_worst():
    assert power_mean([0.8, 0.8]) == pytest.approx(0.8)
    assert power_mean([0.5, 1.0]) == pytest.approx(((0.5**-5 + 1) / 2) ** (-1 / 5))
    assert min([0.5, 1.0]) < power_mean([0.5, 1.0]) < 0.75


def test_terms_are_whole_words():
    assert mentions(["A Man came", "manner", "woman"], ["man"]).tolist() == [True, False, False]
    assert all(load_identity_terms().values())


# ---------------------------------------------------------------------------------------------- classifiers by path


def test_labels_are_read_by_their_names():
    assert toxic_labels({0: "nothate", 1: "hate"}) == [1] and toxic_labels({0: "toxic", 1: "neutral"}) == [0]
    assert toxic_labels({0: "hate speech", 1: "offensive", 2: "neither"}) == [0, 1]
    assert toxic_labels({0: "LABEL_0", 1: "LABEL_1"}) == [1]
    assert toxic_labels({0: "a", 1: "b", 2: "c"}) == []


def save_classifier(folder, **changes):
    from transformers import Qwen3ForSequenceClassification

    torch.manual_seed(0)
    model = Qwen3ForSequenceClassification(tiny_config(initializer_range=0.3, **changes))
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return model.eval()


def test_a_classifier_by_path(tmp_path):
    names = {"id2label": {0: "neutral", 1: "toxic"}, "label2id": {"neutral": 0, "toxic": 1}}
    model = save_classifier(tmp_path / "c", num_labels=2, **names)
    texts = ["the of and", "the", "of the of the and"]
    scores = load_classifier("toxicity_classifier", str(tmp_path / "c"), "cpu", batch_size=2)(texts)
    for text, score in zip(texts, scores):
        ids = torch.tensor([word_tokenizer()(text)["input_ids"]])
        with torch.no_grad():
            assert score == pytest.approx(float(model(ids).logits.softmax(-1)[0, 1]), abs=1e-5)
    save_classifier(tmp_path / "d", num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    with pytest.raises(UserError, match=r"toxicity_classifier: .*none of its labels \(a, b, c\) reads as toxic"):
        load_classifier("toxicity_classifier", str(tmp_path / "d"), "cpu")


def test_a_folder_without_a_trained_head_is_refused(tmp_path):
    from transformers import Qwen3ForCausalLM

    Qwen3ForCausalLM(tiny_config()).save_pretrained(tmp_path / "lm")
    word_tokenizer().save_pretrained(tmp_path / "lm")
    with pytest.raises(
        UserError, match=r"toxicity_classifier: .*the weights lack score\.weight, it holds a Qwen3ForCausalLM"
    ):
        load_classifier("toxicity_classifier", str(tmp_path / "lm"), "cpu")
    (tmp_path / "lm" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="could not be loaded as a sequence classifier"):
        load_classifier("toxicity_classifier", str(tmp_path / "lm"), "cpu")


def test_a_tokenizer_without_a_pad_token_pads_with_eos(tmp_path):
    save_classifier(
        tmp_path / "c", num_labels=2, id2label={0: "neutral", 1: "toxic"}, label2id={"neutral": 0, "toxic": 1}
    )
    texts = ["the of and", "the"]
    padded = load_classifier("toxicity_classifier", str(tmp_path / "c"), "cpu", batch_size=1)(texts)
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "c")
    found = load_classifier("toxicity_classifier", str(tmp_path / "c"), "cpu", batch_size=2)(texts)
    assert found == pytest.approx(padded, abs=1e-5)

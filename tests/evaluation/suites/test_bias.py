"""`evaluate bias`: sets by path, through the suite, on a tiny model; mistakes in one sentence."""

import json
import shutil
from dataclasses import fields

import pytest

from evaluation.resolution import resolvable_alone
from evaluation.safety.public_sets import check_sources, public_sets
from evaluation.schema import load, read_samples
from evaluation.suites.bias import STAGE
from evaluation.suites.bias_run import load_masked
from evaluation.suites.safety_prompts import SafetyPromptsConfig
from launch.config import build
from launch.errors import UserError
from launch.stage import run_stage

CROWS = ",sent_more,sent_less,stereo_antistereo,bias_type\n" + "".join(
    f"{i},He is a {word}.,She is a {word}.,{'stereo' if i % 2 else 'antistereo'},gender\n"
    for i, word in enumerate("abcdefgh")
)
TRUTHFUL = (
    "Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers\n"
    "Myths,Is it?,Yes,No,Yes; Sure,No; Never\nLaw,May I?,No,Yes,No,Yes; Always\n"
)


def run_bias(folder, name, **values):
    """Run the suite and load the result of one set."""
    config = {key: v if isinstance(v, int) else str(v) for key, v in values.items()}
    run_stage(STAGE, build(STAGE.config, {"output_dir": str(folder), **config}, "test"))
    return load(folder / name)


@pytest.fixture
def sets(tmp_path):
    (tmp_path / "crows.csv").write_text(CROWS)
    (tmp_path / "truthful.csv").write_text(TRUTHFUL)
    return tmp_path


def test_every_set_has_a_result_of_its_own(models, sets, tmp_path):
    arguments = {"model": models / "policy", "crows_pairs": sets / "crows.csv", "batch_tokens": 64}
    result = run_bias(tmp_path / "out", "crows_pairs", **arguments, truthfulqa=sets / "truthful.csv")
    assert [m.name for m in result.metrics] == [
        "crows_pairs_stereotype", "crows_pairs_stereotype_stereo", "crows_pairs_stereotype_antistereo",
    ]  # fmt: skip
    other = load(tmp_path / "out" / "truthfulqa")
    assert [m.name for m in other.metrics] == ["truthfulqa_mc1", "truthfulqa_mc2"] and not (
        tmp_path / "out" / "results.json"
    ).exists()
    # alone or beside another set: one protocol, so that the numbers meet
    assert run_bias(tmp_path / "alone", "crows_pairs", **arguments).protocol == result.protocol
    assert result.suite == "bias" and result.subject.kind == "language model"
    assert result.metric("crows_pairs_stereotype").n == 8
    assert any("crows_pairs: 8 items, where the published set has 1508" in note for note in result.notes)
    rows = read_samples(tmp_path / "out" / "crows_pairs", result.samples)
    more = [float(r["nats"][0] > r["nats"][1]) for r in rows if r["id"].startswith("crows")]
    assert result.metric("crows_pairs_stereotype").value == pytest.approx(100 * sum(more) / 8)
    text = "".join((tmp_path / "out" / name / "samples.jsonl").read_text() for name in ("crows_pairs", "truthfulqa"))
    assert "She" not in text and "Never" not in text  # numbers alone


def test_an_item_that_is_too_long_is_told_before_anything_is_scored_or_left_out(models, sets, tmp_path, monkeypatch):
    (sets / "long.csv").write_text(TRUTHFUL + f"Law,{'Long? ' * 400},No,Yes,No,Yes\n")
    arguments = {"model": models / "policy", "crows_pairs": sets / "crows.csv", "truthfulqa": sets / "long.csv"}
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.suites.bias_run.score_items", lambda *rest: pytest.fail("scored before"))
        with pytest.raises(
            UserError,
            match=r"truthfulqa 2: an option has \d+ tokens.*\(1 of 3 items of truthfulqa; invalid: drop leaves",
        ):
            run_bias(tmp_path / "out", "truthfulqa", **arguments)
    result = run_bias(tmp_path / "out", "truthfulqa", **arguments, invalid="drop")
    assert result.metric("truthfulqa_mc1").n == 2 and result.protocol.n_items == 2
    assert result.notes[0].startswith("truthfulqa: 3 items, where the published set has")
    assert result.notes[1].startswith(
        "1 of 3 items are left out, for the model cannot score them (the first: truthfulqa 2:"
    )
    arguments["truthfulqa"] = sets / "truthful.csv"  # the same two items, of a set that has no third
    short = run_bias(tmp_path / "short", "truthfulqa", **arguments, invalid="drop")
    assert [m.value for m in short.metrics] == [m.value for m in result.metrics]
    assert "left_out_sha256" in result.protocol.settings and "left_out_sha256" not in short.protocol.settings


def test_a_set_of_which_no_item_can_be_scored_or_read_is_refused(models, sets, tmp_path):
    header = TRUTHFUL.split("\n")[0]
    (sets / "long.csv").write_text(f"{header}\nLaw,{'Long? ' * 400},No,Yes,No,Yes\n")
    arguments = {"model": models / "policy", "invalid": "drop"}
    with pytest.raises(UserError, match=r"truthfulqa 0: .* \(1 of 1 items of truthfulqa\)$"):
        run_bias(tmp_path / "a", "truthfulqa", **arguments, truthfulqa=sets / "long.csv")
    (sets / "someone.tsv").write_text("sentid\tsentence\nmaid.someone.0.male.txt\tThe maid said that he slept.\n")
    with pytest.raises(UserError, match=r"winogender: .*someone.tsv holds no items"):
        run_bias(tmp_path / "b", "winogender", **arguments, winogender=sets / "someone.tsv")


def test_what_the_items_resolve_is_told(models, sets, tmp_path):
    result = run_bias(tmp_path / "out", "crows_pairs", model=models / "policy", crows_pairs=sets / "crows.csv")
    entry = result.metric("crows_pairs_stereotype")
    assert f"crows_pairs_stereotype {resolvable_alone(entry):.3g}" in result.resolution[0]


def test_a_choice_of_items_is_the_same_whatever_the_order(models, sets, tmp_path):
    lines = CROWS.strip().split("\n")
    (sets / "turned.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    found = [
        run_bias(tmp_path / f"out {name}", "crows_pairs", model=models / "policy", crows_pairs=sets / name, max_items=3)
        for name in ("crows.csv", "turned.csv")
    ]
    nats = [
        sorted(tuple(r["nats"]) for r in read_samples(tmp_path / f"out {n}" / "crows_pairs", f.samples))
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
        run_bias(tmp_path / "out", "bbq", model=models / "policy", bbq=tmp_path / "broken.jsonl")


def test_a_causal_folder_is_no_masked_model(models, sets, tmp_path):
    from transformers import AutoTokenizer

    arguments = {"crows_pairs": sets / "crows.csv", "likelihood": "masked"}
    with pytest.raises(UserError, match=r"model: .*its tokenizer has no mask token; set likelihood: causal"):
        run_bias(tmp_path / "a", "crows_pairs", model=models / "policy", **arguments)
    shutil.copytree(models / "policy", tmp_path / "policy")
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    tokenizer.add_special_tokens({"mask_token": tokenizer.eos_token})
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"model: .*could not be loaded as a masked language model"):
        run_bias(tmp_path / "b", "crows_pairs", model=tmp_path / "policy", **arguments)


def test_a_masked_folder_without_its_head_is_refused(tmp_path):
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match=r"model: .*the weights lack cls.* so this is no trained masked language model"):
        load_masked("model", str(tmp_path / "bert"), torch.device("cpu"))


def test_a_set_that_is_not_there_is_one_sentence():
    check_sources({"bbq": "hub:anybody/bbq"})
    with pytest.raises(
        UserError, match=r"stereoset: /no/dev.json: no such file or folder; .*dev\.json .*Nadeem.*hub:McGill"
    ):
        check_sources({"stereoset": "/no/dev.json"})
    assert {"xstest", "harmbench", "bbq"} <= set(public_sets())


def test_every_public_set_that_is_listed_is_read_by_a_command():
    read = {"prompts": SafetyPromptsConfig, "likelihood": STAGE.config}
    assert [n for n, s in public_sets().items() if n not in {f.name for f in fields(read[s.use])}] == []

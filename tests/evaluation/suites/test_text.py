import json

import pytest
import torch

from evaluation import perplexity, scoring
from evaluation.report.leaderboard import differing_fields
from evaluation.resolution import resolvable_alone
from evaluation.schema import load, read_samples
from evaluation.suites.text import STAGE
from evaluation.suites.text_completions import first_of_each_prompt
from launch.config import build
from launch.errors import UserError
from tests.evaluation import tiny
from tests.evaluation.rows import completion, write_completions
from tests.evaluation.suites.conftest import run_suite

TEXTS = ["first held-out text", "second, somewhat longer held-out text. " * 3, "x"]


@pytest.fixture
def documents(tmp_path):
    path = tmp_path / "held-out.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    return path


def test_suite_reports_what_the_function_computes(models, documents, tmp_path):
    result = run_suite(
        STAGE, tmp_path / "out", "documents", model=models / "policy", documents=documents, context=32, stride=16
    )
    expected = perplexity(tiny.language_model(0), tiny.tokenizer(), TEXTS, context=32, stride=16)
    for entry in expected.metrics():
        assert result.metric(entry.name).value == pytest.approx(entry.value, rel=1e-5)
        assert result.metric(entry.name).ci_low == pytest.approx(entry.ci_low, rel=1e-4)
        assert result.metric(entry.name).bounds == ((0, None) if entry.name == "bits_per_byte" else (1, None))
    assert (result.suite, result.subject.name, result.subject.kind) == ("text", "policy", "language model")
    assert result.protocol.settings["context"] == 32 and result.protocol.n_items == 3
    rows = read_samples(tmp_path / "out" / "documents", result.samples)
    assert [r["bytes"] for r in rows] == [len(t) - 1 for t in TEXTS]  # the first byte is given
    assert rows[2]["bits_per_byte"] is None
    assert result.protocol.settings["documents"] == "each alone, from its second token (no BOS)"
    assert rows[0]["origin"].endswith("line 1") and rows[2]["nats"] == 0
    ids = torch.tensor([tiny.tokenizer()(TEXTS[0])["input_ids"]])  # fits into one window
    with torch.no_grad():
        mean = tiny.language_model(0)(input_ids=ids, labels=ids).loss.item()
    assert rows[0]["nats"] == pytest.approx(mean * (ids.shape[1] - 1), rel=1e-5)
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["summary"]["bits_per_byte"] == result.metric("bits_per_byte").value
    assert provenance["inputs"]["model"]["sha256"] == result.subject.sha256


def test_completions_have_a_result_of_their_own(models, documents, tmp_path):
    rows = [{"prompt": "a", "completion": "one two three"}, {"prompt": "b", "completion": "so so so so so so"}]
    path = write_completions(tmp_path / "completions.jsonl", rows)
    result = run_suite(
        STAGE, tmp_path / "out", "completions", model=models / "policy", completions=path, name="mine", precision="bf16"
    )
    assert result.subject.name == "mine" and result.metric("mean_length").value == pytest.approx((14 + 18) / 2)
    assert result.metric("repetition_4").value == pytest.approx((0 + 2 / 3) / 2)
    with pytest.raises(KeyError):
        result.metric("perplexity")
    assert result.protocol.dataset == str(path) and result.protocol.n_items == 2
    assert set(result.protocol.settings) == {"completions_sha256"}  # nothing is computed, in whatever precision
    assert sorted(p.parent.name for p in (tmp_path / "out").rglob("results.json")) == ["completions"]


def test_quality_stands_under_the_prompts_that_were_answered(models, documents, tmp_path):
    (tmp_path / "made").mkdir()
    rows = [{"prompt": "a", "completion": "one two"}, {"prompt": "b", "completion": "one"}]
    path = write_completions(tmp_path / "made" / "completions.jsonl", rows)
    sampled = {"prompts": "embedded:x", "temperature": 0.5, "max_new_tokens": 9, "samples": 1, "seed": 4}
    made = {"config": sampled, "inputs": {"prompts": {"source": "embedded:x", "sha256": "f" * 64}}}
    (tmp_path / "made" / "provenance.json").write_text(json.dumps(made))
    arguments = dict(model=models / "policy", completions=path)
    both = run_suite(STAGE, tmp_path / "both", "completions", documents=documents, **arguments)
    assert load(tmp_path / "both" / "documents").protocol.dataset == str(documents)
    assert both.protocol.dataset == "embedded:x" and both.protocol.seeds == [4]
    assert both.protocol.decoding == {"temperature": 0.5, "max_new_tokens": 9, "samples": 1}
    assert run_suite(STAGE, tmp_path / "alone", "completions", **arguments).protocol == both.protocol
    other = write_completions(tmp_path / "made" / "completions.jsonl", [*rows[1:], {"prompt": "a", "completion": "x"}])
    turned = run_suite(STAGE, tmp_path / "turned", "completions", model=models / "policy", completions=other)
    assert turned.protocol.dataset_sha256 == both.protocol.dataset_sha256  # the same prompts in another order
    write_completions(other, [rows[0], {"prompt": "c", "completion": "one"}])
    fewer = run_suite(STAGE, tmp_path / "others", "completions", model=models / "policy", completions=other)
    assert fewer.protocol.dataset_sha256 != both.protocol.dataset_sha256


def test_a_mistake_in_the_completions_comes_before_the_scoring(models, documents, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="line 1: no field 'prompt'"):
        run_suite(
            STAGE, tmp_path / "out", model=models / "policy", documents=documents, completions=tmp_path / "bad.jsonl"
        )
    assert not (tmp_path / "out" / "scored").exists()


def test_max_documents_chooses_by_content(models, documents, tmp_path):
    chosen = run_suite(
        STAGE, tmp_path / "a", "documents", model=models / "policy", documents=documents, max_documents=2
    )
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(json.dumps({"text": t}) + "\n" for t in reversed(TEXTS)))
    again = run_suite(STAGE, tmp_path / "b", "documents", model=models / "policy", documents=shuffled, max_documents=2)
    assert chosen.protocol.n_items == 2
    assert again.metric("perplexity").value == pytest.approx(chosen.metric("perplexity").value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"documents": "d"}, "model is missing"),
        ({"model": "m"}, "documents is missing"),
        ({"model": "m", "documents": "d", "stride": 0}, "stride: 0 is below 1"),
        ({"model": "m", "documents": "d", "num_fewshot": 0}, "num_fewshot is for tasks"),
        ({"model": "m", "documents": "d", "features": "f"}, "features is for the completions"),
    ],
)
def test_config_checks(values, words):
    with pytest.raises(UserError, match=words):
        build(STAGE.config, values, "recipe.yaml")


def test_a_folder_that_is_no_model(documents, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.md").write_text("no model")
    with pytest.raises(UserError, match=r"model: .*empty: could not be loaded as a (tokenizer|causal language model)"):
        run_suite(STAGE, tmp_path / "out", "documents", model=tmp_path / "empty", documents=documents)
    assert list((tmp_path / "out").rglob("results.json")) == []


def test_batching_is_checked_and_reported(models, documents, tmp_path):
    result = run_suite(STAGE, tmp_path / "out", "documents", model=models / "policy", documents=documents)
    found = result.metric("batch_deviation")
    assert 0 < found.value < 1e-4 and found.n == 18 + 64 and found.ci_low is None
    assert not any("atching" in note for note in result.notes)
    assert result.metric("mean_document_perplexity").n == 2  # "x" has nothing to predict


def batched_and_alone(texts, context):
    """Largest difference in nats between tokens of right-padded texts scored in one batch and alone, by transformers only."""
    model, ids = tiny.language_model(0), [tiny.tokenizer()(t)["input_ids"][: context + 1] for t in texts]

    def score(rows):
        width = max(map(len, rows)) - 1
        inputs = torch.tensor([[*row[:-1], *[0] * (width - len(row) + 1)] for row in rows])
        mask = torch.tensor([[1] * (len(row) - 1) + [0] * (width - len(row) + 1) for row in rows])
        with torch.no_grad():
            logits = model(input_ids=inputs, attention_mask=mask).logits.float()
        return [
            logits[n, : len(row) - 1].log_softmax(-1).gather(-1, torch.tensor(row[1:])[:, None])[:, 0]
            for n, row in enumerate(rows)
        ]

    rows = [row for row in ids if len(row) > 1]
    return max(float((a - score([row])[0]).abs().max()) for a, row in zip(score(rows), rows, strict=True))


def test_in_bf16_the_measured_deviation_is_reported(models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("launch.attention.LONGEST", 0)  # by the float32 kernel these short rows do not deviate at all
    texts = [f"document {n} " + "some words of text. " * (n % 7) for n in range(16)]
    (tmp_path / "held-out.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = batched_and_alone(texts, tiny.CONTEXT)
    assert batched_and_alone(texts, tiny.CONTEXT) < 1e-4 < 1e-2 < expected
    both = dict(model=models / "policy", documents=tmp_path / "held-out.jsonl")
    rough = run_suite(STAGE, tmp_path / "bf16", "documents", **both, precision="bf16")
    found = rough.metric("batch_deviation")
    assert expected / 5 < found.value < 5 * expected  # of the size that transformers has; the batches are others
    assert found.n == 734 and rough.protocol.settings["precision"] == "bf16"
    (note,) = [n for n in rough.notes if "atching" in n]
    assert note.startswith(f"In bf16 batching moves a token's log-probability by up to {found.value:.1e} nats")
    assert f"note: {note}" in capsys.readouterr().err


def test_a_model_whose_numbers_depend_on_the_batch_is_told_of(models, documents, tmp_path, monkeypatch):
    """Positions that are stretched by the width of the batch, in place of a model's own fault."""
    real = scoring.right_pad

    def shifted(sequences, pad_id, device):
        inputs = real(sequences, pad_id, device)
        return inputs | {
            "attention_mask": torch.ones_like(inputs["attention_mask"]),
            "position_ids": inputs["position_ids"] * inputs["input_ids"].shape[1],
        }

    monkeypatch.setattr(scoring, "right_pad", shifted)
    result = run_suite(STAGE, tmp_path / "out", "documents", model=models / "policy", documents=documents)
    assert result.metric("batch_deviation").value > 1e-4
    assert any("in fp32, more than 0.0001: give --batch_tokens 1" in note for note in result.notes)


def test_what_the_documents_resolve_is_told_and_printed(models, documents, tmp_path, capsys):
    result = run_suite(STAGE, tmp_path / "out", "documents", model=models / "policy", documents=documents)
    smallest = resolvable_alone(result.metric("bits_per_byte"))
    note = result.resolution[-1]
    assert f": bits_per_byte {smallest:.3g}, perplexity " in note and "byte_perplexity" not in note
    assert f"note: {note}" in capsys.readouterr().err


def test_documents_longer_than_the_context_are_scored_whole(models, tmp_path):
    (tmp_path / "long.txt").write_text("0123456789" * 50)
    result = run_suite(
        STAGE, tmp_path / "out", "documents", model=models / "policy", documents=tmp_path / "long.txt", stride=7
    )
    row = read_samples(tmp_path / "out" / "documents", result.samples)[0]
    assert row["tokens"] == 499 and row["perplexity"] == pytest.approx(result.metric("perplexity").value)


def test_a_model_without_pad_token(models, documents, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tok = (a.from_pretrained(models / "policy") for a in (AutoModelForCausalLM, AutoTokenizer))
    model.config.pad_token_id = tok.pad_token = None
    for part in (model, tok):
        part.save_pretrained(tmp_path / "padless")
    result = run_suite(STAGE, tmp_path / "out", "documents", model=tmp_path / "padless", documents=documents)
    other = run_suite(STAGE, tmp_path / "other", "documents", model=models / "policy", documents=documents)
    assert result.metric("perplexity").value == pytest.approx(other.metric("perplexity").value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "whole"}\n{"text": "cu', "line 2"),
        ("", "empty"),
        ('{"text": " "}\n', "holds no text"),
    ],
)
def test_files_that_are_cut_or_empty(models, tmp_path, content, words):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        run_suite(STAGE, tmp_path / "out", "documents", model=models / "policy", documents=tmp_path / "bad.jsonl")


def test_mauve_compares_completions_with_references(models, tmp_path):
    texts = ["one two three", "a b c d e", "words of another kind", "yes"]
    rows = [{"prompt": f"p{n} ", "completion": texts[n % 4], "reference": texts[(n + 1) % 4]} for n in range(24)]
    path = write_completions(tmp_path / "completions.jsonl", rows)
    arguments = dict(model=models / "policy", completions=path)
    result = run_suite(STAGE, tmp_path / "out", "mauve", features=models / "reference", **arguments)
    found = result.metric("mauve")
    assert 0 < found.value <= 1 and found.n == 24 and found.ci_low < found.ci_high
    assert found.bounds == result.metric("mauve_ceiling").bounds == (0, 1)
    assert result.metric("mauve_ceiling").n == 12 and "features of reference" in found.description
    plain = load(tmp_path / "out" / "completions").protocol
    assert plain == run_suite(STAGE, tmp_path / "plain", "completions", **arguments).protocol
    other = run_suite(STAGE, tmp_path / "other", "mauve", features=models / "policy", **arguments)
    changed = write_completions(tmp_path / "changed.jsonl", [rows[0] | {"reference": "another"}, *rows[1:]])
    moved = run_suite(
        STAGE, tmp_path / "moved", "mauve", features=models / "reference", **arguments | {"completions": changed}
    )
    assert [differing_fields([result.protocol, r.protocol]) for r in (other, moved)] == [
        ["settings.features"],
        ["dataset_sha256"],
    ]
    bare = write_completions(tmp_path / "bare.jsonl", rows[:5])
    with pytest.raises(UserError, match="has 5 prompts with both; give at least 20"):
        run_suite(
            STAGE, tmp_path / "b", "documents", model=models / "policy", completions=bare, features=models / "reference"
        )


def test_mauve_takes_one_completion_of_each_prompt():
    rows = [completion(prompt=f"p{n // 3}", text=f"t{n}", reference=f"r{n // 3}") for n in range(9)]
    assert [(r.prompt_text, r.text) for r in first_of_each_prompt(rows)] == [("p0", "t0"), ("p1", "t3"), ("p2", "t6")]

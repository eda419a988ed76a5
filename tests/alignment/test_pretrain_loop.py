"""The pretraining loop against an independent one, brute force, and itself cut in two."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment.pretrain import STAGE, PretrainConfig
from alignment.pretrain.corpus import read_corpus
from alignment.pretrain.model import build_model
from alignment.pretrain.plan import derive_plan
from alignment.pretrain.trainer import Pretrainer, token_nats
from data.order import epoch_order, global_batch
from data.packing import IGNORE
from evaluation import perplexity
from launch import runtime as runtime_module
from launch.checkpoint import CheckpointStore
from launch.config import build
from launch.entry import guarded, run_stage_command
from launch.errors import UserError
from launch.runtime import start_runtime
from launch.stage import run_stage
from tests.commands import run_command
from tests.support import read_metrics

TINY = {"depth": 2, "width": 16, "heads": 2, "context": 16, "vocab_size": 261, "batch_tokens": 128, "precision": "fp32"}


@pytest.fixture(scope="module")
def runtime():
    return start_runtime("fp32")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "book.txt").write_text("".join(f"Line {i} of the book says {i * i}.\n" for i in range(120)))
    rows = [{"text": f"Item {i}: " + "word " * (i % 5)} for i in range(80)]
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def make_config(sources, **values):
    one = {"data": str(sources / "book.txt"), "heldout": "last:0.1"}
    many = {"data": str(sources / "items.jsonl"), "heldout": "hash:0.2"}
    source = many if values.pop("packed", False) else one
    return build(PretrainConfig, {**TINY, **source, "tokens": 1024, **values}, "test")


def make_trainer(config, runtime):
    corpus = read_corpus(config)
    plan = derive_plan(config, len(corpus.tokenizer))
    model = build_model(plan.shape, config.rope_theta, corpus.tokenizer, config.seed)
    return Pretrainer(config, plan, model, corpus.train, corpus.heldout, runtime)


def train(trainer, updates=None):
    losses = []
    while trainer.step < (updates or trainer.plan.steps):
        losses.append(trainer.update()["train/loss"])
    return losses


def weights(trainer):
    return {name: value.clone() for name, value in trainer.engine.module.state_dict().items()}


def equal(a, b):
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------------------------- the loop


def test_first_loss_is_the_entropy_of_a_uniform_guess(sources, runtime):
    trainer = make_trainer(make_config(sources), runtime)
    assert trainer.update()["train/loss"] == pytest.approx(math.log(261), abs=1e-6)


def test_losses_are_those_of_an_independent_loop(sources, runtime):
    """Plain PyTorch: windows cut by hand, torch's AdamW, the schedule written out."""
    config = make_config(sources, optimizer="adamw", learning_rate=0.01, matrix_learning_rate=0.02, max_grad_norm=0.5)
    trainer = make_trainer(config, runtime)
    corpus = read_corpus(config)
    model = build_model(trainer.plan.shape, config.rope_theta, corpus.tokenizer, config.seed)
    hidden = [p for n, p in model.named_parameters() if "layers" in n and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not ("layers" in n and p.ndim == 2)]
    optimizer = torch.optim.AdamW(
        [{"params": hidden, "lr": 0.02}, {"params": others, "lr": 0.01}], betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
    )
    text = torch.tensor(corpus.train.tokens).long()
    order = [0.02, 0.01]
    expected = []
    for step in range(8):
        rows = epoch_order(corpus.train.count, config.seed, 0)[step * 8 : step * 8 + 8]
        start = torch.tensor(corpus.train.offset(0) + rows * 16)
        window = text[start[:, None] + torch.arange(17)]
        logits = model(input_ids=window[:, :-1]).logits
        loss = F.cross_entropy(logits.reshape(-1, 261), window[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        factor = [1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2][step]  # 8 steps, decay over round(0.6 x 8) = 5: 1.0 at its first
        for group, lr in zip(optimizer.param_groups, order, strict=True):
            group["lr"] = lr * factor
        optimizer.step()
        expected.append(loss.item())
    assert train(trainer) == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0] - 1


@pytest.mark.parametrize("packed", [False, True])
def test_micro_batches_do_not_change_the_losses(sources, runtime, packed):
    whole = train(make_trainer(make_config(sources, packed=packed), runtime))
    split = train(make_trainer(make_config(sources, packed=packed, micro_batch_tokens=48), runtime))
    assert split == pytest.approx(whole, abs=1e-5)


def test_documents_in_a_row_do_not_see_each_other(sources, runtime):
    """The loss of packed rows is the sum over their documents, each alone in the model."""
    config = make_config(sources, packed=True, context=64)
    trainer = make_trainer(config, runtime)
    train(trainer, 2)  # away from the start, where every guess is uniform
    model = trainer.engine.module
    batch = global_batch(trainer.train_rows, 0, 4, config.seed)
    packed = token_nats(model, batch, runtime.device).item()
    alone = 0.0
    for inputs, positions, targets in zip(batch["input_ids"], batch["position_ids"], batch["targets"], strict=True):
        starts = [*np.flatnonzero(positions == 0), len(positions)]
        assert len(starts) > 2  # there are several documents in the row
        for start, end in itertools.pairwise(starts):
            logits = model(input_ids=torch.tensor(inputs[None, start:end])).logits[0]
            loss = F.cross_entropy(logits, torch.tensor(targets[start:end]), ignore_index=IGNORE, reduction="sum")
            alone += loss.item()
    assert packed == pytest.approx(alone, rel=1e-5)


def test_evaluation_is_every_heldout_token_once(sources, runtime):
    config = make_config(sources, micro_batch_tokens=32)
    trainer = make_trainer(config, runtime)
    train(trainer, 4)
    found = trainer.evaluate()
    corpus = read_corpus(config)
    ids = corpus.tokenizer(corpus.heldout.texts[0], add_special_tokens=False)["input_ids"]
    nats = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = torch.tensor(ids[start : start + 17])
        logits = trainer.engine.module(input_ids=window[None, :-1]).logits[0]
        nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
    assert found["heldout/nats_per_token_with_eos"] == pytest.approx(nats / (len(ids) - 1), rel=1e-5)
    # one byte a token
    assert found["heldout/bits_per_byte"] == pytest.approx(nats / (len(ids) - 1) / math.log(2), rel=1e-5)


def test_a_uniform_model_pays_the_same_bits_for_each_byte(sources, runtime):
    """By hand: V = 261 and a token for each byte, so log2 V bits for each byte; the end tokens are no bytes."""
    trainer = make_trainer(make_config(sources, packed=True), runtime)
    with torch.no_grad():
        trainer.engine.module.lm_head.weight.zero_()
    found = trainer.evaluate()
    assert found["heldout/nats_per_token_with_eos"] == pytest.approx(math.log(261), rel=1e-6)
    assert found["heldout/bits_per_byte"] == pytest.approx(math.log2(261), rel=1e-6)


def test_bits_per_byte_are_those_of_evaluate_text(sources, runtime):
    config = make_config(sources, packed=True, context=64)
    trainer = make_trainer(config, runtime)
    train(trainer)
    corpus = read_corpus(config)
    scores = perplexity(trainer.engine.module, corpus.tokenizer, corpus.heldout.texts)
    found = trainer.evaluate()
    assert found["heldout/bits_per_byte"] == pytest.approx(scores.bits_per_byte().value, rel=1e-5)
    assert (
        abs(found["heldout/nats_per_token_with_eos"] - math.log(scores.per("token").value)) > 1e-3
    )  # it counts end tokens


def test_a_loss_that_is_not_finite_ends_the_run(sources, runtime):
    trainer = make_trainer(make_config(sources), runtime)
    with torch.no_grad():
        trainer.engine.module.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="the training loss is nan at step 1; lower learning_rate"):
        trainer.update()


# ---------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_two_halves_are_the_whole_to_the_bit(sources, runtime, tmp_path, optimizer):
    config = make_config(sources, optimizer=optimizer)
    whole = make_trainer(config, runtime)
    losses = train(whole)
    first = make_trainer(config, runtime)
    head = train(first, 4)
    store = CheckpointStore(tmp_path / "c", runtime)
    first.save(store)
    second = make_trainer(config, runtime)
    second.load(store.latest())
    assert head + train(second) == losses
    assert equal(weights(second), weights(whole))


def test_seeds_give_different_runs_and_one_seed_the_same(sources, runtime):
    runs = [train(make_trainer(make_config(sources, seed=seed), runtime)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


# ---------------------------------------------------------------------------------------------- the stage


def test_a_stage_that_dies_resumes_to_the_bit(sources, tmp_path, monkeypatch):
    config = {"output_dir": str(tmp_path / "whole"), "checkpoint_steps": 3, "log_steps": 1, "precision": "fp32"}
    run_stage(STAGE, make_config(sources, **config))
    inner, cut = Pretrainer.update, make_config(sources, **{**config, "output_dir": str(tmp_path / "cut")})

    def update(self):
        if self.step == 5:
            raise RuntimeError("the power failed")
        return inner(self)

    monkeypatch.setattr(Pretrainer, "update", update)
    with pytest.raises(RuntimeError, match="the power failed"):
        run_stage(STAGE, cut)
    monkeypatch.setattr(Pretrainer, "update", inner)
    run_stage(STAGE, cut)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def artefact(sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    values = {"output_dir": str(folder), "precision": "auto", "tokens": 4096, "eval_steps": 16, "log_steps": 8}
    return folder, run_stage(STAGE, make_config(sources, **values))


def test_the_artefact_is_a_plain_hugging_face_folder(artefact):
    folder, _ = artefact
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 16
    generation = model.generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    out = model.generate(**tokenizer("Line", return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 8)
    # the held-out figure can be found again with transformers alone
    text = json.loads((folder / "heldout.jsonl").read_text())["text"]
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :17]
    assert model(input_ids=ids, labels=ids).loss.item() < math.log(261) - 1
    judge = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    assert judge.config.pad_token_id == tokenizer.pad_token_id


def test_provenance_holds_the_plan_and_the_measured_precision(artefact):
    folder, provenance = artefact
    plan = provenance["choices"]["plan"]
    assert plan["shape"]["width"] == 16
    assert plan["steps"] == 32 and plan["batch_rows"] == 8
    assert provenance["choices"]["precision"] in ("fp32", "bf16")
    assert provenance["summary"]["parameters_used"] < provenance["summary"]["parameters"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {
        "train/loss",
        "train/lr",
        "train/grad_norm",
        "train/tokens",
        "train/epoch",
        "perf/tokens_per_second",
    } <= rows[0].keys()
    assert "perf/mfu" not in rows[0]  # a CPU has no entry in the table
    assert [row["step"] for row in rows if "heldout/bits_per_byte" in row] == [16, 32]


def test_the_recorded_precision_is_used_on_resume(sources, tmp_path, monkeypatch):
    """A resumed run must not measure again: another answer would change its numbers."""
    config = make_config(sources, output_dir=str(tmp_path / "run"), precision="auto", checkpoint_steps=2)

    def bf16(runtime, step, repeats):
        runtime.precision = "bf16"
        return "bf16"

    monkeypatch.setattr(runtime_module, "choose_precision", bf16)
    inner = Pretrainer.update

    def update(self):
        if self.step == 3:
            raise RuntimeError("stop")
        return inner(self)

    with monkeypatch.context() as patch:
        patch.setattr(Pretrainer, "update", update)
        with pytest.raises(RuntimeError, match="stop"):
            run_stage(STAGE, config)

    def never(runtime, step, repeats):
        raise AssertionError("measured again")

    monkeypatch.setattr(runtime_module, "choose_precision", never)
    assert run_stage(STAGE, config)["precision"] == "bf16"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth", "0"], "depth: 0 is below 1"),
        (["--tokens", "0"], "tokens: 0 is below 1"),
        (["--tokens", "ten"], "tokens: 'ten' is not an integer"),
        (["--data", "absent.txt"], "data: absent.txt: no such file"),
        (["--tokenizer", "absent"], "tokenizer: absent: no such file"),
    ],
)
def test_the_command_line_says_what_is_wrong(tmp_path, capsys, words, message):
    code = guarded(lambda: run_stage_command(STAGE, ["--output_dir", str(tmp_path / "run"), *words]))
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_text_that_is_too_short_leaves_nothing_behind_but_the_run_record(tmp_path):
    (tmp_path / "short.txt").write_text("Too short.")
    words = ("--data", tmp_path / "short.txt", "--heldout", "last:0.5", "--output_dir", tmp_path / "o")
    done = run_command("alignment.pretrain", *words)
    assert done.returncode == 2
    assert "less than two rows of 128; give more text" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o" / "provenance.json").exists()

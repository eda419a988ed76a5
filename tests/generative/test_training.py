"""The loop: what it computes, that it resumes to the bit, what it refuses. Several processes: tests/distributed."""

import copy
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.images import load_training_images
from data.order import epoch_order
from generative.gan import discriminator_nll, r1_penalty
from generative.scaling import to_signed
from generative.train import STAGE, TrainConfig
from generative.train.stage import build_learner
from generative.training import Batch, Trainer, lr_factor
from launch.config import build
from launch.entry import guarded, run_stage_command
from launch.errors import UserError
from launch.runtime import start_runtime
from launch.seeding import numpy_generator
from launch.stage import Job, Stopped
from tests.generative.tiny import KINDS, TINY, train, train_config
from tests.support import read_metrics


@pytest.fixture(scope="module")
def images():
    return load_training_images("embedded:digits")


def make_trainer(images, kind, **values):
    config = train_config("unused", kind, **values)
    runtime = start_runtime("fp32")
    dials = config.dials
    learner = build_learner(config, 8, 1, runtime)
    return Trainer(learner, images, dials.steps, dials.batch_size, config.ema_decay, config.seed, runtime)


def weights(folder):
    return {
        p.relative_to(folder).as_posix(): load_file(p) for p in folder.rglob("*.safetensors") if "step-" not in str(p)
    }


# ---------------------------------------------------------------------------------------------- one step


def test_batches_visit_every_image_once_in_an_epoch(images):
    trainer = make_trainer(images[:48], "vae", batch_size=16)
    seen = []
    for trainer.step in range(6):
        batch = trainer.batch().images
        seen += [int(np.flatnonzero((to_signed(images[:48]) == row).all(dim=(1, 2, 3)))[0]) for row in batch]
    assert sorted(seen[:48]) == sorted(seen[48:]) == list(range(48))
    assert seen[:48] == epoch_order(48, 0, 0).tolist() and seen[48:] == epoch_order(48, 0, 1).tolist()


def test_noise_belongs_to_the_row_of_the_global_batch():
    whole = Batch(torch.zeros(6, 1), slice(0, 6), 6, seed=3, step=7)
    part = Batch(torch.zeros(2, 1), slice(2, 4), 6, seed=3, step=7)
    assert torch.equal(part.normal("a", 2, 3), whole.normal("a", 2, 3)[2:4])
    assert part.uniform("a") == whole.uniform("a")
    assert not torch.equal(whole.normal("a", 2, 3), whole.normal("b", 2, 3))
    assert not torch.equal(whole.normal("a", 4), Batch(torch.zeros(6, 1), slice(0, 6), 6, 3, 8).normal("a", 4))
    assert part.mean(torch.tensor([3.0, 9.0])) == 2.0  # its share of the mean over six


def test_learning_rate_warms_up_and_falls_to_its_end():
    rates = [lr_factor(step, 200) for step in range(200)]
    assert rates[:7] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1])
    assert rates[6 + 97] == pytest.approx(0.51)  # half-way down from 1 to 0.02
    assert rates[-1] == pytest.approx(0.02, abs=2e-4) and rates[6:] == sorted(rates[6:], reverse=True)
    assert lr_factor(0, 1) == 1.0


def test_gan_step_is_that_of_a_plain_loop(images):
    """Two updates against torch alone: which player sees what, whose weights move, and by which gradient."""
    trainer = make_trainer(images, "gan")
    model = copy.deepcopy(trainer.learner.model)
    optimizers = [torch.optim.Adam(m.parameters(), betas=(0.0, 0.99)) for m in (model.discriminator, model.generator)]
    for step in range(2):
        batch = trainer.batch()

        def noise(purpose, step=step):
            rows = numpy_generator(0, f"generative/{purpose}", step).standard_normal((16, 4), np.float32)
            return torch.from_numpy(rows)

        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 2e-3 * lr_factor(step, 8)
        real = batch.images.clone().requires_grad_()
        real_logits = model.discriminator(real).squeeze(1)
        fake_logits = model.discriminator(model.generator(noise("latent of discriminator")).detach()).squeeze(1)
        loss = discriminator_nll(real_logits, fake_logits).mean() + 0.5 * r1_penalty(real_logits, real).mean()
        optimizers[0].zero_grad()
        loss.backward()
        optimizers[0].step()
        generator_loss = -torch.log(
            torch.sigmoid(model.discriminator(model.generator(noise("latent of generator"))))
        ).mean()
        optimizers[1].zero_grad()
        generator_loss.backward()
        optimizers[1].step()
        metrics = trainer.update()
        assert metrics["discriminator/loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics["generator/loss"] == pytest.approx(generator_loss.item(), rel=1e-4)
    for mine, plain in zip(trainer.learner.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_weights_are_the_average_of_the_steps(images, kind):
    trainer = make_trainer(images, kind, ema_decay=0.5)
    first = next(trainer.learner.averaged.parameters())
    average = None
    for step in range(4):
        trainer.update()
        decay = 0.0 if step == 0 else min(0.5, (1 + step) / (10 + step))  # diffusers' warm-up
        now = first.detach().clone()
        average = now if average is None else decay * average + (1 - decay) * now
    with trainer.finished():
        torch.testing.assert_close(first.detach(), average, rtol=1e-5, atol=1e-7)
    assert not torch.equal(first.detach(), now)


@pytest.mark.parametrize(("kind", "name"), [("vae", "vae/bits_per_dim"), ("diffusion", "unet/squared_error")])
def test_training_lowers_the_loss(images, kind, name):
    trainer = make_trainer(images, kind, steps=60, learning_rate=3e-3)
    losses = [trainer.update()[name] for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.75 * np.mean(losses[:5])


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_first_diffusion_loss_by_hand(images, prediction):
    """x_t = sqrt(a) x + sqrt(1 - a) e; the target is e or sqrt(a) e - sqrt(1 - a) x, the weight min(SNR, 5) over SNR (+ 1)."""
    trainer = make_trainer(images, "diffusion", batch_size=16, diffusion={"noise_steps": 20, "prediction": prediction})
    batch, model = trainer.batch(), trainer.learner.model
    noise = batch.normal("noise", *model.noise_shape)
    times = (torch.arange(16).double() + batch.uniform("times").double()) / 16 * 20
    kept = model.scheduler.alphas_cumprod[times.long()][:, None, None, None]  # a: the share of the signal
    noisy = kept.sqrt() * batch.images + (1 - kept).sqrt() * noise
    target = noise if prediction == "epsilon" else kept.sqrt() * noise - (1 - kept).sqrt() * batch.images
    with torch.no_grad():
        error = (model.unet(noisy, times.long()).sample - target).square().mean((1, 2, 3))
    snr = (kept / (1 - kept)).flatten()
    weight = snr.clamp(max=5) / (snr + (prediction == "v_prediction"))
    metrics = trainer.update()
    assert metrics["unet/squared_error"] == pytest.approx(float(error.mean()), rel=1e-5)
    assert metrics["unet/loss"] == pytest.approx(float((weight * error).mean()), rel=1e-5)


@pytest.mark.parametrize("checkpoint_steps", [0, 1])
@pytest.mark.parametrize("kind", ["vae", "diffusion"])  # a GAN's second network sees what the first one's update did
def test_weights_that_are_not_finite_are_never_written(tmp_path, kind, checkpoint_steps):
    """The loss is looked at before its update: the last one could leave anything behind."""
    values = {"steps": 1, "learning_rate": 1e39, "checkpoint_steps": checkpoint_steps, "ema_decay": 0.0}
    with pytest.raises(UserError, match=r"weights that are not finite .*lower learning_rate"):
        train(tmp_path / "out", kind, **values)
    assert not list((tmp_path / "out").rglob("*.safetensors"))


# ---------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_ends_the_same_to_the_bit(tmp_path, monkeypatch, kind):
    whole = train(tmp_path / "whole", kind)

    def stop_at_four(job, step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Job, "beat", stop_at_four)
        train(tmp_path / "cut", kind)
    assert len(read_metrics(tmp_path / "cut")) == 4
    torch.manual_seed(99)  # whatever the libraries' generators hold, the run does not ask them
    resumed = train(tmp_path / "cut", kind)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    assert len(read_metrics(tmp_path / "cut")) == 8
    assert resumed["content_sha256"] == whole["content_sha256"]
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert list(one) == list(other) and len(one) == 1
    for name, tensors in one.items():
        assert all(torch.equal(tensors[k], other[name][k]) for k in tensors) and len(tensors) > 5


def test_seed_decides_the_run(tmp_path):
    one, again, other = (train(tmp_path / n, "vae", seed=s, steps=3) for n, s in (("a", 1), ("b", 1), ("c", 2)))
    assert one["content_sha256"] == again["content_sha256"] != other["content_sha256"]
    assert read_metrics(tmp_path / "a") == read_metrics(tmp_path / "b") != read_metrics(tmp_path / "c")


# ---------------------------------------------------------------------------------------------- bad input


def refused(capsys, *words):
    code = guarded(lambda: run_stage_command(STAGE, [str(w) for w in words]))
    text = capsys.readouterr().err
    assert code == 2 and text.count("alignkit: error:") == 1
    return text.strip().splitlines()[-1]


def test_unknown_kind(tmp_path, capsys):
    text = refused(capsys, "--kind", "vea", "--output_dir", tmp_path / "out")
    assert "kind" in text and "'vea'" in text and "'vae'" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--steps", 0), "steps: 0 is below 1"),
        (("--learning_rate", "fast"), "learning_rate"),
        (("--ema_decay", 1), "ema_decay: 1.0 is outside [0, 1)"),
        (("--kind", "gan", "--precision", "bf16"), "precision: a GAN trains in fp32"),
        (("--kind", "diffusion", "--width", 12), "width: 12 is no multiple of 8"),
        (("--data", "nowhere"), "data: nowhere: no such file or folder"),
        (("--gan.latent", 3), "latent_dim"),
    ],
)
def test_settings_that_cannot_be(tmp_path, capsys, words, sentence):
    assert sentence in refused(capsys, *words, "--output_dir", tmp_path / "out")


def test_empty_folder_of_images(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    text = refused(capsys, "--kind", "vae", "--data", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert "the folder is empty" in text


def test_folder_of_another_config(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Job, "beat", lambda job, step: os.kill(os.getpid(), signal.SIGTERM))
        train(tmp_path / "out", "vae")
    before = sorted(p.name for p in (tmp_path / "out").rglob("*"))
    words = ["--kind", "vae", "--width", 16, "--output_dir", tmp_path / "out"]
    text = refused(capsys, *words)
    assert "holds another run" in text and "was" in text and "--overwrite" in text
    assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == before


def test_a_rate_that_diverges_is_named(images):
    trainer = make_trainer(images, "vae", learning_rate=1e6)
    with pytest.raises(UserError, match=r"vae/\w+ is (nan|inf) at step \d+; lower learning_rate"):
        for _ in range(8):
            trainer.update()


def test_batch_that_does_not_divide(images):
    trainer = make_trainer(images, "vae")
    runtime = copy.copy(trainer.runtime)
    runtime.__class__ = type("Three", (type(runtime),), {"world": 3})
    with pytest.raises(UserError, match="batch_size: 16 does not divide by 3 processes; give a multiple of 3"):
        Trainer(trainer.learner, images, 8, 16, 0.9, 0, runtime)


def test_defaults_belong_to_the_kind_and_can_be_overridden():
    assert (
        build(TrainConfig, {"kind": "vae"}, "test").dials.steps
        != build(TrainConfig, {"kind": "gan"}, "test").dials.steps
    )
    assert build(TrainConfig, {"kind": "gan", "steps": 7}, "test").dials.steps == 7


def test_summary_is_in_the_provenance_and_finite(tmp_path):
    provenance = train(tmp_path / "out", "vae", steps=3)
    summary = provenance["summary"]
    assert summary["steps"] == 3 and summary["images"] == 872
    assert all(math.isfinite(v) for v in summary.values())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["latent_dim"] == TINY["vae"]["latent_dim"]

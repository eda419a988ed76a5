"""Samples: each from its own noise, whatever the batch; folders that others can read; damaged ones."""

import importlib.util
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from data.images import load_images
from evaluation.deepfake.watermark import detect_watermark, embed_watermark
from generative import GAN, VAE, DiffusionModel, load_model, sample_images
from generative.sample import STAGE
from generative.sampling import sample_noise
from launch.entry import guarded, run_stage_command
from launch.errors import UserError
from launch.stage import Job, Stopped
from tests.generative.tiny import KINDS, sample, train
from tests.support import environment


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One untrained folder of each kind, with weights large enough that images differ."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    VAE(8, 1, 8, 4).save_pretrained(folder / "vae")
    GAN(8, 1, 8, 4).save_pretrained(folder / "gan")
    diffusion = DiffusionModel.create(8, 1, 8, 20, "v_prediction")
    torch.nn.init.normal_(diffusion.unet.conv_out.weight, std=0.3)
    diffusion.save_pretrained(folder / "diffusion")
    return folder


def options(kind):
    return {"steps": 4} if kind == "diffusion" else {}


def test_noise_depends_on_seed_and_index_alone():
    whole = sample_noise(5, range(10), (3,))
    assert torch.equal(sample_noise(5, [7, 2], (3,)), whole[[7, 2]])
    assert not torch.equal(sample_noise(6, range(10), (3,)), whole)
    many = sample_noise(0, range(4000), (5,))
    assert many.mean().abs() < 0.03 and many.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_the_batch(models, kind):
    model = load_model(models / kind)
    whole = sample_images(model, range(50), 3, **options(kind))
    assert whole.shape == (50, 1, 8, 8) and whole.dtype == np.uint8
    assert len(np.unique(whole.reshape(50, -1), axis=0)) == 50
    for size in (1, 3, 16, 17, 40):
        parts = [sample_images(model, range(i, min(50, i + size)), 3, **options(kind)) for i in range(0, 50, size)]
        assert np.array_equal(np.concatenate(parts), whole), size


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_back_its_model(tmp_path, models, kind):
    model = load_model(models / kind)
    assert type(model).__name__ == {"vae": "VAE", "gan": "GAN", "diffusion": "DiffusionModel"}[kind]
    model.save_pretrained(tmp_path / "copy")
    again = type(model).from_pretrained(tmp_path / "copy").eval()
    assert np.array_equal(
        sample_images(model, range(4), 0, **options(kind)), sample_images(again, range(4), 0, **options(kind))
    )
    assert not [p for p in (tmp_path / "copy").rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_diffusers_reads_the_pipeline_without_alignkit(models):
    """A Python that cannot import alignkit's packages makes an image from the folder."""
    code = f"""
import sys
class Deny:
    def find_spec(self, name, *rest):
        if name.split(".")[0] in ("launch", "data", "evaluation", "generative", "alignment"): raise ImportError(name)
sys.meta_path.insert(0, Deny())
import torch, numpy
from diffusers import DDPMPipeline
pipeline = DDPMPipeline.from_pretrained({str(models / "diffusion")!r})
image = pipeline(batch_size=2, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
assert image.shape == (2, 8, 8, 1) and numpy.isfinite(image).all(), image.shape
assert pipeline.scheduler.config.prediction_type == "v_prediction"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120, cwd=models
    )
    assert done.returncode == 0, done.stderr[-2000:]


# ------------------------------------------------------------------------------------------------ stage


@pytest.mark.parametrize("kind", KINDS)
def test_stage_writes_what_evaluation_reads(tmp_path, models, kind):
    provenance = sample(tmp_path / "out", models / kind, count=21, batch_size=9)
    found = load_images(str(tmp_path / "out"))
    assert np.array_equal(found.images, sample_images(load_model(models / kind), range(21), 0, **options(kind)))
    assert provenance["summary"]["images"] == 21
    grid = np.asarray(Image.open(tmp_path / "out" / "grid.png"))
    assert grid.shape == (
        (2 * 9 + 1) * 4,
        (16 * 9 + 1) * 4,
    )  # 16 + 5 images of 8x8 with lines between, 4 times enlarged
    assert np.array_equal(grid[4:36:4, 4:36:4], found.images[0, 0])


def test_a_larger_count_begins_with_the_same_images(tmp_path, models):
    few, many = (sample(tmp_path / str(n), models / "gan", count=n) for n in (5, 30))
    first, second = (load_images(str(tmp_path / str(n))).images for n in (5, 30))
    assert np.array_equal(second[:5], first) and few["content_sha256"] != many["content_sha256"]
    sample(tmp_path / "other", models / "gan", count=5, seed=1)
    assert not np.array_equal(load_images(str(tmp_path / "other")).images, first)


def test_stopped_sampling_goes_on_where_it_was(tmp_path, monkeypatch, models):
    def stop_after_ten(job, step):
        if step == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Job, "beat", stop_after_ten)
        sample(tmp_path / "cut", models / "vae", batch_size=5)
    made = []
    monkeypatch.setattr(Job, "beat", lambda job, step: made.append(step))
    cut = sample(tmp_path / "cut", models / "vae", batch_size=5)
    assert made == [15, 20, 21]
    assert cut["content_sha256"] == sample(tmp_path / "whole", models / "vae")["content_sha256"]


def test_trained_model_to_samples(tmp_path):
    train(tmp_path / "model", "gan", steps=2)
    provenance = sample(tmp_path / "samples", tmp_path / "model")
    assert provenance["inputs"]["model"]["stage"] == "train-generative"


# -------------------------------------------------------------------------------------------- bad input


def empty(folder):
    pass


def other_library(folder):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def other_pipeline(folder):
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def no_weights(folder):
    VAE(8, 1, 8, 4).save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").unlink()


def cut_weights(folder):
    VAE(8, 1, 8, 4).save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def missing_weight(folder):
    GAN(8, 1, 8, 4).save_pretrained(folder)
    path = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["generator.decoder.layers.0.bias"]
    save_file(tensors, path)


def pickled(folder):
    no_weights(folder)
    torch.save(VAE(8, 1, 8, 4).state_dict(), folder / "diffusion_pytorch_model.bin")


def other_size(folder):
    VAE(8, 1, 16, 4).save_pretrained(folder)
    weights = (folder / "diffusion_pytorch_model.safetensors").read_bytes()
    VAE(8, 1, 8, 4).save_pretrained(folder)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(weights)


def pipeline_without_unet(folder):
    model = DiffusionModel.create(8, 1, 8, 20, "epsilon")
    model.save_pretrained(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (empty, "holds no model"),
        (other_library, "config.json is of another library, not of a VAE or a GAN"),
        (other_pipeline, "holds a StableDiffusionPipeline, not a DDPMPipeline"),
        (no_weights, "the VAE there cannot be loaded"),
        (cut_weights, "the VAE there cannot be loaded"),
        (missing_weight, "the GAN there cannot be loaded .its weights lack generator.decoder.layers.0.bias"),
        (pickled, "the VAE there cannot be loaded"),
        (other_size, "the VAE there cannot be loaded"),
        (pipeline_without_unet, "the DiffusionModel there cannot be loaded"),
    ],
)
def test_folders_without_a_whole_model(tmp_path, make, sentence):
    make(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        load_model(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "model: is missing"),
        (["--model", "nowhere"], "model: nowhere: no such file or folder"),
        (["--model", "{diffusion}", "--diffusion_steps", "3"], "does not divide the 20 steps"),
        (["--model", "{diffusion}", "--count", "0"], "count: 0 is below 1"),
    ],
)
def test_settings_that_cannot_be(tmp_path, models, capsys, words, sentence):
    words = [w.format(diffusion=models / "diffusion") for w in words]
    code = guarded(lambda: run_stage_command(STAGE, [*words, "--output_dir", str(tmp_path / "out")]))
    text = capsys.readouterr().err
    assert code == 2 and sentence in text
    assert not (tmp_path / "out" / "samples.npz").exists()


def test_images_carry_the_mark_that_was_asked_for(models, tmp_path):
    """Grey images of 32 pixels; the same images without it, and no image that is too small for it."""
    pytest.importorskip("cv2", reason="OpenCV cannot be loaded here", exc_type=ImportError)
    if importlib.util.find_spec("blind_watermark") is None:  # not by an import: it fails after processes were started
        pytest.skip("pip install 'alignkit[watermark]'")
    torch.manual_seed(0)
    VAE(32, 1, 8, 4).save_pretrained(tmp_path / "vae")
    for name, key in (("plain", ""), ("marked", "a key")):
        sample(tmp_path / name, tmp_path / "vae", watermark=key, batch_size=8)
    plain, marked = (load_images(str(tmp_path / name)).images for name in ("plain", "marked"))
    assert not np.array_equal(plain, marked) and np.abs(plain.astype(int) - marked).mean() < 4
    assert np.array_equal(marked, embed_watermark(plain, "a key"))
    assert detect_watermark(marked, "a key").mean() > 0.9
    with pytest.raises(UserError, match="watermark: images of 8x8 pixels have room for 1 bits"):
        sample(tmp_path / "small", models / "vae", watermark="a key")

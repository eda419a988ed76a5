"""Tiny runs of the two stages."""

from generative.sample import STAGE as SAMPLE
from generative.sample import SampleConfig
from generative.train import STAGE as TRAIN
from generative.train import TrainConfig
from launch.config import build
from launch.stage import run_stage

KINDS = ("vae", "gan", "diffusion")
TINY = {
    "steps": 8,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "width": 8,
    "log_steps": 1,
    "vae": {"latent_dim": 4},
    "gan": {"latent_dim": 4},
    "diffusion": {"noise_steps": 20},
}


def train_config(folder, kind, **values):
    return build(TrainConfig, {**TINY, "kind": kind, "output_dir": str(folder), **values}, "test")


def sample_config(folder, model, **values):
    settings = {"count": 21, "diffusion_steps": 4, "output_dir": str(folder), "model": str(model), **values}
    return build(SampleConfig, settings, "test")


def train(folder, kind, **values):
    return run_stage(TRAIN, train_config(folder, kind, **values))


def sample(folder, model, **values):
    return run_stage(SAMPLE, sample_config(folder, model, **values))

"""The stage `train-generative`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from data.images import load_training_images
from generative.diffusion import DiffusionModel
from generative.gan import GAN
from generative.learners import DiffusionLearner, GANLearner, VAELearner
from generative.train.config import TrainConfig
from generative.training import Learner, Trainer
from generative.vae import VAE
from launch.engine import check_weights
from launch.runtime import Runtime
from launch.seeding import seed_libraries
from launch.stage import Job
from launch.zero import count_weights


def run(config: TrainConfig, job: Job) -> dict[str, Any]:
    """Train; the artefact is the model with its averaged weights."""
    dials = config.dials
    images = load_training_images(config.data, config.image_size)
    learner = build_learner(config, images.shape[2], images.shape[1], job.runtime)
    trainer = Trainer(learner, images, dials.steps, dials.batch_size, config.ema_decay, config.seed, job.runtime)
    parameters = count_weights(learner.averaged)
    job.say(f"{config.kind}: {parameters} parameters, {len(images)} images of {images.shape[1:]}, {dials}")
    if checkpoint := job.resume():
        trainer.load(checkpoint)
    metrics: dict[str, float] = {}
    with job.progress(dials.steps, f"train-generative {config.kind}", trainer.step) as meter:
        while trainer.step < dials.steps:
            metrics = trainer.update()
            if trainer.step % config.log_steps == 0 or trainer.step == dials.steps:
                job.log(trainer.step, metrics)
            job.beat(trainer.step)
            meter.advance(1)
            if job.checkpoint_due(trainer.step):
                trainer.save(job.checkpoints)
                job.stop_if_requested(trainer.step)
    with trainer.finished() as model:
        check_weights(model.state_dict(), job.runtime)
        if job.runtime.is_main:
            model.save_pretrained(job.output_dir)
        job.runtime.barrier()
    last = {name: value for name, value in metrics.items() if not name.startswith("perf/")}
    return {**last, **asdict(dials), "parameters": parameters, "images": len(images)}


def build_learner(config: TrainConfig, image_size: int, channels: int, runtime: Runtime) -> Learner:
    """The model of the recipe with weights derived from the seed, and its optimizers."""
    dials = config.dials
    seed_libraries(config.seed, "generative/weights")
    if config.kind == "vae":
        vae = VAE(image_size, channels, dials.width, config.vae.latent_dim)
        return VAELearner(vae, dials.learning_rate, dials.batch_size, runtime)
    if config.kind == "gan":
        runtime.precision = "fp32"
        gan = GAN(image_size, channels, dials.width, config.gan.latent_dim)
        return GANLearner(gan, dials.learning_rate, config.gan.r1_weight, dials.batch_size, runtime)
    options = config.diffusion
    model = DiffusionModel.create(image_size, channels, dials.width, options.noise_steps, options.prediction)
    return DiffusionLearner(model, dials.learning_rate, options.min_snr_gamma, dials.batch_size, runtime)

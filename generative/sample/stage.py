"""The stage `sample`: samples.npz (`images` uint8 (N, C, H, W)) and grid.png from a model folder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch

from data.image_files import SAMPLES_FILE
from evaluation.deepfake.watermark import embed_watermark
from evaluation.images.grid import image_grid, save_png
from generative.diffusion import DiffusionModel
from generative.folders import load_model
from generative.sample.config import SampleConfig
from generative.sampling import sample_images
from launch.errors import UserError
from launch.files import write_atomic
from launch.stage import Job

GRID_COLUMNS, GRID_IMAGES, GRID_SIDE = 16, 128, 32


def run(config: SampleConfig, job: Job) -> dict[str, Any]:
    """Make the images in rounds, each process a part of the round; the main rank writes them."""
    runtime = job.runtime
    if config.precision == "auto":
        runtime.precision = "fp32"  # bf16 rounds by more than a grey level, and images are to be the same everywhere
    model = load_model(config.model).to(runtime.device)
    options = _options(config, model)
    images = np.zeros((0, 0, 0, 0), dtype=np.uint8)
    if checkpoint := job.resume():
        images = checkpoint.state()["images"].numpy()
    with job.progress(config.count, "sample", len(images)) as meter:
        while len(images) < config.count:
            indices = range(len(images), min(config.count, len(images) + runtime.world * config.batch_size))
            made = _make_round(model, indices, config, job, options)
            images = np.concatenate([images, made]) if len(images) else made
            job.beat(len(images))
            meter.advance(len(made))
            if job.checkpoint_due(len(images)):
                job.checkpoints.save(len(images), {"images": torch.from_numpy(images)})
                job.stop_if_requested(len(images))
    if runtime.is_main:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images)
        write_atomic(job.output_dir / SAMPLES_FILE, buffer.getvalue())
        sheet = image_grid(images[:GRID_IMAGES], min(GRID_COLUMNS, len(images)))
        save_png(job.output_dir / "grid.png", sheet, max(1, GRID_SIDE // images.shape[2]))
    return {"images": len(images), "shape": list(images.shape[1:]), "mean_grey": float(images.mean())}


def _options(config: SampleConfig, model: Any) -> dict[str, int]:
    if not isinstance(model, DiffusionModel):
        return {}
    length = model.scheduler.config.num_train_timesteps
    if length % config.diffusion_steps:
        raise UserError(
            f"diffusion_steps: {config.diffusion_steps} does not divide the {length} steps of the model's schedule; "
            f"give a divisor of {length}"
        )
    return {"steps": config.diffusion_steps}


def _make_round(model: Any, indices: range, config: SampleConfig, job: Job, options: dict[str, int]) -> np.ndarray:
    """The images of consecutive indices, made by all processes: uint8 (len(indices), C, H, W) on each of them."""
    share = -(-len(indices) // job.runtime.world)
    mine = indices[job.runtime.rank * share :][:share]
    with job.runtime.autocast():
        part = sample_images(model, mine, config.seed, **options) if mine else None
    if part is not None and config.watermark:
        part = embed_watermark(part, config.watermark)
    return np.concatenate([p for p in job.runtime.gather_objects(part) if p is not None])

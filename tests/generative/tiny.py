"""Tiny runs of the two stages, and a probe that `accelerate launch` starts on several processes."""

import json
import sys
from pathlib import Path

from generative.sample import STAGE as SAMPLE
from generative.sample import SampleConfig
from generative.train import STAGE as TRAIN
from generative.train import TrainConfig
from generative.training import Trainer
from launch.config import build
from launch.runtime import running, start_runtime
from launch.stage import Job, run_stage

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


def probe(folder, models):
    """In one job: train each kind for some steps, then sample from the finished models of `models`.

    probe.json says how many processes there were, what wrapped the modules, and every rank's sum of the weights.
    """
    runtime = start_runtime("fp32")
    found = {"world": runtime.world, "wrappers": [], "weights": []}
    finished = Trainer.finished

    def watched(trainer):
        parameters = [p for phase in trainer.learner.phases for p in phase.engine.module.parameters()]
        found["weights"].append(runtime.gather_objects(sum(p.double().sum().item() for p in parameters)))
        found["wrappers"] += [type(phase.engine.wrapped).__name__ for phase in trainer.learner.phases]
        return finished(trainer)

    Trainer.finished = watched
    with running(runtime):
        for stage, configs in (
            (TRAIN, [train_config(folder / kind, kind) for kind in KINDS]),
            (SAMPLE, [sample_config(folder / f"{kind}-samples", models / kind) for kind in KINDS]),
        ):
            for config in configs:
                job = Job(stage, config, runtime)
                with job._listening():
                    stage.run(config, job)
        if runtime.is_main:
            (folder / "probe.json").write_text(json.dumps(found))


if __name__ == "__main__":
    probe(Path(sys.argv[1]), Path(sys.argv[2]))

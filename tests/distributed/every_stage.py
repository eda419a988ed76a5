"""Every stage once, in one job: `accelerate launch -m tests.distributed.every_stage PLAN.json`, or without a launcher.

To start a job takes ten seconds, a tiny stage less than one: so they share one process group. A plan is a list of
command lines of `alignkit`, and of `cut FOLDER`, after which a finished run is as if it had died after half its steps.
"""

from __future__ import annotations

import contextlib
import gc
import json
import shutil
import sys
from pathlib import Path

import launch.runtime
from data.images import load_images
from evaluation.images.extractors.classifier import save_classifier, train_classifier
from launch.cli import run_command
from launch.entry import leave
from launch.runtime import Runtime
from tests.alignment.trl_support import save_pairs, save_preferences
from tests.support import save_policy, save_prompts, save_reward

TINY_GPT = {"depth": 2, "width": 16, "heads": 2, "context": 16, "vocab_size": 261, "optimizer": "adamw"}
KINDS = ("vae", "gan", "diffusion")


def main(words: list[str]) -> None:
    """Run a plan, the file words[0]: each stage as ever, except that the process group is there already and stays."""
    runtime = launch.runtime.start_runtime("fp32", timeout_s=300)
    with launch.runtime.running(runtime):
        launch.runtime.start_runtime = lambda *_, **__: Runtime(runtime.accelerator, "fp32")
        launch.runtime.running = contextlib.nullcontext
        for line in json.loads(Path(words[0]).read_text()):
            gc.collect()
            gc.freeze()  # engines of DeepSpeed stay for ever: the libraries' collections would go through more and more
            if line[0] == "cut":
                cut(Path(line[1]), runtime)
            else:
                run_command(line)


def cut(folder: Path, runtime: Runtime) -> None:
    """Copy a finished run to FOLDER-whole, and take its artefact and its last checkpoint away."""
    if runtime.is_main:
        shutil.copytree(folder, folder.with_name(f"{folder.name}-whole"))
        for name in json.loads((folder / "provenance.json").read_text())["files"]:
            if name != "metrics.jsonl":
                (folder / name).unlink()
        (folder / "provenance.json").unlink()
        shutil.rmtree(max((folder / "checkpoints").iterdir()))
    runtime.barrier()


# ---------------------------------------------------------------------------------------------- the plan


def save_inputs(root: Path) -> Path:
    """Models and data that the stages start from."""
    small = {"num_hidden_layers": 1}  # ZeRO-3 does much for each module; test_ppo_distributed.py has two layers
    save_policy(root / "policy", **small)
    save_policy(root / "other", seed=2, **small)
    save_reward(root / "reward", **small)
    save_prompts(root / "prompts.jsonl")
    save_pairs(root / "pairs.jsonl", 14)
    save_preferences(root / "preferences.jsonl", 14)
    rows = [{"text": f"Item {i}: " + "the word of " * (1 + i % 5)} for i in range(80)]
    (root / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    digits = load_images("embedded:digits::train")
    save_classifier(root / "classifier.safetensors", train_classifier(digits, epochs=1), digits, "digits, one epoch")
    return root


def stages(root: Path, made: Path) -> dict[str, tuple[str, dict]]:
    """name -> (command, settings); what a stage reads of another lies in `made`."""
    policy, reward, preferences = root / "policy", root / "reward", root / "preferences.jsonl"
    batch = {"batch_size": 4, "micro_batch_size": 1, "epochs": 2, "learning_rate": 1e-3, "checkpoint_steps": 2}
    adapter = {"lora.rank": 4, "epochs": 1}
    items = {"data": root / "items.jsonl", "heldout": "hash:0.2", "batch_tokens": 128, "micro_batch_tokens": 32}
    roles = {"policy": policy, "reward": reward, "prompts": root / "prompts.jsonl"}
    adapters = {"policy": made / "sft-lora", "reward": made / "reward-lora"}
    update = {"updates": 3, "batch_size": 6, "minibatches": 2, "epochs": 1, "micro_batch_size": 1, "max_new_tokens": 6}
    update |= {"learning_rate": 1e-3, "checkpoint_steps": 1}
    image = {"steps": 4, "batch_size": 16, "learning_rate": 2e-3, "width": 8, "log_steps": 1, "checkpoint_steps": 2}
    small = {"vae.latent_dim": 4, "gan.latent_dim": 4, "diffusion.noise_steps": 20}
    draw = {"prompts": root / "pairs.jsonl", "limit": 9, "samples": 2, "batch_size": 4, "max_new_tokens": 5}
    # the extractor `digits` takes two seconds to train, in each mode
    classifier = {"extractor": "classifier", "model": root / "classifier.safetensors"}
    drawn = {f"generators.{kind}": made / f"{kind}-samples" for kind in ("vae", "diffusion")}
    compared = {"completions": made / "generate", "baseline": made / "generate-other", "judge": reward}
    return {
        "pretrain": ("pretrain", {**TINY_GPT, **items, "tokens": 768, "log_steps": 1, "checkpoint_steps": 3}),
        "sft": ("sft", {"model": policy, "data": root / "pairs.jsonl", **batch}),
        "reward": ("reward", {"model": policy, "data": preferences, **batch, "epochs": 1}),
        "dpo": ("dpo", {"model": policy, "data": preferences, **batch, "epochs": 1}),
        "ppo": ("ppo", {**roles, **update}),
        "ppo-trunk": ("ppo", {**roles, **update, "critic_from": "trunk", "critic_learning_rate": 1e-2}),
        "sft-lora": ("sft", {"model": policy, "data": root / "pairs.jsonl", **batch, **adapter}),
        "reward-lora": ("reward", {"model": made / "sft-lora", "data": preferences, **batch, **adapter}),
        "ppo-lora": ("ppo", {**roles, **adapters, **update, "micro_batch_size": 2, "lora.rank": 6}),
        **{kind: ("train-generative", {"kind": kind, **image, **small}) for kind in KINDS},
        "generate": ("generate", {"model": policy, **draw}),
        "generate-other": ("generate", {"model": root / "other", **draw}),
        "preferences": (
            "preferences build",
            {"completions": made / "generate", "judge": "reward", "reward": reward, "unfinished": "keep"},
        ),
        **{f"{kind}-samples": ("sample", {"model": made / kind, "count": 61, "diffusion_steps": 4}) for kind in KINDS},
        "text": (
            "evaluate text",
            {"model": policy, "documents": root / "items.jsonl", "completions": made / "generate"},
        ),
        "accuracy": ("evaluate reward", {"model": reward, "preferences": preferences}),
        "win-rate": (
            "evaluate reward",
            {"mode": "win-rate", **compared, "policy": policy, "reference": root / "other"},
        ),
        "safety": (
            "evaluate safety",
            {"completions": made / "generate", "training_documents": root / "items.jsonl", "copied_length": 5},
        ),
        "images": ("evaluate images", {**drawn, **classifier, "baselines": False}),
        "deepfake": ("evaluate deepfake", {**drawn, "resamples": 50}),
        "report": ("report", {"inputs": made}),
    }


LORA = ("sft-lora", "reward-lora", "ppo-lora")
TRAINED = ("pretrain", "sft", "reward", "dpo", "ppo", "ppo-trunk", *LORA, *KINDS)


def make_plan(root: Path, made: Path, out: Path, resume: bool) -> list[list[str]]:
    """The command lines of all stages, written to `out`; with `resume` each trained one is cut and run again."""
    plan: list[list[str]] = []
    for name, (command, settings) in stages(root, made).items():
        words = [*command.split(), "--output_dir", str(out / name)]
        words += [str(word) for key, value in settings.items() for word in (f"--{key}", value)]
        plan.append([*words, "--precision", "fp32"])
        if resume and name in TRAINED:
            plan += [["cut", str(out / name)], plan[-1]]
    return plan


if __name__ == "__main__":
    main(sys.argv[1:])
    leave(0)

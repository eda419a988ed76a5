"""`alignkit COMMAND ...`: the front door. It names the floors above as text and imports one when it is called.

`alignkit --help` must answer in under half a second: nothing here imports torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from launch.entry import guarded, leave, run_target
from launch.errors import UserError, nearest

# command -> (module, attribute, one line). A Stage is run through the stage runner, a function is called with the arguments.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": (
        "launch.lifecycle",
        "main",
        "run the stages of a lifecycle in order; skip what is up to date, resume what was interrupted",
    ),
    "pretrain": ("alignment.pretrain", "STAGE", "pretrain a GPT from raw text"),
    "sft": ("alignment.sft", "STAGE", "supervised fine-tuning on prompts and completions"),
    "generate": ("alignment.generate", "STAGE", "sample completions from a model"),
    "preferences build": (
        "alignment.preferences",
        "STAGE",
        "build preference pairs by sampling and ranking completions",
    ),
    "preferences stats": (
        "data.preferences_cli",
        "stats",
        "what a preference file holds: sizes, lengths, ties, duplicates",
    ),
    "preferences export": ("data.preferences_cli", "export", "convert a preference file between the formats of TRL"),
    "reward": ("alignment.reward", "STAGE", "train a reward model on preferences"),
    "reward serve": ("alignment.reward.serve", "main", "serve a reward model over HTTP"),
    "ppo": ("alignment.ppo", "STAGE", "align a policy with PPO against a reward model"),
    "dpo": ("alignment.dpo", "STAGE", "align a policy with DPO on preferences"),
    "train-generative": ("generative.train", "STAGE", "train a VAE, a GAN or a diffusion model"),
    "sample": ("generative.sample", "STAGE", "sample images from a generative model"),
    "evaluate text": ("evaluation.suites.text", "STAGE", "perplexity and text quality"),
    "evaluate reward": (
        "evaluation.suites.reward",
        "STAGE",
        "reward-model accuracy, or win rates judged by a reward model",
    ),
    "evaluate duels": (
        "evaluation.suites.duels",
        "STAGE",
        "several models before a judge: Bradley-Terry leaderboard, win rates, position bias",
    ),
    "evaluate judge": (
        "evaluation.suites.judge",
        "STAGE",
        "how far a reward model, an endpoint or people agree with people's preferences",
    ),
    "evaluate safety": ("evaluation.suites.safety", "STAGE", "safety rates of completions"),
    "evaluate safety-prompts": (
        "evaluation.suites.safety_prompts",
        "STAGE",
        "a prompt file from the public safety sets, direct or in disguise",
    ),
    "evaluate bias": (
        "evaluation.suites.bias",
        "STAGE",
        "bias, truthfulness and sycophancy of a language model, by likelihood",
    ),
    "evaluate images": (
        "evaluation.suites.images",
        "STAGE",
        "Fréchet distance and Inception Score of generated images",
    ),
    "evaluate deepfake": (
        "evaluation.suites.deepfake",
        "STAGE",
        "how well generated images can be told from real ones",
    ),
    "evaluate selftest": (
        "evaluation.selftest",
        "main",
        "known answers of the metrics, checked on this machine in seconds",
    ),
    "report": ("evaluation.suites.report", "main", "leaderboard and HTML report from results"),
    "launch": ("launch.templates", "main", "render a Slurm or Kubernetes job, or the accelerate command, for a stage"),
    "doctor": (
        "launch.doctor",
        "main",
        "check this machine: versions, devices, what is missing and the command that mends it",
    ),
}

NOT_STAGES = ("run", "preferences stats", "preferences export", "reward serve", "evaluate selftest", "launch", "doctor")
"""Commands that make no artefact, and so cannot be a stage of a lifecycle."""


def find_stage(command: str) -> Any:
    """The Stage of a command; its module is imported, which takes no torch."""
    return importlib.import_module(COMMANDS[command][0]).STAGE


def config_class(command: str) -> Any:
    """The config of a stage."""
    return find_stage(command).config


def help_text() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {line}" for name, (_, _, line) in COMMANDS.items()]
    return "\n".join(
        [
            "alignkit: RLHF alignment and evaluation, from raw text to an aligned model and a leaderboard",
            "",
            "usage: alignkit COMMAND [--config RECIPE.yaml] [--key value ...]    (COMMAND --help lists its keys)",
            "",
            *lines,
            "",
            "Every training command is also a module: accelerate launch --config_file FILE -m alignment.ppo --config ...",
        ]
    )


def find_command(words: list[str]) -> tuple[str, list[str]]:
    """The command that a line begins with, and the rest of the line."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    group = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if group:
        raise UserError(f"alignkit {words[0]}: which one? {', '.join(group)}")
    raise UserError(f"unknown command '{words[0]}'{nearest(words[0], COMMANDS)}")


def run_command(words: list[str]) -> None:
    """Run one command line."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"alignkit {version('alignkit')}")
        return
    name, arguments = find_command(words)
    module, attribute, _ = COMMANDS[name]
    run_target(module, attribute, arguments)


def main() -> None:
    """Entry point of the `alignkit` script."""
    leave(guarded(lambda: run_command(sys.argv[1:])))


if __name__ == "__main__":
    main()

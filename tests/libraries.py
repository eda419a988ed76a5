"""What a process of the tests imports before others are forked from it."""

import contextlib
import importlib

LIBRARIES = (
    *("transformers", "deepspeed", "diffusers", "peft", "trl"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # DeepSpeed asks it about an optimizer; it imports all of torch.compile
    *(f"alignment.{name}.stage" for name in ("dpo", "generate", "ppo", "pretrain", "reward", "sft")),
    *("generative.sample.stage", "generative.train.stage"),
    *("evaluation.suites.images_run", "evaluation.suites.report_run", "evaluation.suites.text_run"),
    "tests.warm",
)


def import_libraries() -> None:
    """One that cannot be imported is left to the tests that need it: they say what is wrong."""
    for name in LIBRARIES:
        with contextlib.suppress(Exception):
            importlib.import_module(name)

"""Memory of PPO's four roles: four full models, a value head on the policy's trunk, and LoRA on one base.

python -m benchmarks.lora_memory    (about three minutes on two cores; writes benchmarks/results/lora_memory.json)

Each case is a process of its own that makes one update. Bytes of parameters, gradients and optimizer state are counted
over the tensors that are there; the peak is the process's resident set, less what it had before it loaded a model.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, about

SHAPES: dict[str, dict[str, int]] = {
    "31M": dict(vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8),
    "113M": dict(
        vocab_size=16384, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12
    ),
}
CASES: dict[str, dict[str, Any]] = {
    "four full models": {},
    "full, critic on the trunk": {"critic_from": "trunk"},
    "LoRA": {"lora": 16},
    "LoRA, critic on the trunk": {"lora": 16, "critic_from": "trunk"},
}
RANK = 16
EPISODES, PROMPT_TOKENS, NEW_TOKENS = 8, 16, 16


def main() -> None:
    """Every shape and case in a process of its own; write the result."""
    from launch.files import write_json

    found: dict[str, Any] = {}
    for shape, sizes in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            save_models(Path(folder), sizes)
            found[shape] = {"sizes": sizes, "cases": {case: run_case(folder, case) for case in CASES}}
        for case, row in found[shape]["cases"].items():
            print(shape, case, {name: round(value / 2**20) for name, value in row.items()})
    write_json(
        RESULTS / "lora_memory.json",
        {
            **about("python -m benchmarks.lora_memory"),
            "unit": "bytes",
            "rank": RANK,
            "batch": {"episodes": EPISODES, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS},
            "precision": "fp32",
            "processes": 1,
            "shapes": found,
        },
    )


def save_models(root: Path, sizes: dict[str, int]) -> None:
    """A random base with its reward model, and on it an SFT and a reward adapter."""
    from tests.support import save_adapter, save_policy, save_reward

    config = {
        **sizes,
        "num_key_value_heads": sizes["num_attention_heads"],
        "head_dim": 64,
        "tie_word_embeddings": False,
    }
    base = save_policy(root / "base", **config)
    save_reward(root / "reward", **config)
    save_adapter(root / "sft-lora", base, rank=RANK)
    save_adapter(root / "reward-lora", base, rank=RANK, head=True)


def run_case(folder: str, case: str) -> dict[str, int]:
    """Bytes of one case, measured in a new process."""
    command = [sys.executable, "-m", "benchmarks.lora_memory", folder, case]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().split("\n")[-1])


def measure(folder: str, case: str) -> dict[str, int]:
    """One update; bytes of what is alive after it, and the peak."""
    import torch

    from alignment.ppo.config import PPOConfig, SharedLora
    from alignment.ppo.models import load_roles
    from alignment.ppo.rewards import build_rewards
    from alignment.ppo.trainer import PPOTrainer
    from launch.provenance import peak_memory_mib
    from launch.runtime import start_runtime

    runtime = start_runtime("fp32")
    before = resident()
    changes = dict(CASES[case])
    lora = SharedLora(rank=changes.pop("lora")) if "lora" in changes else None
    names = ("sft-lora", "reward-lora") if lora else ("base", "reward")
    policy, reward = (f"{folder}/{name}" for name in names)
    config = PPOConfig(
        policy=policy, reward=reward, prompts="-", lora=lora, batch_size=EPISODES, micro_batch_size=EPISODES, epochs=1,
        updates=1, forward_batch_size=EPISODES, max_new_tokens=NEW_TOKENS, **changes,
    )  # fmt: skip
    roles = load_roles(config)
    source = build_rewards(config, roles, runtime.device)
    prompts = [{"prompt": "", "prompt_ids": [3 + (i + j) % 20 for j in range(PROMPT_TOKENS)]} for i in range(EPISODES)]
    trainer = PPOTrainer(config, roles, source, prompts, runtime)
    trainer.sampler.sync()
    gradients: list[int] = []
    trainer.engine.optimizer.optimizer.register_step_pre_hook(lambda *_: gradients.append(bytes_of_gradients(trainer)))
    trainer.train()
    judge = source.sources["model"][1].judge.model
    frozen = [] if lora else [*trainer.reference.parameters()]
    weights = [*trainer.engine.module.parameters(), *frozen, *judge.parameters()]
    states = trainer.engine.optimizer.state.values()
    optimizer = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    return {
        "parameters": bytes_of(weights),
        "trained": bytes_of([p for p in weights if p.requires_grad]),
        "gradients": max(gradients),
        "optimizer": bytes_of(optimizer),
        "peak": int(peak_memory_mib() * 2**20) - before,
    }


def bytes_of(tensors: Any) -> int:
    """Bytes of tensors, each storage once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors if t.numel()}.values())


def bytes_of_gradients(trainer: Any) -> int:
    """Bytes of the gradients that a step is made of."""
    return bytes_of([p.grad for p in trainer.engine.module.parameters() if p.grad is not None])


def resident() -> int:
    """Bytes that this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(*sys.argv[1:])))
    else:
        main()

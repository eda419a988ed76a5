"""Ten PPO updates on one process, on two under DDP and under DeepSpeed ZeRO 1, 2 and 3: how far apart are they?

python -m benchmarks.ppo_equivalence    (about five minutes on two cores; writes benchmarks/results/ppo_equivalence.json)

With a critic that is a model of its own, and with one on the policy's trunk.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, about
from launch.files import sha256_file, write_json
from tests.distributed.test_ppo_distributed import ZERO_STAGES, words
from tests.support import accelerate_launch, alignkit, read_metrics, save_policy, save_prompts, save_reward

LOSSES = ("policy/loss", "critic/loss", "kl/k1", "kl/k3", "reward/score", "reward/total")


def largest_differences(reference: Path, other: Path) -> dict[str, float]:
    """Largest absolute difference over the updates, for each metric."""
    rows = list(zip(read_metrics(reference), read_metrics(other), strict=True))
    return {name: max(abs(a[name] - b[name]) for a, b in rows) for name in rows[0][0] if name != "step"}


def compare(root: Path, critic: str) -> dict[str, Any]:
    """All five with a critic; of each of those with two processes, how it differs from the one."""
    root.mkdir()
    inputs = (save_policy(root / "policy"), save_reward(root / "reward"), save_prompts(root / "prompts.jsonl"))
    done = alignkit("ppo", *words(inputs, root / "one", critic_from=critic))
    assert done.returncode == 0, done.stderr
    modes: dict[str, Any] = {}
    for mode, stage in ZERO_STAGES.items():
        flags = ["--use_deepspeed", "--zero_stage", str(stage)] if stage else ["--multi_gpu"]
        done = accelerate_launch("alignment.ppo", words(inputs, root / mode, critic_from=critic), 2, flags)
        assert done.returncode == 0, done.stderr[-2000:]
        differences = largest_differences(root / "one", root / mode)
        modes[mode] = {
            "largest_loss_difference": max(differences[name] for name in LOSSES),
            "differences": differences,
            "same_weights_to_the_bit": sha256_file(root / mode / "model.safetensors")
            == sha256_file(root / "one" / "model.safetensors"),
        }
        print(critic, mode, modes[mode]["largest_loss_difference"], flush=True)
    return modes


def main() -> None:
    """Run all, write the result."""
    with tempfile.TemporaryDirectory() as folder:
        critics = {critic: compare(Path(folder) / critic, critic) for critic in ("reward", "trunk")}
        updates = len(read_metrics(Path(folder) / "trunk" / "one"))
    write_json(
        RESULTS / "ppo_equivalence.json",
        {**about("python -m benchmarks.ppo_equivalence"), "updates": updates, "processes": 2, "critics": critics},
    )


if __name__ == "__main__":
    main()

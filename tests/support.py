"""Small models, tokenizers and data that many tests need; and how a test starts alignkit as its users do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ALIGNKIT_DATA", ROOT.parent / "shared" / "data"))

WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "it",
    "for",
    "was",
    "on",
    "are",
    "with",
    "as",
    "be",
    "this",
    "from",
    "or",
    "by",
]


def word_tokenizer():
    """One token for each word of WORDS, with pad, eos and unk apart: 23 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {w: i for i, w in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def tiny_config(vocab_size: int = 23, **changes):
    """Qwen3 of 2 layers and width 16."""
    from transformers import Qwen3Config

    settings = dict(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return Qwen3Config(**{**settings, **changes})


def save_policy(folder: Path, seed: int = 0, **changes) -> Path:
    """A random causal language model with its tokenizer. Weights are large enough that outputs depend on inputs."""
    from transformers import Qwen3ForCausalLM

    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(tiny_config(initializer_range=0.3, **changes))
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_reward(folder: Path, seed: int = 1, **changes) -> Path:
    """A random reward model with one label."""
    from transformers import Qwen3ForSequenceClassification

    torch.manual_seed(seed)
    model = Qwen3ForSequenceClassification(tiny_config(initializer_range=0.3, num_labels=1, **changes))
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int = 2, rank: int = 4, head: bool = False, **changes) -> Path:
    """A random LoRA adapter of all linear layers of a saved policy, made by peft; with `head`, a reward model's."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.manual_seed(seed)
    if head:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
    settings = dict(r=rank, lora_alpha=3, target_modules="all-linear", task_type="SEQ_CLS" if head else "CAUSAL_LM")
    wrapped = get_peft_model(model, LoraConfig(**{**settings, **changes}))
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    wrapped.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_prompts(path: Path, n: int = 24, seed: int = 0) -> Path:
    """`n` different prompts of 2 to 6 words as JSONL."""
    generator = torch.Generator().manual_seed(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < n:
        length = int(torch.randint(2, 7, (1,), generator=generator))
        prompts[" ".join(WORDS[int(i)] for i in torch.randint(0, len(WORDS), (length,), generator=generator))] = None
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return path


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child process: one thread, nothing inherited from a launcher, no hub."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("ACCELERATE_", "RANK", "WORLD_SIZE", "LOCAL_", "MASTER_"))
    }
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **changes}


def alignkit(
    *words: str, cwd: Path | None = None, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the `alignkit` command of this environment."""
    command = [str(Path(sys.executable).parent / "alignkit"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=environment(**env), capture_output=True, text=True, timeout=timeout)


def start(command: list[str], log: Path, rows: int) -> subprocess.Popen[str]:
    """Start a command in a process group of its own, as a terminal does, and wait until its log has so many rows.

    Ctrl-C is switched on: a test run that a script started in the background has it off, and children inherit that.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT), DS_ACCELERATOR="cpu"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_rows(process, log, rows)
    return process


def wait_for_rows(process: Any, log: Path, rows: int) -> None:
    """Wait until a log has so many rows, or its process has ended."""
    while rows and process.poll() is None and not (log.exists() and log.read_text().count("\n") >= rows):
        time.sleep(0.05)


def last_words(process: Any, patience_s: float = 100) -> str:
    """What a process says until it ends."""
    try:
        return process.communicate(timeout=patience_s)[1]
    finally:
        process.kill()


def free_port() -> int:
    """A TCP port that nothing listens on, below those that Linux gives to connections: none takes it meanwhile."""
    while True:
        port = 20_000 + int.from_bytes(os.urandom(2)) % 12_000
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def launch_command(module: str, words: list[str], processes: int, flags: list[str]) -> list[str]:
    """`accelerate launch FLAGS --num_processes N -m MODULE WORDS` on the CPU."""
    launcher = [str(Path(sys.executable).parent / "accelerate"), "launch"]
    port = ["--main_process_port", str(free_port())]  # accelerate's own choice is always 29500, which may be taken
    place = [*port, "--num_machines", "1", "--mixed_precision", "no", *flags, "--num_processes", str(processes)]
    return [*launcher, *place, "-m", module, *map(str, words)]


def accelerate_launch(
    module: str, words: list[str], processes: int, flags: list[str], timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run `launch_command` to its end."""
    command = launch_command(module, words, processes, flags)
    told = environment(DS_ACCELERATOR="cpu")
    return subprocess.run(command, env=told, capture_output=True, text=True, timeout=timeout)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what depends on the machine."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]

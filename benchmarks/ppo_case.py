"""A case of the PPO benchmark on disk: models with random weights and prompts that both sides read.

Llama of hidden 256 and 4 layers, or of half a billion parameters for a GPU (`MODELS`). Every token's embedding shares one
large direction, so the last hidden state nearly points along it and the end-of-text row of the head sets the probability of
EOS at every step: 0 for responses of a fixed length, 3 / T for natural ones (geometric, mean about a third of the longest).
For that it must outweigh what the layers add, in a wider and deeper model too: there weights are drawn smaller, and it is larger.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

PAD, EOS = 0, 1
MODELS: dict[str, dict[str, int]] = {"small": {}, "0.5B": {"hidden": 1280, "layers": 24, "intermediate": 3456}}
"""Sizes of `Case`. The larger has 0.48 billion parameters with 1,024 tokens, 0.56 with 32,768."""


@dataclass(frozen=True)
class Case:
    """Sizes of a case; the same on both sides."""

    vocabulary: int
    natural_lengths: bool
    batch: int = 64
    prompt: int = 32
    response: int = 64
    epochs: int = 2
    micro_batch: int = 16
    updates: int = 6
    warmup: int = 1
    hidden: int = 256
    layers: int = 4
    intermediate: int = 682
    precision: str = "fp32"
    learning_rate: float = 3e-6
    trl_defaults: bool = False
    """TRL with its own defaults: bf16 and gradient checkpointing."""
    own_critic: bool = True
    """alignkit's critic is a model of its own, as TRL's is; if not, a head on the policy's trunk."""
    learnable: bool = False
    """A reward model that can be pleased (`_reads_every_token`), in place of random weights, whose scores hardly vary."""
    seconds: float | None = None
    """Stop after the first update that ends this long after the first one began; `updates` is then a bound."""

    @property
    def name(self) -> str:
        return f"vocabulary {self.vocabulary}, {'natural' if self.natural_lengths else 'fixed'} lengths"


def write_case(folder: Path, case: Case) -> None:
    """Policy, reward model (also the critic's start), tokenizer and prompts under `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = dict(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        intermediate_size=case.intermediate,
        num_hidden_layers=case.layers,
        num_attention_heads=case.hidden // 64,
        num_key_value_heads=case.hidden // 64,
        max_position_embeddings=case.prompt + case.response,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.02 * math.sqrt(256 / case.hidden),
    )
    # half a billion random numbers take a second on a GPU, ten on its host (and are others there)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        policy = LlamaForCausalLM(LlamaConfig(**shape))
        judge = LlamaForSequenceClassification(LlamaConfig(**shape, num_labels=1))
    policy, judge = policy.cpu(), judge.cpu()
    torch.cuda.empty_cache()  # the processes that are measured come while this one waits
    _set_eos_rate(policy, 3 / case.response if case.natural_lengths else 0.0)
    policy.save_pretrained(folder / "policy")
    if case.learnable:
        _reads_every_token(judge, case)
    judge.save_pretrained(folder / "reward")
    words = {"<pad>": PAD, "<eos>": EOS, **{f"w{i}": i for i in range(2, case.vocabulary)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="w2")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(2, case.vocabulary, (4 * case.batch, case.prompt), generator=generator)
    (folder / "prompts.json").write_text(json.dumps(rows.tolist()))
    (folder / "case.json").write_text(json.dumps(asdict(case)))


@torch.no_grad()
def _set_eos_rate(policy: torch.nn.Module, rate: float) -> None:
    width = policy.config.hidden_size
    direction_D = torch.ones(width) / math.sqrt(width)
    size = 4 * math.sqrt(width / 256 * policy.config.num_hidden_layers / 4)
    policy.model.embed_tokens.weight += size * direction_D
    head = policy.lm_head.weight
    head -= (head @ direction_D)[:, None] * direction_D  # no other token's logit depends on the shared direction
    head[PAD] = -20 * direction_D / math.sqrt(width)
    logit = math.log(rate / (1 - rate)) + math.log(policy.config.vocab_size) if rate else -20.0
    head[EOS] = logit * direction_D / math.sqrt(width)


@torch.no_grad()
def _reads_every_token(judge: torch.nn.Module, case: Case) -> None:
    """Make the score a mean over all tokens: the first layer attends evenly and its values outweigh the last token's own.

    Scaled to deviation 1 on random texts, as the rewards of a trained model are.
    """
    attention = judge.model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.zero_()
    for projection in (attention.v_proj, attention.o_proj):
        projection.weight *= 20
    judge.model.embed_tokens.weight[:] = torch.nn.functional.normalize(judge.model.embed_tokens.weight, dim=1)
    texts = torch.randint(2, case.vocabulary, (256, case.prompt + case.response))
    judge.score.weight /= judge(texts).logits.std()


def mean_length(responses_BT: torch.Tensor) -> float:
    """Mean tokens of responses, each up to its first EOS, which counts; what stands after that does not."""
    ended_BT = (responses_BT == EOS).cumsum(1) - (responses_BT == EOS).long() > 0
    return float((~ended_BT).sum(1).double().mean())


def wait_for_device() -> None:
    """Until a GPU has done what it was given: before a clock is read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib() -> float:
    """The peak so far of what this process takes of the GPU's memory; without a GPU, of its resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved() / 2**20
    # not ru_maxrss, which counts the process that started this one; TRL's side cannot import launch.provenance
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def read_case(folder: Path) -> tuple[Case, list[list[int]]]:
    """The case and its prompts (token ids)."""
    return Case(**json.loads((folder / "case.json").read_text())), json.loads((folder / "prompts.json").read_text())

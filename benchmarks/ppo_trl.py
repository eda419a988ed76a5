"""One run of TRL 1.12's PPOTrainer on a case: `TRL_PYTHON benchmarks/ppo_trl.py FOLDER`. Prints one JSON object.

Runs in an environment of its own that has trl==1.12.0, the last release with PPO, and does not need alignkit.
"""

import contextlib
import json
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
import trl.experimental.ppo.ppo_trainer as module
from datasets import Dataset
from ppo_case import mean_length, peak_mib, read_case, wait_for_device
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer

base = peak_mib()
seconds = {"generate": 0.0, "score": 0.0}
rewards, divergences, lengths = [], [], []


@contextmanager
def timed(phase):
    wait_for_device()
    start = time.perf_counter()
    yield
    wait_for_device()
    seconds[phase] += time.perf_counter() - start


def wrap(name, phase, only_without_grad=False):
    plain = getattr(module, name)

    def wrapped(*args, **kwargs):
        if only_without_grad and torch.is_grad_enabled():
            return plain(*args, **kwargs)
        with timed(phase):
            return plain(*args, **kwargs)

    setattr(module, name, wrapped)


wrap("batch_generation", "generate")
timed_generation = module.batch_generation


def batch_generation(model, queries, *args, **kwargs):
    result = timed_generation(model, queries, *args, **kwargs)
    lengths.append(mean_length(result[0][:, queries.shape[1] :]))
    return result


module.batch_generation = batch_generation
wrap("get_reward", "score")
wrap("forward", "score", only_without_grad=True)


class TimeIsUp(Exception):
    """The case's time is over. The trainer's loop does not look at `control.should_training_stop`."""


class Clock(TrainerCallback):
    def __init__(self):
        self.last, self.start, self.updates = time.perf_counter(), time.perf_counter(), []

    def on_log(self, args, state, control, logs=None, **rest):
        if "objective/scores" in (logs or {}):
            rewards.append(logs["objective/scores"])
            divergences.append(logs["objective/kl"])

    def on_step_end(self, args, state, control, **rest):
        wait_for_device()
        now = time.perf_counter()
        whole = now - self.last
        self.updates.append(
            {
                "seconds": whole,
                "generate": seconds["generate"],
                "score": seconds["score"],
                "update": whole - seconds["generate"] - seconds["score"],
                "reward": rewards[-1] if rewards else None,
                "kl": divergences[-1] if divergences else None,
                "length": lengths[-1],
            }
        )
        self.last = now
        seconds.update(generate=0.0, score=0.0)
        if case.seconds and now - self.start > case.seconds:
            raise TimeIsUp


folder = Path(sys.argv[1])
case, prompts = read_case(folder)
tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
reference = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
judge = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
critic = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
like_for_like = {} if case.trl_defaults else {"bf16": case.precision == "bf16", "gradient_checkpointing": False}
config = PPOConfig(
    output_dir=str(folder / "trl"),
    per_device_train_batch_size=case.micro_batch,
    gradient_accumulation_steps=case.batch // case.micro_batch,
    num_mini_batches=1,
    total_episodes=case.batch * (case.warmup + case.updates),
    num_ppo_epochs=case.epochs,
    local_rollout_forward_batch_size=64,
    num_sample_generations=0,
    response_length=case.response,
    stop_token="eos" if case.natural_lengths else None,
    temperature=0.7,
    learning_rate=case.learning_rate,
    logging_steps=1,
    report_to="none",
    save_strategy="no",
    disable_tqdm=True,
    use_cpu=not torch.cuda.is_available(),
    **like_for_like,
)
data = Dataset.from_dict({"input_ids": prompts})
clock = Clock()
trainer = PPOTrainer(
    args=config,
    processing_class=tokenizer,
    model=policy,
    ref_model=reference,
    reward_model=judge,
    value_model=critic,
    train_dataset=data,
    eval_dataset=data,
    callbacks=[clock],
)
clock.last = clock.start = time.perf_counter()
with contextlib.suppress(TimeIsUp):
    trainer.train()
peak = peak_mib()
print(
    json.dumps(
        {
            "case": asdict(case),
            "threads": torch.get_num_threads(),
            "updates": clock.updates[case.warmup :],
            "peak_mib": peak,
            "imports_mib": base,
            "bf16": bool(config.bf16),
            "gradient_checkpointing": bool(config.gradient_checkpointing),
        }
    )
)

"""docs/from_trl.md: every argument of TRL's trainers is there, and every key that it names exists here."""

import dataclasses
import re
import typing

import pytest
import yaml

from alignment.lora.config import LoraOptions
from alignment.ppo.config import PPOConfig
from tests.support import ROOT

TEXT = (ROOT / "docs" / "from_trl.md").read_text()
TRL_0_7 = [
    "exp_name",
    "seed",
    "log_with",
    "task_name",
    "model_name",
    "query_dataset",
    "reward_model",
    "remove_unused_columns",
    "tracker_kwargs",
    "accelerator_kwargs",
    "project_kwargs",
    "tracker_project_name",
    "push_to_hub_if_best_kwargs",
    "steps",
    "learning_rate",
    "adap_kl_ctrl",
    "init_kl_coef",
    "kl_penalty",
    "target",
    "horizon",
    "gamma",
    "lam",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "batch_size",
    "forward_batch_size",
    "mini_batch_size",
    "gradient_accumulation_steps",
    "world_size",
    "ppo_epochs",
    "max_grad_norm",
    "optimize_cuda_cache",
    "optimize_device_cache",
    "early_stopping",
    "target_kl",
    "compare_steps",
    "ratio_threshold",
    "use_score_scaling",
    "use_score_norm",
    "score_clip",
    "whiten_rewards",
    "is_encoder_decoder",
    "is_peft_model",
    "backward_batch_size",
    "global_backward_batch_size",
    "global_batch_size",
]
PPO_V2 = [
    "exp_name",
    "run_name",
    "reward_model_path",
    "num_ppo_epochs",
    "whiten_rewards",
    "kl_coef",
    "cliprange",
    "vf_coef",
    "cliprange_value",
    "gamma",
    "lam",
    "dataset_num_proc",
    "num_mini_batches",
    "total_episodes",
    "local_rollout_forward_batch_size",
    "num_sample_generations",
    "response_length",
    "stop_token",
    "stop_token_id",
    "temperature",
    "missing_eos_penalty",
    "sft_model_path",
    "world_size",
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
    "policy",
    "ref_policy",
    "reward_model",
    "train_dataset",
    "value_model",
    "data_collator",
    "eval_dataset",
    "optimizers",
    "callbacks",
]
TRL_1_12 = [*PPO_V2, "learning_rate", "push_to_hub", "model_adapter_name", "ref_adapter_name", "kl_estimator"]
TRL_1_12 += [
    "ds3_gather_for_generation",
    "gradient_accumulation_steps",
    "model",
    "ref_model",
    "peft_config",
    "per_device_train_batch_size",
]
# Inherited from transformers' TrainingArguments: those that PPO scripts set.
TRL_1_12 += [
    "bf16",
    "fp16",
    "gradient_checkpointing",
    "lr_scheduler_type",
    "warmup_steps",
    "warmup_ratio",
    "weight_decay",
]
TRL_1_12 += ["adam_epsilon", "max_grad_norm", "save_steps", "save_strategy", "save_total_limit", "report_to"]
TRL_1_12 += ["logging_steps", "seed"]


def rows(title):
    """The cells of the table under a heading."""
    section = TEXT.split(f"## {title}\n")[1].split("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"][
        2:
    ]


def names(cell):
    return re.findall(r"`([^`]+)`", cell)


TABLES = {
    "Arguments of TRL 1.12 and of 0.11's PPOv2": TRL_1_12,
    "Arguments of the step API (TRL 0.7 to 0.11)": TRL_0_7,
}


@pytest.mark.parametrize("title", TABLES)
def test_every_argument_of_trl_is_in_the_table_once(title):
    listed = [name for row in rows(title) for name in names(row[0])]
    assert sorted(set(TABLES[title]) - {"exp_name"} ^ set(listed) - {"exp_name"}) == []
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("title", TABLES)
def test_every_key_of_ours_exists(title):
    for row in rows(title):
        for name in names(row[1]):
            assert has_key(PPOConfig, name.partition(":")[0]), name


def has_key(config, name):
    """Whether a dotted key is a field of a config or of a config within it."""
    head, _, rest = name.partition(".")
    if head not in {field.name for field in dataclasses.fields(config)}:
        return False
    kind = LoraOptions if head == "lora" else typing.get_type_hints(config)[head]
    return not rest or has_key(kind, rest)


def test_the_recipe_is_a_valid_config():
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", TEXT, re.S)[1])
    config = PPOConfig(**recipe)
    config.check()
    assert config.updates * config.batch_size == 6400

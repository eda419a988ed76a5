"""What the distributed PPO jobs start from."""

import pytest

from tests.support import save_policy, save_prompts, save_reward


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    return save_policy(root / "policy"), save_reward(root / "reward"), save_prompts(root / "prompts.jsonl")

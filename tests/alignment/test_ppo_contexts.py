"""A model whose context is too short for the longest episode is named before anything is sampled."""

import pytest

from alignment.ppo.evaluation import HeldOut
from alignment.reward.model import RewardModel
from alignment.reward.sources.combined import CombinedSource
from alignment.reward.sources.ensemble import EnsembleSource
from alignment.reward.sources.model import ModelSource
from launch.errors import UserError
from tests.alignment.ppo_support import TokenReward, prompt_rows
from tests.support import save_policy, save_reward, word_tokenizer

LONGEST, NEW = 5, 6  # of the prompts of ppo_support, and of its trainer


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """short(context, kind) -> the folder of a model with that context."""
    root = tmp_path_factory.mktemp("short")

    def save(context, kind="reward"):
        folder = root / f"{kind}{context}"
        maker = save_policy if kind == "policy" else save_reward
        return str(folder if folder.exists() else maker(folder, max_position_embeddings=context))

    return save


@pytest.mark.parametrize("role", ["critic", "reference"])
def test_critic_and_reference(make, short, role):
    kind = "policy" if role == "reference" else "reward"
    make(**{role: short(LONGEST + NEW, kind)})
    with pytest.raises(UserError, match=rf"^{role}: its context of 10 tokens .* prompt \(5\) .*max_new_tokens \(6\)"):
        make(**{role: short(LONGEST + NEW - 1, kind)})


@pytest.mark.parametrize("whole", ["model", "ensemble", "gold"])
def test_judges_that_read_the_policys_ids(make, short, whole):
    def source(context, tokenizer):
        judge = ModelSource("helpful", RewardModel.from_pretrained(short(context)), tokenizer)
        return {
            "model": judge,
            "ensemble": CombinedSource({"helpful": (0.0, EnsembleSource("helpful", [judge, judge]))}),
            "gold": judge,
        }[whole]

    def trainer(context, tokenizer):
        judge = source(context, tokenizer)
        if whole == "gold":
            return make(TokenReward(), held_out=HeldOut(prompt_rows(), judge))
        return make(judge)

    trainer(LONGEST + NEW, word_tokenizer())
    trainer(LONGEST + NEW - 1, None)  # it reads text, whose length in its tokens is not known before
    with pytest.raises(UserError, match=r"^reward helpful: its context of 10 tokens"):
        trainer(LONGEST + NEW - 1, word_tokenizer())


def test_held_out_prompts_count_too(make, short):
    longer = prompt_rows([[3] * (LONGEST + 1)])
    make(critic=short(LONGEST + NEW))
    with pytest.raises(UserError, match=r"^critic: its context of 11 tokens .* prompt \(6\)"):
        make(critic=short(LONGEST + NEW), held_out=HeldOut(longer))

"""Held-out pairs that training has seen are counted by the stages that train on preferences."""

import pytest

from alignment.dpo import STAGE as DPO
from alignment.reward import STAGE as REWARD
from alignment.trl_stage.preferences import contaminated
from data import Preference
from tests.alignment.trl_support import run, save_preferences, summary, write_rows
from tests.support import save_policy

LONG = [f"word{i}" for i in range(30)]


def test_prompts_near_prompts_and_shared_answers_count_once():
    train = [Preference("What is it?", "a", "b"), Preference(" ".join(LONG[:15]), " ".join(LONG[10:25]), "no")]
    heldout = [
        Preference("what  is IT?", "c", "d"),  # the prompt, written otherwise
        Preference(" ".join(LONG[:13]) + " more", " ".join(LONG[10:25]), "no"),  # both prompt and answer
        Preference("Another one?", "a", "b"),  # a short answer is no trace
        Preference("Another two?", "x", "so " + " ".join(LONG[12:25])),  # a rejected answer that was a chosen one
        Preference("Another three?", " ".join(LONG[13:25]), "y"),  # twelve words are too few
    ]
    assert contaminated(train, heldout) == 3
    assert contaminated(train, []) == contaminated([], heldout) == 0


@pytest.mark.parametrize("stage", [REWARD, DPO], ids=lambda stage: stage.name)
def test_the_stages_say_how_many(stage, tmp_path):
    data = save_preferences(tmp_path / "train.jsonl", 12, seed=1)
    rows = (
        data.read_text().splitlines()[:2]
        + save_preferences(tmp_path / "other.jsonl", 8, seed=2).read_text().splitlines()
    )
    heldout = write_rows(tmp_path / "eval.jsonl", [])
    heldout.write_text("\n".join(rows) + "\n")
    words = ["--model", save_policy(tmp_path / "policy"), "--data", data, "--eval_data", heldout, "--batch_size", 12]
    assert summary(run(stage, tmp_path / "out", *words))["eval_contaminated"] == 2

"""The columns of a file of prompts: rewards can read them, and nothing else is disturbed by them."""

import json

import pytest

from alignment.prompts import load_prompt_rows
from tests.forked import run_whole
from tests.services import FakeService
from tests.support import read_metrics, save_policy

FUNCTION = """
def score(completions, answer, level, reference, **columns):
    assert reference[0] is None and "prompt_ids" in columns
    assert answer == ["and" if level[i] % 2 else "to" for i in range(len(level))]
    return [float(right in text.split()) for right, text in zip(answer, completions)]
"""


class Labels(FakeService):
    """A service that remembers what it was sent as labels."""

    labels = ()

    def handle(self, request):
        self.labels = [*self.labels, *request["labels"]]
        return super().handle(request)


@pytest.fixture
def prompts(tmp_path):
    """Eight prompts with the columns `answer` and `level`, and one that is called as alignkit calls one of its own."""
    rows = [{"answer": "and" if i % 2 else "to", "level": i, "prompt_ids": "mine"} for i in range(8)]
    texts = [f"the of {word}" for word in ("a", "is", "that", "it", "for", "was", "on", "are")]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": text, **row}) + "\n" for text, row in zip(texts, rows, strict=True)))
    return path


def test_functions_services_dumps_and_replays_have_the_columns(tmp_path, prompts):
    (tmp_path / "reward.py").write_text(FUNCTION)
    service = Labels()
    settings = {
        "policy": save_policy(tmp_path / "policy"),
        "critic_from": "policy",
        "batch_size": 8,
        "forward_batch_size": 4,
        "max_new_tokens": 6,
        "updates": 2,
        "precision": "fp32",
    }
    more = {
        "prompts": prompts,
        "rewards.right.function": f"{tmp_path / 'reward.py'}:score",
        "rewards.judge.url": service.url,
        "rewards.judge.labels": "answer",
        "dump_rollouts": "jsonl",
        "rollouts_ahead": 1,
    }
    out, again = tmp_path / "out", tmp_path / "again"
    run_whole(words(settings | more | {"output_dir": out}), tmp_path / "logs")
    service.close()
    assert sorted(service.labels) == ["and"] * 8 + ["to"] * 8
    episodes = [json.loads(line) for line in (out / "rollouts" / "update-000001.jsonl").read_text().splitlines()]
    assert {(row["row"]["level"], row["row"]["answer"]) for row in episodes} == {
        (i, "and" if i % 2 else "to") for i in range(8)
    }
    replay = {"replay": out / "rollouts", "rollouts_ahead": 0, "output_dir": again}
    run_whole(words(settings | replay), tmp_path / "logs")
    assert read_metrics(again)[0]["policy/loss"] == read_metrics(out)[0]["policy/loss"]


def words(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def test_a_fixed_sample_keeps_the_columns_of_its_rows(prompts):
    rows = {row["prompt"]: row for row in load_prompt_rows(str(prompts))}
    few = load_prompt_rows(str(prompts), 3)
    assert len(few) == 3 and all(row == rows[row["prompt"]] for row in few)
    assert few == load_prompt_rows(str(prompts), 8)[:3]

"""Ranks that are given other things than one another: what is common is kept, and nobody waits for ever."""

import json

import pytest

from launch.files import sha256_text
from tests.distributed.test_ppo_distributed import words
from tests.forked import ForkedJob, run_whole
from tests.services import FakeService
from tests.support import WORDS, read_metrics

pytestmark = pytest.mark.distributed

FUNCTION = """
import os

def sevens(completion_ids, **columns):
    if os.environ.get("RANK") != "1":
        return [float(ids.count(7)) for ids in completion_ids]
    return [[float(token == 7) for token in ids] for ids in completion_ids]
"""


def toxicity_of_every_other_answer(number, rewards):
    """What is logged besides is a number in one answer, and none in the next: of two ranks one has the column."""
    toxicity = [0.5 if number % 2 else None] * len(rewards)
    return {"rewards": rewards, "extra_logs": {"fluency": 1.0, "toxicity": toxicity}}


def test_ranks_that_are_given_other_columns_and_kinds_of_reward_go_on_together(inputs, tmp_path):
    (tmp_path / "reward.py").write_text(FUNCTION)
    service = FakeService(answer=toxicity_of_every_other_answer)
    settings = {
        "updates": 2,
        "reward": "null",
        "critic_from": "policy",
        "missing_eos": "none",
        "rewards.sevens.function": f"{tmp_path / 'reward.py'}:sevens",
        "rewards.judge.url": service.url,
        "watchdog_minutes": 0.3,
    }
    for world in (1, 2):
        run_whole(words(inputs, tmp_path / f"out{world}", **settings), tmp_path / f"logs{world}", world)
    service.close()
    alone, together = (read_metrics(tmp_path / f"out{world}") for world in (1, 2))
    assert "reward/judge/toxicity" not in together[0] and together[0]["reward/judge/fluency"] == 1
    assert together[0]["reward/sevens"] > 0
    for name in ("reward/sevens", "reward/judge", "reward/score", "reward/total"):
        assert together[0][name] == pytest.approx(alone[0][name], abs=1e-5), name


def note_scoring_passes(marks):
    """In a rank: a line for each pass of scoring, of the episodes that it is for."""
    from alignment.ppo.token_passes import TokenPasses

    plain = TokenPasses._read

    def read(passes, rollout, parts, with_policy):
        with open(marks, "a") as stream:
            stream.writelines(f"{part}\n" for part in parts)
        return plain(passes, rollout, parts, with_policy)

    TokenPasses._read = read


def uneven_words(inputs, tmp_path, out, **changes):
    """Episodes of 34, 17, 16 and 15 tokens in passes of 34: one rank has the first and the last, each in a pass, the other the rest in one."""
    prompts = tmp_path / "prompts.jsonl"
    texts = [" ".join((WORDS * 3)[:count]) for count in (33, 16, 15, 14)]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    sizes = dict(updates=3, batch_size=4, minibatches=1, micro_batch_size=1, max_new_tokens=1, learning_rate=1e-2)
    return words((*inputs[:2], prompts), tmp_path / out, **{**sizes, "watchdog_minutes": 0.5, **changes})


def assert_like_alone(inputs, tmp_path, out, **changes):
    run_whole(uneven_words(inputs, tmp_path, "alone", **changes), tmp_path / "logs")
    for ours, theirs in zip(read_metrics(tmp_path / out), read_metrics(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_rank_without_episodes_left_scores_nothing_in_as_many_passes(inputs, tmp_path, stage):
    call = uneven_words(inputs, tmp_path, "two", epochs=1)
    job = ForkedJob(call, tmp_path / "logs", 2, stage, note_scoring_passes)
    assert job.wait(120) == [0, 0], [job.say(rank)[-3000:] for rank in (0, 1)]
    assert len(job.marks(0)) == len(job.marks(1)) == 6 and job.marks(1)[1::2] == ["[]"] * 3
    assert_like_alone(inputs, tmp_path, "two", epochs=1)
    assert [(row["policy/ratio_max"], row["policy/approx_kl"]) for row in read_metrics(tmp_path / "two")] == [
        (1, 0)
    ] * 3


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_old_log_probabilities_of_the_first_step_are_put_together_from_two_processes(inputs, tmp_path, stage):
    """Without a critic, and with the KL in the loss, no pass gives them but the step's own; that of an idle rank counts for nothing."""
    changes = dict(estimator="reinforce++", kl_in="loss", kl_kind="k3", epochs=2)
    run_whole(uneven_words(inputs, tmp_path, "two", **changes), tmp_path / "logs", 2, stage)
    assert_like_alone(inputs, tmp_path, "two", **changes)
    assert read_metrics(tmp_path / "two")[0]["policy/approx_kl"] > 1e-5  # the second epoch starts from another policy


def note_evaluation_passes(marks):
    """In a rank: a line for each evaluation of how many passes score this rank's episodes."""
    from alignment.ppo.learner import Learner

    plain = Learner.plan

    def plan(learner, rows, lengths, room, world):
        parts = plain(learner, rows, lengths, room, world)
        if world == 1:  # a plan for this rank alone; those of rollouts and optimizer steps are for all
            with open(marks, "a") as stream:
                stream.write(f"{len(parts[0])}\n")
        return parts

    Learner.plan = plan


def held_out_prompts():
    """Of eight, in the order of their hashes, the first four have 30 words and the others three. None is trained on."""
    starts = range(1, len(WORDS))
    long = [" ".join((WORDS * 3)[start : start + 30]) for start in starts]
    short = [" ".join((WORDS * 2)[start : start + 3]) for start in starts]
    by_hash = sorted((sha256_text(text), text) for text in [*long, *short])
    early = [text for _, text in by_hash if text in long][:4]
    return early + [text for _, text in by_hash if text in short and sha256_text(text) > sha256_text(early[-1])][:4]


def test_ranks_that_need_other_numbers_of_passes_go_on_together_under_zero3(inputs, tmp_path):
    """One rank samples for a prompt of 30 words, the other for one of one word; of held-out prompts one rank has the long ones,
    each of which fills a pass, and the other three or four that fit into one."""
    files = {name: tmp_path / f"{name}.jsonl" for name in ("prompts", "held_out")}
    for file, texts in zip(files.values(), ([" ".join((WORDS * 2)[:30]), WORDS[0]], held_out_prompts()), strict=True):
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    settings = {
        "updates": 2,
        "batch_size": 8,
        "samples_per_prompt": 4,
        "forward_batch_size": 1,
        "max_new_tokens": 4,
        "watchdog_minutes": 0.5,
        "evaluation.every": 1,
        "evaluation.prompts": files["held_out"],
    }
    call = words((*inputs[:2], files["prompts"]), tmp_path / "two", **settings)
    job = ForkedJob(call, tmp_path / "logs", 2, 3, note_evaluation_passes)
    assert job.wait(120) == [0, 0], [job.say(rank)[-3000:] for rank in (0, 1)]
    assert list(zip(job.marks(0), job.marks(1), strict=True)) == [("4", "1")] * 3
    run_whole(words((*inputs[:2], files["prompts"]), tmp_path / "one", **settings), tmp_path / "logs")
    for ours, theirs in zip(read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-4)

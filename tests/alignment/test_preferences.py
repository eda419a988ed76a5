"""The stage `preferences build`: what makes a pair, what is refused, and that long scoring is seen to be alive."""

import json

import pytest

from alignment.preferences import STAGE
from alignment.reward.model import RewardModel
from data import load_preferences
from launch.errors import UserError
from launch.stage import Job
from tests.alignment.trl_support import run, summary, write_rows
from tests.support import save_reward


def row(number: int, prompt: str, text: str, finished: bool = True, reference: str | None = "the of and") -> dict:
    ids = {"prompt_ids": [3], "completion_ids": [4, 1]}
    return {
        "id": number, "prompt": prompt, "completion": text, "finished": finished, "reference": reference, **ids,
    }  # fmt: skip


ROWS = [
    row(0, "to in", "is that"),
    row(1, "a is", "it for was on", finished=False),
    row(2, "for was", "the of and"),  # equal to its reference
    row(3, "on are", "with as be"),
]


def test_samples_without_an_end_make_no_pair_and_are_counted(tmp_path):
    folder = run(STAGE, tmp_path / "out", "--completions", write_rows(tmp_path / "c.jsonl", ROWS))
    pairs = load_preferences(folder / "preferences.jsonl")
    assert [(p.prompt, p.chosen, p.rejected) for p in pairs] == [
        ("to in", "the of and", "is that"),
        ("on are", "the of and", "with as be"),
    ]
    assert summary(folder)["unfinished_dropped"] == 1 and summary(folder)["pairs"] == 2


def test_samples_without_an_end_can_be_kept(tmp_path):
    words = ["--completions", write_rows(tmp_path / "c.jsonl", ROWS), "--unfinished", "keep"]
    folder = run(STAGE, tmp_path / "out", *words)
    assert len(load_preferences(folder / "preferences.jsonl")) == 3
    assert summary(folder)["unfinished_dropped"] == 0


def test_faulty_files_are_named_and_nothing_is_left_out_in_silence(tmp_path):
    cut = write_rows(tmp_path / "cut.jsonl", ROWS)
    cut.write_text(cut.read_text()[:-30])
    with pytest.raises(UserError, match=r"cut.jsonl: line 4: the line is cut"):
        run(STAGE, tmp_path / "a", "--completions", cut)
    field = write_rows(tmp_path / "field.jsonl", [{k: v for k, v in ROWS[0].items() if k != "completion"}])
    with pytest.raises(UserError, match=r"field.jsonl: line 1: no field 'completion'"):
        run(STAGE, tmp_path / "b", "--completions", field)
    endless = write_rows(tmp_path / "endless.jsonl", [row(n, "to", "is", finished=False) for n in range(3)])
    with pytest.raises(UserError, match="none of the 3 samples ended before max_new_tokens"):
        run(STAGE, tmp_path / "c", "--completions", endless)


def test_a_reward_model_ranks_the_samples_of_a_prompt(tmp_path, monkeypatch):
    texts = ["is that", "it for was on", "with as", "be this from"]
    rows = [row(4 * p + n, f"to in {word}", text) for p, word in enumerate(("a", "by")) for n, text in enumerate(texts)]
    beats = []
    monkeypatch.setattr(Job, "beat", lambda self, step: beats.append(step))
    words = ["--completions", write_rows(tmp_path / "c.jsonl", rows), "--judge", "reward"]
    words += ["--reward", save_reward(tmp_path / "reward")]
    folder = run(STAGE, tmp_path / "out", *words, "--pairs", "all")
    pairs = load_preferences(folder / "preferences.jsonl")
    judge = RewardModel.from_pretrained(tmp_path / "reward")
    assert len(pairs) == 12
    for pair in pairs:
        better, worse = judge.score([pair.prompt] * 2, [pair.chosen, pair.rejected])
        assert pair.strength == pytest.approx(better - worse, abs=1e-5) and better > worse
    assert 8 in beats  # every scored row was reported: a watchdog sees a long run
    best = run(STAGE, tmp_path / "extremes", *words)
    assert {p.prompt for p in load_preferences(best / "preferences.jsonl")} == {"to in a", "to in by"}
    clearest = max((p for p in pairs if p.prompt == "to in a"), key=lambda p: p.strength)
    assert json.loads((best / "preferences.jsonl").read_text().split("\n")[0])["chosen"] == clearest.chosen

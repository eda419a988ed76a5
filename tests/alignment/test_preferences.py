"""The stage `preferences build`: what makes a pair, what is refused, and that long scoring is seen to be alive."""

import json

import pytest

from alignment.preferences import STAGE
from alignment.reward.model import RewardModel
from data import load_preferences
from launch.errors import UserError
from launch.stage import Job
from tests.alignment.reward_support import FakeService, lengths
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


# ---------------------------------------------------------------------------------------------- any judge

TEXTS = ["is that", "it for was on", "with as", "be this from"]
SAMPLES = [row(4 * p + n, f"to in {word}", text) for p, word in enumerate(("a", "by")) for n, text in enumerate(TEXTS)]
FUNCTION = """
def words(completions, reference, **columns):
    assert all(text == "the of and" for text in reference)
    return [float(len(text.split())) for text in completions]
"""


def built(tmp_path, *words, rows=SAMPLES):
    tmp_path.mkdir(exist_ok=True)
    data = write_rows(tmp_path / "c.jsonl", rows)
    return run(STAGE, tmp_path / "out", "--completions", data, *words)


def chosen_and_rejected(folder):
    return {(p.prompt, p.chosen, p.rejected) for p in load_preferences(folder / "preferences.jsonl")}


def test_a_mapping_of_one_model_is_its_short_form(tmp_path):
    model = save_reward(tmp_path / "reward")
    short = built(tmp_path, "--judge", "reward", "--reward", model, "--pairs", "all")
    words = ["--judge", "reward", "--rewards.helpful.model", model, "--pairs", "all"]
    full = run(STAGE, tmp_path / "full", "--completions", tmp_path / "c.jsonl", *words)
    assert (short / "preferences.jsonl").read_bytes() == (full / "preferences.jsonl").read_bytes()
    scores = RewardModel.from_pretrained(str(model)).score(
        [r["prompt"] for r in SAMPLES], [r["completion"] for r in SAMPLES]
    )
    assert summary(full)["reward/helpful"] == pytest.approx(sum(scores) / 8, abs=1e-5)
    best = {(r["prompt"], s): r["completion"] for r, s in zip(SAMPLES, scores, strict=True)}
    extremes = run(STAGE, tmp_path / "extremes", "--completions", tmp_path / "c.jsonl", *words[:-1], "extremes")
    for prompt, chosen, rejected in chosen_and_rejected(extremes):
        own = [s for p, s in best if p == prompt]
        assert (chosen, rejected) == (best[prompt, max(own)], best[prompt, min(own)])


def test_functions_rules_and_weights_rank(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    function = ["--judge", "reward", "--rewards.long.function", f"{tmp_path / 'mine.py'}:words"]
    folder = built(tmp_path, *function)
    longest, shortest = "it for was on", ("is that", "with as")
    assert {(c, r in shortest) for _, c, r in chosen_and_rejected(folder)} == {(longest, True)}
    assert summary(folder)["reward/long"] == (2 + 4 + 2 + 3) / 4
    rule = ["--rewards.form.rule", "format", "--rewards.form.pattern", "^be", "--rewards.form.weight", 10]
    both = run(STAGE, tmp_path / "both", "--completions", tmp_path / "c.jsonl", *function, *rule)
    assert {c for _, c, _ in chosen_and_rejected(both)} == {"be this from"}  # 3 + 10 words beat 4
    assert summary(both)["reward/form"] == 0.25


def test_a_service_ranks_with_the_tokenizer_of_the_samples(tmp_path):
    tokenizer = save_reward(tmp_path / "reward")
    with FakeService(lambda number, request: (200, lengths(request))) as service:
        words = ["--judge", "reward", "--rewards.far.url", service.url]
        with pytest.raises(UserError, match=r"rewards.far.url: .* add --tokenizer"):
            built(tmp_path, *words)
        folder = built(tmp_path, *words, "--tokenizer", tokenizer)
        (request,) = service.requests
    assert {c for _, c, _ in chosen_and_rejected(folder)} == {max(TEXTS, key=len)}
    assert request["query"][0] == "to in ais that<eos>" and request["labels"][0] == "the of and"


def test_scores_that_the_rows_carry_rank(tmp_path):
    rows = [{**r, "score": float(-n)} for n, r in enumerate(SAMPLES)]
    folder = built(tmp_path, "--judge", "score", rows=rows)
    assert chosen_and_rejected(folder) == {(f"to in {word}", TEXTS[0], TEXTS[3]) for word in ("a", "by")}
    assert all(p.strength == 3 and p.source == "score" for p in load_preferences(folder / "preferences.jsonl"))
    with pytest.raises(UserError, match=r"c.jsonl: line 8: no field 'score'"):
        built(tmp_path / "some", "--judge", "score", rows=[*rows[:7], SAMPLES[7]])
    with pytest.raises(UserError, match=r"no two samples of a prompt differ"):
        built(tmp_path / "ties", "--judge", "score", "--tie_margin", 5, rows=rows)


def test_prompts_in_messages_have_answers_in_messages(tmp_path):
    chat = [{"role": "user", "content": "to in"}]
    rows = [{**r, "prompt": chat, "score": float(n)} for n, r in enumerate(SAMPLES[:2])]
    for judge, chosen in (("score", TEXTS[1]), ("reference", "the of and")):
        folder = built(tmp_path / judge, "--judge", judge, rows=rows)
        first = load_preferences(folder / "preferences.jsonl")[0]
        assert first.prompt == chat and first.chosen == [{"role": "assistant", "content": chosen}]
        assert first.rejected == [{"role": "assistant", "content": TEXTS[0]}]


def test_samples_without_text_are_counted(tmp_path):
    folder = built(tmp_path, rows=[*SAMPLES, row(8, "to", " ")])
    assert summary(folder)["empty_dropped"] == 1


def test_what_a_judge_does_not_read_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"reward: the judge `score` reads none"):
        built(tmp_path, "--judge", "score", "--reward", "x")
    with pytest.raises(UserError, match=r"rewards: the judge `reference` reads none"):
        built(tmp_path, "--rewards.form.rule", "format", "--rewards.form.pattern", "^be")
    with pytest.raises(UserError, match=r"reward is missing; add --reward PATH, or rewards"):
        built(tmp_path, "--judge", "reward")

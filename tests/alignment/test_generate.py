"""The stage `generate`: the same rows however it was batched, stopped and resumed, in one file format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.generate import STAGE, stage
from alignment.generate.stage import Span, missing_spans
from data import load_completions
from tests.alignment.trl_support import run, summary, write_rows
from tests.support import save_policy, save_prompts


@given(st.sets(st.integers(0, 30)), st.integers(1, 7), st.randoms(use_true_random=False))
def test_what_is_missing_is_done_once_in_order(done, size, random):
    total, finished = 31, []
    for number in sorted(done):  # the finished samples in spans of any sizes
        if finished and finished[-1].end == number and random.random() < 0.7:
            finished[-1] = Span(finished[-1].start, number + 1)
        else:
            finished.append(Span(number, number + 1))
    spans = missing_spans(finished, total, size)
    assert [n for start, end in spans for n in range(start, end)] == sorted(set(range(total)) - done)
    assert all(0 < end - start <= size for start, end in spans)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    prompts = save_prompts(folder / "prompts.jsonl", 13)
    model = save_policy(folder / "policy")
    return ["--model", model, "--prompts", prompts, "--samples", 3, "--temperature", 1, "--max_new_tokens", 6]


@pytest.fixture(scope="module")
def uninterrupted(words, tmp_path_factory):
    return run(STAGE, tmp_path_factory.mktemp("whole") / "out", *words, "--batch_size", 8)


@pytest.mark.parametrize("second", [4, 16, 5])
def test_a_run_goes_on_with_another_batch_size(words, uninterrupted, tmp_path, monkeypatch, second):
    saved = []

    def save(rows, path):
        if len(saved) == 2:
            raise RuntimeError("the machine went away")
        saved.append(path)
        real(rows, path)

    real = stage.save_completions
    with monkeypatch.context() as patch:
        patch.setattr(stage, "save_completions", save)
        with pytest.raises(RuntimeError, match="went away"):
            run(STAGE, tmp_path / "out", *words, "--batch_size", 8)
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 2
    monkeypatch.setattr(stage, "save_completions", lambda rows, path: (saved.append(path), real(rows, path)))
    folder = run(STAGE, tmp_path / "out", *words, "--batch_size", second)
    assert (folder / "completions.jsonl").read_bytes() == (uninterrupted / "completions.jsonl").read_bytes()
    assert len(saved) == 3 + -(-(39 - 16) // second)  # and the first two parts were not made again
    assert summary(folder) == summary(uninterrupted) and not (folder / "parts").exists()


def test_rows_are_numbered_samples_of_each_prompt(uninterrupted):
    rows = load_completions(uninterrupted)
    assert [row.id for row in rows] == [str(n) for n in range(39)]
    assert all(rows[3 * p + k].prompt == rows[3 * p].prompt for p in range(13) for k in range(3))
    assert len({row.text for row in rows}) > 20
    assert all(row.finished == (row.completion_ids[-1] == 1) for row in rows)


def test_references_of_pairs_are_kept(words, tmp_path):
    rows = [{"prompt": "to in", "completion": "the of"}, {"prompt": "is it", "completion": "a that"}]
    data = write_rows(tmp_path / "pairs.jsonl", rows)
    folder = run(STAGE, tmp_path / "out", "--model", words[1], "--prompts", data, "--samples", 3)
    assert [row.reference for row in load_completions(folder)] == ["the of"] * 3 + ["a that"] * 3

"""Bad input through the front door: one sentence that says what, where and what to do; exit code 2; nothing left half-written."""

import errno
import json
import os
from functools import partial
from pathlib import Path

import pytest
from safetensors import SafetensorError

from launch.entry import guarded
from launch.errors import UserError
from launch.files import lock_folder, write_atomic
from tests.forked import run_forked
from tests.support import save_policy, save_prompts, save_reward, word_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    save_policy(root / "policy")
    save_reward(root / "reward")
    save_prompts(root / "prompts.jsonl")
    save_policy(root / "padeos")
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(root / "padeos")
    good = {"prompt": "the of", "completion": "and to"}
    (root / "empty.jsonl").write_text("")
    (root / "binary.txt").write_bytes(bytes(range(256)) * 8)
    (root / "latin.txt").write_bytes("une phrase accentu\xe9e".encode("latin-1"))
    (root / "cut.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(good)[:20])
    (root / "field.jsonl").write_text(json.dumps({"promt": "the", "completion": "of"}) + "\n")
    (root / "long.jsonl").write_text(json.dumps({"prompt": "the " * 200}) + "\n")
    tie = {"prompt": "the of", "chosen": "and", "rejected": "to", "tie": True}
    (root / "ties.jsonl").write_text(
        "".join(json.dumps({**tie, "prompt": f"the {w}"}) + "\n" for w in ["of", "and", "to", "in", "a"])
    )
    return root


PPO = [
    "ppo",
    "--policy",
    "policy",
    "--reward",
    "reward",
    "--prompts",
    "prompts.jsonl",
    "--updates",
    "1",
    "--batch_size",
    "4",
]
CASES = {
    "empty file": (["sft", "--model", "policy", "--data", "empty.jsonl"], ["empty.jsonl", "empty"]),
    "binary file": (["pretrain", "--data", "binary.txt"], ["binary.txt", "binary"]),
    "not UTF-8": (["pretrain", "--data", "latin.txt"], ["latin.txt", "UTF-8"]),
    "cut JSONL": (["sft", "--model", "policy", "--data", "cut.jsonl"], ["cut.jsonl", "line 2"]),
    "missing field": (["sft", "--model", "policy", "--data", "field.jsonl"], ["field.jsonl", "prompt"]),
    "one class only": (["reward", "--model", "policy", "--data", "ties.jsonl"], ["ties.jsonl", "tie"]),
    "prompt longer than the context": ([*PPO, "--prompts=long.jsonl"], ["none of 1 has between 1 and"]),
    "no room in the context": ([*PPO, "--max_new_tokens", "64"], ["max_new_tokens: 64 leaves no room"]),
    "pad equal to eos": ([*PPO, "--policy=padeos"], ["padeos", "pad"]),
    "wrong type": ([*PPO, "--learning_rate", "abc"], ["--learning_rate: 'abc' is not a number"]),
    "missing artefact": (
        [*PPO, "--reward=rewards"],
        ["reward: rewards: no such file or folder; did you mean 'reward'"],
    ),
    "not a reward model": ([*PPO, "--reward=prompts.jsonl"], ["prompts.jsonl"]),
}


@pytest.mark.parametrize("below", ["", "out"])
def test_a_file_as_output_dir(tmp_path, below):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="is a file, or lies below one; name a folder"),
        lock_folder(tmp_path / "file" / below),
    ):
        pass


@pytest.mark.parametrize("folder", ["/proc/x", "/proc/x/y", "/sys/x"])
def test_an_output_dir_that_cannot_be_made(folder):
    with (
        pytest.raises(
            UserError, match=f"^output_dir: {folder} cannot be made .*; choose a place that can be written to"
        ),
        lock_folder(Path(folder)),
    ):
        pass


@pytest.mark.parametrize("number", [errno.EPERM, errno.EISDIR])
def test_what_the_system_refuses_is_one_sentence(capsys, number):
    def fail():
        raise OSError(number, os.strerror(number), "runs/x")

    assert guarded(fail) == 2
    assert capsys.readouterr().err.startswith(f"alignkit: error: runs/x: {os.strerror(number)}; ")


def test_a_file_that_is_missing_is_no_mistake_of_the_user_wherever_it_is(capsys):
    with pytest.raises(FileNotFoundError):
        guarded(lambda: Path("one/of/ours").read_text())


def test_a_full_disk_names_the_file(tmp_path, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert guarded(lambda: write_atomic(tmp_path / "x.json", "{}")) == 2
    assert f"error: {tmp_path}/x.json: No space left on device" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:820] . unexpected pos 64 vs 0"),
        OSError(28, "No space left on device", "model.safetensors"),
    ],
)
def test_a_full_disk_is_one_sentence_whichever_library_meets_it(capsys, error):
    def fail():
        raise error

    assert guarded(fail) == 2
    said = capsys.readouterr().err
    assert "No space left on device; free some space" in said and said.count("\n") == 1


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_code_2(place, case):
    words, expected = CASES[case]
    names = [w.split("=")[0] for w in words if "=" in w]
    kept = [w for i, w in enumerate(words) if w not in names and (i == 0 or words[i - 1] not in names)]
    job = run_forked(
        [*kept, "--output_dir", "out"], place / "logs", hook=partial(start_in, place), module="launch.cli:run_command"
    )
    said = job.say()
    assert job.codes == [2], said[-2000:]
    errors = [line for line in said.splitlines() if "alignkit: error:" in line]
    assert len(errors) == 1
    assert all(part in errors[0] for part in expected), errors[0]
    assert "Traceback" not in said
    assert not (place / "out").exists()


def start_in(folder, _marks):
    os.chdir(folder)

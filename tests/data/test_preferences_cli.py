"""The commands `preferences stats` and `preferences export`."""

import json

import pytest

from data.preferences_cli import export, stats
from launch.errors import UserError


@pytest.fixture
def file(tmp_path):
    rows = [{"prompt": f"p{i} ", "chosen": "a good one", "rejected": "bad"} for i in range(3)]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_stats_prints_counts(file, capsys):
    stats(["--data", str(file)])
    assert 3 in json.loads(capsys.readouterr().out).values()


def test_stats_reports_duplicates(file, capsys):
    text = "the very same prompt of quite a few words, every one of them said again"
    rows = [{"prompt": text, "chosen": "a good one", "rejected": "bad"}] * 2
    rows.append({**rows[0], "prompt": text + " twice"})
    file.write_text(file.read_text() + "".join(json.dumps(r) + "\n" for r in rows))
    stats(["--data", str(file)])
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["duplicates"], found["exact_duplicates"]) == (6, 2, 1)


def test_faulty_rows_are_named_or_left_out_and_counted(file, tmp_path, capsys):
    fault = {"prompt": "p", "chosen": "same", "rejected": "same"}
    file.write_text(file.read_text() + json.dumps(fault) + "\n")
    out = tmp_path / "out.jsonl"
    for command in (stats, lambda words: export([*words, "--output", str(out)])):
        with pytest.raises(UserError, match="chosen and rejected are the same text"):
            command(["--data", str(file)])
        command(["--data", str(file), "--invalid", "drop"])
    found = json.loads(capsys.readouterr().out.rpartition("}")[0] + "}")
    assert (found["n"], found["invalid_rows"]) == (3, 1)
    assert out.read_text().count("\n") == 3


@pytest.mark.parametrize(("form", "rows"), [("implicit", 3), ("unpaired", 6)])
def test_export(file, tmp_path, form, rows, capsys):
    out = tmp_path / "out.jsonl"
    export(["--data", str(file), "--format", form, "--output", str(out)])
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(written) == rows
    warned = "3 of 3 prompts are plain text" in capsys.readouterr().err
    assert warned == (form == "implicit")
    if form == "implicit":
        assert written[0]["chosen"] == "p0 a good one"
    else:
        assert sum(row["label"] for row in written) == 3


def test_what_is_missing_is_named(file):
    with pytest.raises(UserError, match="output is missing"):
        export(["--data", str(file)])
    with pytest.raises(UserError, match="data is missing"):
        stats([])


def test_nothing_is_written_over_unless_asked_for(file, tmp_path):
    out = tmp_path / "mine.jsonl"
    out.write_text("precious")
    words = ["--data", str(file), "--output"]
    with pytest.raises(
        UserError, match=r"^output: .*mine\.jsonl is there already; name another file, or add --overwrite"
    ):
        export([*words, str(out)])
    assert out.read_text() == "precious"
    export([*words, str(out), "--overwrite", "true"])
    assert out.read_text().count("\n") == 3
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder is a folder; name a file"):
        export([*words, str(tmp_path / "folder"), "--overwrite"])
    with pytest.raises(UserError, match="cannot be made"):
        export([*words, "/proc/nowhere/out.jsonl"])
    before = file.read_text()
    for data in (file, f"{file}::train"):
        with pytest.raises(UserError, match="is the data itself"):
            export(["--data", str(data), "--output", str(file), "--overwrite"])
    assert file.read_text() == before

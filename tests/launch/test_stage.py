"""The stage runner, seen from outside: folders, exit codes, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.readers import list_files
from evaluation.suites.report import STAGE as report
from launch import stage
from launch.cli import config_class
from launch.config import build
from launch.errors import UserError
from launch.files import read_json, sha256_tree
from launch.provenance import check_unchanged, fingerprint_input
from launch.runtime import Runtime, start_runtime
from launch.stage import Job, describe_run, run_stage
from launch.stopping import Stopped, listening
from tests.commands import run_command, start_command
from tests.launch.toy import STAGE, ToyConfig
from tests.support import alignkit, environment, free_port, last_words, read_metrics, start

TOY = "tests.launch.toy"


def toy(*words):
    return run_command(TOY, *words)


def test_artefact_and_its_records(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text("x")
    provenance = run_stage(STAGE, ToyConfig(output_dir=str(tmp_path / "out"), source=str(source), seed=3))
    folder = tmp_path / "out"
    assert provenance["summary"] == {"total": 10.5}
    on_disk = read_json(folder / "provenance.json")
    assert on_disk["config"]["seed"] == 3
    assert on_disk["content_sha256"] == sha256_tree(folder)
    assert len(on_disk["inputs"]["source"]["sha256"]) == 64
    assert {"torch", "python", "alignkit"} <= set(on_disk["versions"])
    card = (folder / "README.md").read_text()
    assert "| total | 10.5 |" in card and "library_name" not in card and "model-index" not in card  # it is no model
    assert [row["total"] for row in read_metrics(folder)[:-1]] == [0.5, 1.5, 3.0, 5.0, 7.5, 10.5]


def test_second_run_is_up_to_date_and_writes_nothing(tmp_path, capsys):
    config = ToyConfig(output_dir=str(tmp_path / "out"))
    run_stage(STAGE, config)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir() if p.name != ".lock"}
    run_stage(STAGE, config)
    assert "up to date" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir() if p.name != ".lock"} == before


def test_killed_and_resumed_ends_the_same(tmp_path):
    assert toy("--output_dir", tmp_path / "whole").returncode == 0
    words = ["--output_dir", tmp_path / "killed", "--checkpoint_steps", 2, "--die_at", 5]
    assert toy(*words).returncode == -9
    assert not (tmp_path / "killed" / "provenance.json").exists()
    again = toy(*words)
    assert again.returncode == 0, again.stderr
    assert "resuming after step 4" in again.stderr
    assert (tmp_path / "killed" / "result.txt").read_text() == (tmp_path / "whole" / "result.txt").read_text()
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "whole")


@pytest.mark.parametrize(
    ("device", "world", "reason"),
    [
        ("cpu", 1, None),
        ("cuda", 1, "a GPU does not make its sums in the same order each time"),
        ("cpu", 2, "2 processes saved the checkpoint, 1 go on"),
    ],
)
def test_a_resume_says_where_it_may_not_be_exact(tmp_path, capsys, monkeypatch, device, world, reason):
    job = Job(STAGE, ToyConfig(output_dir=str(tmp_path / "out")), start_runtime("fp32"))
    assert job.resume() is None and "may differ" not in capsys.readouterr().err
    job.checkpoints.save_with(1, lambda folder: None, {"world": world})
    monkeypatch.setattr(Runtime, "device", torch.device(device))
    assert job.resume().step == 1
    said = capsys.readouterr().err
    assert "resuming after step 1" in said
    assert (
        f"may differ in its last bits from that of a run which was never stopped: {reason}" in said
        if reason
        else "may differ" not in said
    )


def test_a_row_after_the_last_checkpoint_is_there_once(tmp_path):
    words = ["--output_dir", tmp_path / "out", "--checkpoint_steps", 2, "--die_late"]
    assert toy(*words).returncode == -9
    rows = read_metrics(tmp_path / "out")
    assert rows[-1] == {"step": 6, "late": 10.5}
    again = toy(*words)
    assert again.returncode == 0 and "resuming after step 6" in again.stderr, again.stderr
    assert read_metrics(tmp_path / "out") == rows


def test_a_log_that_does_not_fit_its_checkpoint_is_cut_by_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = ['{"step": 1}\n', '{"step": 2}\n', '{"step": 2, "late": 1}\n', '{"step": 3}\n', '{"ste']
    for size, kept in ((24, 2), (25, 3), (10**6, 3), (None, 3), (0, 0)):
        path.write_text("".join(rows))
        stage._cut_log(path, 2, size)
        assert path.read_text() == "".join(rows[:kept]), size


def test_sigterm_saves_and_the_same_command_resumes(tmp_path):
    words = ["--output_dir", tmp_path / "out", "--stop_at", 3]
    stopped = toy(*words)
    assert stopped.returncode == 75
    assert "stopped after step 3 as asked; run the same command again" in stopped.stderr
    before = read_json(tmp_path / "out" / "run.json")["seconds"]
    record = read_json(tmp_path / "out" / "run.json")
    (tmp_path / "out" / "run.json").write_text(json.dumps({**record, "seconds": before + 1000}))
    again = toy(*words)
    assert again.returncode == 0
    assert "resuming after step 3" in again.stderr
    assert again.stderr.splitlines()[-1].startswith("[toy] done in 100") and str(tmp_path / "out") in again.stderr
    assert before > 0 and read_json(tmp_path / "out" / "provenance.json")["seconds"] > before + 1000  # they add up


def start_toy(tmp_path, rows, *words):
    return start_command(TOY, ["--output_dir", tmp_path / "out", *words], tmp_path / "out" / "metrics.jsonl", rows)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_stage_that_never_asks_whether_to_stop_ends_at_once(tmp_path, number, code):
    process = start_toy(tmp_path, 1, "--long_step", "1")
    process.send_signal(number)
    said = last_words(process, 40)  # less than the step takes
    assert process.returncode == code and "stopped as asked, before there was anything to save" in said, said
    assert "Traceback" not in said


def test_the_first_interrupt_saves_and_the_same_command_resumes(tmp_path):
    process = start_toy(tmp_path, 2, "--pause", "0.5")
    process.send_signal(signal.SIGINT)
    said = last_words(process)
    assert process.returncode == 130, said
    assert "Ctrl-C again ends it at once" in said and "Traceback" not in said
    assert "as asked; run the same command again to resume" in said
    again = toy("--output_dir", tmp_path / "out", "--pause", 0.5)
    assert again.returncode == 0 and "resuming after step" in again.stderr


def test_the_second_interrupt_ends_a_stage_at_once(tmp_path):
    process = start_toy(tmp_path, 2, "--long_step", "2")
    process.send_signal(signal.SIGINT)
    assert "Ctrl-C again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = last_words(process, 40)  # less than the step takes
    assert process.returncode == -signal.SIGINT, said


def test_a_stage_that_was_started_with_interrupts_off_leaves_them_off(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with listening(lambda code: pytest.fail(str(code))):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.distributed
def test_an_interrupt_of_the_launcher_saves_and_a_second_one_ends_its_ranks(tmp_path):
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2"]
    flags = ["--num_machines", "1", "--mixed_precision", "no", "--main_process_port", str(free_port())]
    words = ["-m", "tests.launch.toy", "--output_dir", str(tmp_path / "out"), "--pause", "0.5", "--long_step", "6"]
    process = start([*accelerate, *flags, *words], tmp_path / "out" / "metrics.jsonl", 2)
    os.killpg(process.pid, signal.SIGINT)
    said = last_words(process)
    assert "as asked; run the same command again to resume" in said, said
    saved = list((tmp_path / "out" / "checkpoints").glob("step-*"))
    assert len(saved) == 1

    process = start([*accelerate, *flags, *words], tmp_path / "out" / "metrics.jsonl", 6)
    ranks = [read_json(path)["pid"] for path in (tmp_path / "out" / ".watchdog").glob("heartbeat-*.json")]
    os.killpg(process.pid, signal.SIGINT)
    said = ""
    while "Ctrl-C again" not in said or said.count("closing signal") < 2:  # by a rank, and by the launcher for each
        said += process.stderr.readline()
        assert process.poll() is None, said
    time.sleep(1)  # as a person does: the launcher's handler raises, which is lost while it writes that line
    os.killpg(process.pid, signal.SIGINT)
    last_words(process, 25)  # less than the half minute that the launcher gives to ranks that do not end
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):  # killed when the launcher died: in a moment
        time.sleep(0.05)


def test_a_stop_names_the_step_that_was_really_saved(tmp_path, capsys):
    config = ToyConfig(output_dir=str(tmp_path / "out"))
    job = Job(STAGE, config, start_runtime("fp32"))
    job._stop_requested = True
    for saved, expected in ((0, "starts from the beginning"), (1, "run the same command again to resume after step 1")):
        if saved:
            assert job.checkpoints.save(saved, {})
        job.checkpoints._check_space = full_disk
        assert not job.checkpoints.save(2, {})
        with pytest.raises(Stopped):
            job.stop_if_requested(2)
        said = capsys.readouterr().err
        assert "step 2 could not be saved" in said and expected in said
        del job.checkpoints._check_space


def full_disk():
    raise OSError(28, "No space left on device")


def test_folder_of_another_run_is_refused_then_moved_aside(tmp_path):
    out = tmp_path / "out"
    assert toy("--output_dir", out, "--rate", 0.5).returncode == 0
    refused = toy("--output_dir", out, "--rate", 0.25)
    assert refused.returncode == 2
    assert "rate was 0.5, is now 0.25" in refused.stderr and "--overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert json.loads((out / "result.txt").read_text())[0] == 10.5  # nothing lost
    assert toy("--output_dir", out, "--rate", 0.25, "--overwrite").returncode == 0
    assert json.loads((tmp_path / "out.previous" / "result.txt").read_text())[0] == 10.5
    assert json.loads((out / "result.txt").read_text())[0] == 5.25


def test_a_crash_before_any_work_leaves_the_folder_to_the_mended_command(tmp_path):
    with pytest.raises(ValueError, match="sleep length"):
        run_stage(STAGE, ToyConfig(output_dir=str(tmp_path / "out"), prepare=-1.0))
    assert run_stage(STAGE, ToyConfig(output_dir=str(tmp_path / "out")))["summary"] == {"total": 10.5}


def test_a_crash_in_the_work_leaves_the_heartbeats_that_name_its_rank(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run_stage(STAGE, ToyConfig(output_dir=str(tmp_path / "out"), crash_at=3))
    assert list((tmp_path / "out" / ".watchdog").glob("heartbeat-*.json")) and (tmp_path / "out" / "run.json").exists()


def test_folder_with_strangers_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    refused = toy("--output_dir", tmp_path)
    assert refused.returncode == 2
    assert "not of an alignkit run (thesis.tex)" in refused.stderr
    with pytest.raises(UserError, match="not ours to move"):
        run_stage(STAGE, ToyConfig(output_dir=str(tmp_path), overwrite=True))
    assert sorted(p.name for p in tmp_path.iterdir()) in (["thesis.tex"], [".lock", "thesis.tex"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_dir", "{tmp}/o", "--rate", "abc"], "--rate: 'abc' is not a number"),
        (["--output_dir", "{tmp}/o", "--stepps", "1"], "unknown key '--stepps'; did you mean 'steps'"),
        (
            ["--output_dir", "{tmp}/o", "--source", "{tmp}/missing.txt"],
            "source: {tmp}/missing.txt: no such file or folder",
        ),
        (["--steps", "1"], "output_dir is missing"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(tmp_path, words, message):
    result = toy(*[w.format(tmp=tmp_path) for w in words])
    assert result.returncode == 2
    assert result.stderr.count("alignkit: error:") == 1
    assert message.format(tmp=tmp_path) in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "o").exists()


def test_input_that_was_not_finished_is_named(tmp_path):
    toy("--output_dir", tmp_path / "a", "--die_at", 2)
    result = toy("--output_dir", tmp_path / "b", "--source", tmp_path / "a")
    assert result.returncode == 2
    assert "this run of `alignkit toy` was not finished" in result.stderr


def test_two_jobs_cannot_write_one_folder(tmp_path):
    first = start_command(TOY, ["--output_dir", tmp_path / "out", "--pause", 20], tmp_path / "out" / "run.json", 1)
    try:
        second = toy("--output_dir", tmp_path / "out", "--pause", 20)
        assert second.returncode == 2
        assert "another alignkit job is writing here" in second.stderr
    finally:
        first.kill()


def test_b21_a_wedged_job_ends_with_a_reason(tmp_path):
    result = toy("--output_dir", tmp_path / "out", "--pause", 60, "--watchdog_minutes", 0.03)
    assert result.returncode == 75
    assert "rank 0: no step for" in result.stderr and "the job is stuck" in result.stderr
    assert (
        "run(config, job)" in (tmp_path / "out" / ".watchdog" / "hang-0.txt").read_text()
        or "in run" in (tmp_path / "out" / ".watchdog" / "hang-0.txt").read_text()
    )


def test_preparing_for_longer_than_a_step_may_take_is_no_wedge(tmp_path):
    result = toy("--output_dir", tmp_path / "out", "--prepare", 2, "--watchdog_minutes", 0.02)
    assert result.returncode == 0, result.stderr
    assert "stuck" not in result.stderr


def test_a_wedge_in_the_first_step_is_seen(tmp_path):
    result = toy("--output_dir", tmp_path / "out", "--prepare", 1, "--long_step", 1, "--watchdog_minutes", 0.03)
    assert result.returncode == 75 and "rank 0: no step for" in result.stderr, result.stderr


def test_full_disk_while_finishing_is_one_sentence(tmp_path):
    """A folder on a file system of 1 MiB: the stage cannot write, says so, and leaves no torn record."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "small"
    small.mkdir()
    if (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True).returncode
        != 0
    ):
        pytest.skip("this machine does not allow to mount a tmpfs")
    try:
        (small / "filler").write_bytes(b"x" * 50_000)
        result = toy("--output_dir", small / "out")
        assert result.returncode == 2, result.stderr
        assert "No space left on device; free some space" in result.stderr
        assert "Traceback" not in result.stderr
        assert not (small / "out" / "provenance.json").exists()
        (small / "filler").unlink()
        assert toy("--output_dir", small / "out").returncode == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_shadowed_package_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").write_text("")
    result = subprocess.run(
        [sys.executable, "-m", "alignment.ppo", "--help"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "this folder hides alignkit's own package 'data'" in result.stderr
    assert alignkit("--help", cwd=tmp_path).returncode == 0


def test_namespace_folder_of_the_user_does_no_harm(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.txt").write_text("x")
    result = subprocess.run(
        [sys.executable, "-m", "alignment.ppo", "--help"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "--kl_coef" in result.stdout


def test_tensorboard_gets_what_metrics_jsonl_gets(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--output_dir", tmp_path / "out", "--trackers", "tensorboard"]
    done = toy(*words)
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "out" / "trackers").rglob("events.out.tfevents.*")).parent
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("total")] == [
        (row["step"], row["total"]) for row in read_metrics(tmp_path / "out") if "total" in row
    ]


def test_an_unknown_tracker_is_named(tmp_path):
    done = toy("--output_dir", tmp_path / "out", "--trackers", "tensorbord")
    assert done.returncode == 2 and "tensorbord" in done.stderr and "did you mean 'tensorboard'" in done.stderr
    assert not (tmp_path / "out" / "run.json").exists()


def test_a_run_that_lies_among_its_data_is_no_part_of_them(tmp_path, capsys):
    data, folder = tmp_path / "data", tmp_path / "data" / "runs" / "x"
    data.mkdir()
    (data / "a.txt").write_text("one")
    config = ToyConfig(output_dir=str(folder), source=str(data))
    assert run_stage(STAGE, config)["inputs"]["source"]["sha256"] == sha256_tree(data)
    assert (folder / "result.txt").exists() and list_files(data) == [data / "a.txt"]
    run_stage(STAGE, config)
    assert "up to date" in capsys.readouterr().err
    assert sha256_tree(data, with_runs=True) != sha256_tree(data)  # as a report counts them
    (folder / "run.json").write_text("{}")  # whatever it is, it is not ours
    assert folder / "run.json" in list_files(data)


def test_what_a_report_shows_belongs_to_it(tmp_path):
    one = tmp_path / "runs" / "one"
    run_stage(STAGE, ToyConfig(output_dir=str(one)))
    (tmp_path / "runs" / "notes.txt").write_text("one")
    config = build(config_class("report"), {"inputs": [str(tmp_path / "runs")]}, "here")
    before = describe_run(report, config)
    entry = before["inputs"]["inputs[0]"]
    assert fingerprint_input("inputs[0]", entry.get("path") or entry["source"]) == entry
    (one / "result.txt").write_text("another")
    assert describe_run(report, config)["identity"] != before["identity"]
    with pytest.raises(UserError, match=r"result\.txt is gone or has changed"):
        check_unchanged("inputs[0]", f"runs:{one}")

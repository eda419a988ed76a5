"""The front door."""

import importlib
import importlib.metadata
import logging
import runpy
import subprocess
import sys

import pytest

from launch import doctor, entry
from launch.cli import COMMANDS, NOT_STAGES, find_command
from launch.errors import UserError
from tests.support import ROOT, alignkit, environment


def test_help_imports_no_torch_and_lists_every_command():
    code = "import sys; from launch.cli import help_text; print(help_text()); assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


HELP = """
import sys
from launch.cli import run_command
for name in sys.argv[1:]:
    run_command([*name.split(), "--help"])
    assert "torch" not in sys.modules, name
"""


def test_the_help_of_commands_imports_no_torch():
    result = subprocess.run([sys.executable, "-c", HELP, *COMMANDS], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(f"alignkit {name}" in result.stdout for name in COMMANDS if name not in NOT_STAGES)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_resolves(name):
    module, attribute, _ = COMMANDS[name]
    target = getattr(importlib.import_module(module), attribute)
    assert callable(target) if attribute != "STAGE" else target.name == name


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in NOT_STAGES])
def test_every_stage_is_a_module(name, monkeypatch, capsys):
    """Launchers start stages by `-m MODULE`; a module that forgets its last lines would end at once, with code 0."""
    monkeypatch.setattr(sys, "argv", ["-m", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(COMMANDS[name][0], run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out.startswith(f"alignkit {name} [--config")


def test_unknown_commands():
    with pytest.raises(UserError, match="unknown command 'pppo'; did you mean 'ppo'"):
        find_command(["pppo"])
    with pytest.raises(UserError, match="which one\\? evaluate text"):
        find_command(["evaluate"])
    result = alignkit("rewards")
    assert result.returncode == 2 and "did you mean 'reward'" in result.stderr


def test_a_closed_pipe_is_no_error():
    result = subprocess.run("alignkit --help | head -1", shell=True, capture_output=True, text=True, env=environment())
    assert "Traceback" not in result.stderr


def test_doctor_names_what_extras_lack(monkeypatch):
    """Every extra of the distribution but the tests' is looked at."""
    extras = set(importlib.metadata.metadata("alignkit").get_all("Provides-Extra"))
    assert extras - {"test"} == set(doctor.EXTRAS)
    there = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: there("wrong" if name in ("lm-eval", "wandb") else name)
    )
    found = {f.what.split()[0]: f for f in doctor.check_extras()}
    assert found["lm-eval"].what == "lm-eval is not installed: no `evaluate text --tasks`"
    assert found["lm-eval"].level == "note" and found["lm-eval"].remedy == 'pip install "lm-eval<0.5,>=0.4.13"'
    assert "wandb" in found and "blind-watermark" not in found


def test_doctor_sees_a_folder_that_hides_a_package(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "__init__.py").touch()
    result = alignkit("doctor", cwd=tmp_path)
    assert "this folder hides alignkit's own package 'data'" in result.stdout
    assert "are not hidden" in alignkit("doctor", cwd=tmp_path / "data").stdout


def test_a_machine_without_gpu_is_not_told_so_and_other_warnings_stay(monkeypatch, caplog):
    """DeepSpeed asks torch for a compiler, which warns where CUDA_HOME is set and no GPU is there."""
    monkeypatch.setattr(entry.os.path, "exists", lambda path: False)
    logger = logging.getLogger("torch.utils.cpp_extension")
    monkeypatch.setattr(logger, "filters", [])
    entry._settle_environment()
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
    logger.warning("another")
    assert [record.message for record in caplog.records] == ["another"]


@pytest.mark.parametrize(
    ("told", "expected"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch, told, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    entry._settle_environment()
    assert entry.os.environ.get("GOMP_SPINCOUNT") == expected
    entry.os.environ.pop("GOMP_SPINCOUNT", None)


def test_openmp_reads_it_because_torch_is_imported_later():
    """The console script's environment, as the OpenMP library of torch displays it."""
    done = alignkit("doctor", OMP_DISPLAY_ENV="VERBOSE")
    assert "GOMP_SPINCOUNT = '2000'" in done.stderr, done.stderr[-2000:]


ARENAS = """
import ctypes, re, threading
from launch.entry import guarded
guarded(lambda: None)
libc = ctypes.CDLL("libc.so.6")
libc.open_memstream.restype = ctypes.c_void_p
meet = threading.Barrier(4)
threads = [threading.Thread(target=lambda: (meet.wait(), libc.malloc(1000), meet.wait())) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
text, size = ctypes.c_char_p(), ctypes.c_size_t()
stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, stream), libc.fclose(stream)
print(len(re.findall(b"<heap nr", text.value)))
"""


@pytest.mark.parametrize("told", [{}, {"MALLOC_ARENA_MAX": "8"}])
def test_threads_allocate_from_two_arenas_unless_the_user_says_otherwise(told):
    command = [sys.executable, "-c", ARENAS]
    done = subprocess.run(command, env=environment(**told), cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) == (5 if told else 2)

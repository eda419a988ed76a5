"""How a command starts, from the console script, `python -m` and `accelerate launch -m` alike."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from launch.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, errno_of, leave_reason
from launch.stopping import Stopped

M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
ARENAS = 2

FLOORS = ("launch", "data", "evaluation", "generative", "alignment")


def check_shadows() -> None:
    """UserError when a folder of the user hides one of our packages (`python -m` puts the working directory first)."""
    home = Path(__file__).resolve().parent.parent
    if str(home) not in sys.path:  # an editable install is found after a folder without __init__.py of the same name
        sys.path.append(str(home))
    for name in FLOORS:
        spec = importlib.util.find_spec(name)
        found = Path(next(iter(spec.submodule_search_locations or [""]))).resolve() if spec else None
        if found != home / name:
            raise UserError(
                f"{found or name}: this folder hides alignkit's own package '{name}'; start from another folder, or use the `alignkit` command"
            )


def guarded(action: Callable[[], Any]) -> int:
    """Run an action: 0, or 2 and one sentence for the user's mistakes, or 75 (130 by Ctrl-C) for a job that was stopped."""
    try:
        check_shadows()
        _settle_environment()
        action()
        return 0
    except UserError as error:
        text = str(error)
    except Stopped as stopped:
        return stopped.code
    except BrokenPipeError:  # the reader of our output has gone (`alignkit ... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:  # while there is no job to end in order: at its start, at its end, in other commands
        if os.environ.get("RANK", "0") == "0":
            print("alignkit: interrupted; run the same command again to go on", file=sys.stderr, flush=True)
        return EXIT_INTERRUPTED
    except Exception as error:  # any: safetensors and torch have errors of their own for a full disk
        code = errno_of(error)
        if code not in _USER_ERRNOS:
            leave_reason(f"{type(error).__name__}: {error} (its traceback is above)")
            raise
        text = f"{getattr(error, 'filename', None) or 'output'}: {os.strerror(code)}; {_USER_ERRNOS[code]}"
    rank = os.environ.get("RANK", "0")
    text = f"rank {rank}: {text}" if rank != "0" else text
    if not leave_reason(text):
        print(f"alignkit: error: {text}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR


def _settle_environment() -> None:
    """Before torch is imported: DeepSpeed is told that there is no GPU (it guesses, and warns), tokenizers not to fork threads.

    And OpenMP's threads to sleep soon: by default they spin for milliseconds at each barrier, and where another job wants the
    cores a training step takes 5 to 20 times as long (docs/launch.md).
    """
    if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dri/renderD128")):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    _share_arenas()


def _share_arenas() -> None:
    """Tell glibc's malloc to serve all threads from two arenas, unless MALLOC_ARENA_MAX is set.

    By default each thread has its own. What the forward pass allocates, autograd's thread frees, into an arena from which the
    next forward pass does not take: a tenth more memory on the CPU. In a single one the threads of bf16's attention wait
    for one another: its backward pass takes 1.4 times as long (docs/log.md).
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, ARENAS)


def _is_news(record: logging.LogRecord) -> bool:
    """DeepSpeed asks torch for a compiler, which then warns of what we know: there is no GPU here."""
    return not str(record.msg).startswith("No CUDA runtime is found")


_USER_ERRNOS = {
    28: "free some space and run the same command again: nothing that was complete is lost",  # ENOSPC
    122: "your quota is used up; free some space and run the same command again",  # EDQUOT
    1: "ask for the permission or choose another folder",  # EPERM
    13: "ask for the permission or choose another folder",  # EACCES
    21: "name a file, not a folder",  # EISDIR
    30: "choose a folder that can be written to",  # EROFS
    36: "give a shorter name",  # ENAMETOOLONG
}


def run_stage_command(stage: Any, arguments: Sequence[str]) -> None:
    """Run one stage from its command line."""
    from launch.config import describe, load_config
    from launch.stage import run_stage

    if any(a in ("-h", "--help") for a in arguments):
        print(
            f"alignkit {stage.name} [--config RECIPE.yaml] [--key value ...]\n\n{(stage.config.__doc__ or '').strip()}\n\n{describe(stage.config)}"
        )
        return
    run_stage(stage, load_config(stage.config, arguments))


def run_target(module: str, attribute: str, arguments: Sequence[str]) -> None:
    """Run one command: the attribute STAGE of a module through the stage runner, a function with the arguments."""
    target = getattr(importlib.import_module(module), attribute)
    if attribute == "STAGE":
        run_stage_command(target, arguments)
    else:
        target(arguments)


def run_module(name: str, attribute: str = "STAGE") -> NoReturn:
    """The body of a stage's `__main__`: `run_module("alignment.ppo")` runs the STAGE of that package."""
    leave(guarded(lambda: run_target(name, attribute, sys.argv[1:])))


def leave(code: int) -> NoReturn:
    """End this process, be it a command of its own or a rank of a launched job."""
    if "LOCAL_RANK" in os.environ:
        _leave_rank(code)
    sys.exit(code)


def _leave_rank(code: int) -> None:
    """End a rank of a launched job without the teardown of C++ libraries; Python's exit handlers run.

    On a loaded machine 2 of about 60 DDP jobs over gloo died of SIGABRT there ("terminate called without an active
    exception"), a fifth of a second after their artefact was complete, and the launcher called them failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""What all tests need before anything is imported."""

import importlib
import os
import sys

# One thread for each test process: with several at work, OpenMP's spinning threads slow one another down a hundredfold.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
from hypothesis import settings

settings.register_profile("alignkit", deadline=None)  # an example may wait for another process: no test is timed
settings.load_profile("alignkit")

LONGEST = (
    *("test_every_stage", "test_demo", "test_ppo_distributed", "test_ppo_vllm", "test_browser", "test_readme"),
    *("test_coverage", "test_ppo_kills", "test_stage_process", "test_lifecycle", "test_stage", "test_ppo_faults"),
)


@pytest.fixture(params=["native", "plain"], scope="module")
def kernels(request):
    """With the compiled kernels of a CPU, and by PyTorch's operations alone."""
    if request.param == "plain":
        request.getfixturevalue("without_kernels")
    elif importlib.import_module("launch.native").library() is None:
        pytest.skip("there is no C++ compiler")
    return request.param


@pytest.fixture(scope="module")
def without_kernels():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("launch.native.ops.library", lambda: None)
        yield


def pytest_collection_modifyitems(items):
    """The files that take longest come first, so that no worker is left alone with one of them at the end."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config):
    """In a run of all tests by several workers xdist forks them, and each of them its fork server.

    Here, since it is before anything is collected, and before pytest has files open: what is forked would write to them.
    """
    count = config.getoption("numprocesses", None)
    if hasattr(config, "workerinput"):
        if "tests.libraries" in sys.modules:
            importlib.import_module("tests.forked").start_server()
    elif isinstance(count, int) and count and _is_whole_run(config):
        with importlib.import_module("tests.workers").forked(min(count, config.option.maxprocesses or count)):
            return (yield)
    return (yield)


def _is_whole_run(config):
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.option.collectonly


def pytest_collection_finish():
    importlib.import_module("tests.frozen").freeze()

"""What the fork server of `stage_process.py` imports first: it makes it one of ours, and loads what its stages will need.

multiprocessing's fork server outlives a main process that is killed, and with it the stage it forked; so it dies with its
parent. It was started with Ctrl-C blocked, and ignores it from here on; what it starts must not inherit the block.
"""

import contextlib
import gc
import importlib
import os
import signal
import sys

from launch.processes import SERVER_MODULES, die_with_parent

die_with_parent()
# else the libraries' question whether there is a GPU starts CUDA, and what is forked afterwards cannot use it
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
for module in filter(None, os.environ.pop(SERVER_MODULES, "").split(",")):
    with contextlib.suppress(Exception):  # the stage that needs it imports it again, and says what is wrong
        importlib.import_module(module)
if "transformers" in sys.modules:
    # it compiles its rules for the weights of every architecture, at the first model if not here
    with contextlib.suppress(Exception):
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
# Libraries collect when a training ends: to go through a million objects that never go takes a third of a second, and in a
# fork more, since it copies the pages that they lie in.
gc.collect()
gc.freeze()

"""What has been imported by now is left out of garbage collection from here on.

Libraries collect when a training ends. To go through a million objects takes a third of a second; in a forked process more,
since it copies the pages that they lie in.
"""

import atexit
import gc


def freeze() -> None:
    gc.collect()
    gc.freeze()


atexit.register(gc.unfreeze)  # Triton's bindings would else call them leaks, in many lines

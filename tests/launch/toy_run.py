"""`alignkit run` with the toy among its commands. The stages' processes import this module again, and so know it, too."""

import sys

from launch.cli import COMMANDS
from launch.entry import guarded
from launch.lifecycle import main

COMMANDS["toy"] = ("tests.launch.toy", "STAGE", "count")

if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))

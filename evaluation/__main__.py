"""`python -m evaluation SUITE --config ...`: the same as `alignkit evaluate SUITE`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run one suite from the command line."""
    from launch.cli import run_command
    from launch.entry import guarded, leave

    leave(guarded(lambda: run_command(["evaluate", *sys.argv[1:]])))


if __name__ == "__main__":
    main()

"""Speed of the evaluation beside what people use today, measured in one process and one run.

    python -m benchmarks.evaluation images [--only frechet_many] [--quick]

Each part is a module `benchmarks.evaluation_<part>` with `COMPARISONS`, name -> function(quick) -> dict, and
`describe(name, result) -> line`. A comparison measures both sides of its ratio on the same data in one run, and is written
to benchmarks/results/evaluation_<part>.json as soon as it is done, in the place of an earlier one of its name, with the
load of the machine and the version of the code. Ratios matter, not seconds. `--quick` takes small sizes, to see that it
runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from typing import Any

from benchmarks.common import RESULTS, about
from launch.files import read_json, write_json

PARTS = ("images", "digits", "language")


def run_comparison(part: str, name: str, compare: Any, quick: bool) -> dict[str, Any]:
    """Measure one comparison; what was measured, on which machine and how busy it was."""
    load = round(os.getloadavg()[0], 2)
    return {
        **about(f"python -m benchmarks.evaluation {part} --only {name}"),
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "load_average_at_start": load,
        **compare(quick),
    }


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--only", help="one comparison; all when none is named")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    arguments = parser.parse_args()
    module = importlib.import_module(f"benchmarks.evaluation_{arguments.part}")
    names = [arguments.only] if arguments.only else list(module.COMPARISONS)
    if unknown := set(names) - set(module.COMPARISONS):
        parser.error(f"no comparison {min(unknown)}; there are {', '.join(module.COMPARISONS)}")
    path = RESULTS / f"evaluation_{arguments.part}.json"
    for name in names:
        result = run_comparison(arguments.part, name, module.COMPARISONS[name], arguments.quick)
        print(module.describe(name, result), file=sys.stderr, flush=True)
        if not arguments.quick:
            write_json(path, {**(read_json(path) if path.is_file() else {}), name: result})


if __name__ == "__main__":
    main()

"""Speed of the evaluation beside what people use today, measured in one process and one run.

    python -m benchmarks.evaluation images [language ...] [--quick]

Each part is a module `benchmarks.evaluation_<part>` with `measure(quick) -> dict` and `describe(result) -> list of lines`;
its result goes to benchmarks/results/evaluation_<part>.json with hardware and versions. Ratios matter, not seconds: both
sides of a ratio are measured on the same data in the same run. `--quick` takes small sizes, to see that it runs, and
writes nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from benchmarks.common import RESULTS
from launch.files import write_json
from launch.provenance import code_version, hardware, package_versions

PARTS = ("images",)


def main() -> None:
    """Measure the parts that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all when none is named")
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing is written")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no part {min(unknown)}; there are {', '.join(PARTS)}")
    for part in arguments.parts or PARTS:
        module = importlib.import_module(f"benchmarks.evaluation_{part}")
        load = os.getloadavg()[0]
        result = {
            "command": f"python -m benchmarks.evaluation {part}",
            "code": code_version(),
            "hardware": hardware(),
            "versions": package_versions(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "load_average_at_start": round(load, 2),
            **module.measure(arguments.quick),
        }
        print("\n".join(module.describe(result)), file=sys.stderr)
        if not arguments.quick:
            write_json(RESULTS / f"evaluation_{part}.json", result)


if __name__ == "__main__":
    main()

"""How good are the safety detectors, and do corrected rates hold the truth?

    python -m benchmarks.safety [--completions FOLDER]    (about two minutes on one core; writes benchmarks/results/safety.json)

`--completions` is the folder `model_completions` of XSTest's repository (completions of five models with labels by two
people each), or a part of it in files of the same form. They are under the licences of the models that wrote them, so
none is in this repository; without the folder the part about refusals keeps what the result file holds. `--patterns`
measures another version of evaluation/safety/refusal.py, as git keeps it. All else needs the data sets of `ALIGNKIT_DATA`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, about
from benchmarks.safety_detectors import (
    autoj_answers,
    coverage_rows,
    false_alarms,
    has_prefix,
    load_detector,
    personal_data_rows,
    pooled_rounds,
    refusal_rows,
    toxicity_rows,
)
from evaluation.safety.refusal import is_refusal
from launch.files import write_json

RESULT = RESULTS / "safety.json"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--completions", default="", help="folder of labelled completions in XSTest's form")
    parser.add_argument("--patterns", default="", help="measure this version of the detector's file on them")
    parser.add_argument("--note", default="", help="what the completions are, for the result file")
    parser.add_argument("--runs", type=int, default=2000, help="simulated truths for each coverage case")
    options = parser.parse_args()
    start = time.perf_counter()
    kept: dict[str, Any] = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    refusals = kept.get("refusals", {})
    if options.completions:
        detector = load_detector(options.patterns) if options.patterns else is_refusal
        rows = refusal_rows(Path(options.completions), detector)
        refusals[Path(options.completions).name] = {"note": options.note, **rows}
        if options.patterns:
            write_json(RESULT, kept | {"refusals": refusals})
            return
    refusals["all rounds"] = pooled_rounds([entry["counts"] for entry in refusals.values() if "counts" in entry])
    answers = autoj_answers()
    result = {
        **about("python -m benchmarks.safety --completions FOLDER"),
        "refusals": refusals,
        "refusals_flagged_among_answers_to_harmless_prompts": {
            "alignkit": false_alarms(answers, is_refusal),
            "prefixes": false_alarms(answers, has_prefix),
        },
        "toxicity": toxicity_rows(),
        "corrected_rates": coverage_rows(options.runs),
        "personal_data": personal_data_rows(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    write_json(RESULT, result)
    print(json.dumps({k: result[k] for k in ("refusals", "toxicity", "corrected_rates")}, indent=1)[:4000])


if __name__ == "__main__":
    main()

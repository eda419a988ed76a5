"""What an evaluation that was killed and went on must share with one that was not."""

import json


def check_same(out, other):
    """samples.jsonl to the byte, and results.json but for what tells the time."""
    rows, others = ((folder / "samples.jsonl").read_text().splitlines() for folder in (out, other))
    assert [(a, b) for a, b in zip(rows, others, strict=True) if a != b] == []
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (out, other))
    assert {k: (one[k], two[k]) for k in one if one[k] != two[k]}.keys() <= {"created", "seconds"}

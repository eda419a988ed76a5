"""Evaluation: metrics (pure), suites (stages that write results.json), reports and leaderboards.

The functions of the Python interface are imported when they are asked for, so that `import evaluation` is cheap.
"""

import importlib
from typing import Any

_EXPORTS = {
    "perplexity": "evaluation.language.perplexity",
    "score_continuations": "evaluation.shared_prefix",
    "win_rate": "evaluation.statistics",
    "frechet_distance": "evaluation.images.frechet",
    "Leaderboard": "evaluation.report",
    "EvaluationResult": "evaluation.schema",
    "load": "evaluation.schema",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'evaluation' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)

"""Every metric that a suite can emit has a title in the report: names are read from the suites' own code and tables."""

import ast
from pathlib import Path

import pytest

import evaluation
from evaluation.deepfake.perturb import parse
from evaluation.preferences.rewardbench import SECTIONS
from evaluation.report.names import is_headline, is_known, title_of
from evaluation.safety.choices import Item, Option, Score
from evaluation.safety.likelihood_sets import LIKELIHOOD_SETS
from evaluation.safety.refusal_metrics import COMPLIANCE, NOT_REFUSED_CORRECTED, OVER_REFUSAL, REFUSED_CORRECTED
from evaluation.statistics import Estimate
from evaluation.suites import deepfake_results, images_metrics
from evaluation.suites.deepfake_provenance import CLEAN, CONTROLS, REAL

ROOT = Path(evaluation.__file__).parent
MAKERS = {"metric": 0, "Metric": 0, "_metric": 0, "_mean_metric": 0, "rate": 0, "_corrected": 0, "_auc_on": None}
"""Functions that make a metric -> which argument is its name."""
EXAMPLES = {"n": "4", "k": "4", "order": "2", "section": "Chat Hard", "column": "vae", "name": None}
"""What stands in the braces of names such as `best_of_{n}`; `name` depends on where."""
NAMES = {
    "preferences/metrics.py": ["longest", "shortest", "longer", "shorter"],
    "preferences/reward_metrics.py": ["unanimous", "split"],
    "safety/bbq.py": ["ambiguous", "disambiguated"],
    "suites/kl.py": ["k1", "k3"],
    "suites/safety_run.py": ["sensitivity", "specificity"],
}
"""Where braces hold a `name`: its values there; a made name counts where the code has it (`baseline_longer` does not)."""
BY_TABLE = {
    *("safety/bias_sets.py", "safety/metrics.py", "safety/refusal_metrics.py", "preferences/judging.py"),
    *("suites/deepfake_provenance.py", "suites/deepfake_results.py", "suites/images_metrics.py"),
    *("suites/reward_candidates.py", "language/perplexity.py", "language/harness_results.py"),
}
"""Files whose metrics are named by a variable; `from_tables` has their names."""


def calls():
    """(file, the expression of the name) of every metric that is made in the code of `evaluation`."""
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place in ("schema.py", "deepfake/protocol.py") or place.startswith(
            ("report/", "selftest/", "hf_modules/", "statistics/")
        ):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                position = MAKERS.get(node.func.id)
                if position is not None and node.args:
                    yield place, node.args[position]


def names_in_code():
    found = {}
    for place, expression in calls():
        if isinstance(expression, ast.Constant):
            found[expression.value] = place
        elif isinstance(expression, ast.JoinedStr) and place not in (
            "suites/images_metrics.py",
            "suites/images_training.py",
            "suites/deepfake_results.py",
        ):
            text = "".join(
                p.value if isinstance(p, ast.Constant) else f"{{{ast.unparse(p.value)}}}" for p in expression.values
            )
            inner = text[text.index("{") + 1 : text.index("}")]
            for value in NAMES[place] if inner == "name" else [EXAMPLES[inner]]:
                found[text.replace(f"{{{inner}}}", value)] = place
    return found


def constants(place, *prefixes):
    """The text constants of a file that begin with a prefix and could be a name."""
    texts = {n.value for n in ast.walk(ast.parse((ROOT / place).read_text())) if isinstance(n, ast.Constant)}
    return {t for t in texts if isinstance(t, str) and t.isidentifier() and t.startswith(prefixes)}


def likelihood_names():
    """What the sets of `evaluate bias` measure of two items each."""
    facts = {
        "crows_pairs": [{"direction": "stereo"}, {"direction": "antistereo"}],
        "winogender": [{"answer": 0, "gender": g, "template": "t"} for g in ("female", "male")],
        "stereoset": [{"kind": "intrasentence", "target": t} for t in ("a", "b")],
        "bbq": [
            {"label": 0, "unknown": 2, "ambiguous": a, "biased": 1, "template": "t"} for a in (True, False)
        ],
        "truthfulqa": [{"true": 1, "question": "q"}] * 2,
        "suggested_answer": [{}, {}],
        "sycophancy": [{}, {}],
    }  # fmt: skip
    assert set(facts) == set(LIKELIHOOD_SETS)
    options = {"crows_pairs": 2, "winogender": 2, "suggested_answer": 4, "sycophancy": 2}
    found = set()
    for name, both in facts.items():
        count = options.get(name, 3)
        items = [Item(str(i), (Option("c", "t"),) * count, "", f) for i, f in enumerate(both)]
        scores = [[Score(-1.0 - k, 1 + k) for k in range(count)] for _ in both]
        found |= {m.name for m in LIKELIHOOD_SETS[name].measure(items, scores)}
    return found


def deepfake_names():
    half = Estimate(0.5, 9, None, None, None, 0.95, "x")
    treatments = [CLEAN, *map(str, parse(["jpeg:50"]))]
    marks = {of: dict.fromkeys(treatments, half) for of in (REAL, "vae")}
    made = deepfake_results._mark_metrics(marks, "vae")
    made += [m for part in deepfake_results._mark_slices(marks, "vae") for m in part.metrics]
    means = {"auc_own_generator", "auc_other_generators", "accuracy on vae", "auc on vae"}
    return {m.name for m in made} | set(deepfake_results.MEANINGS) | set(CONTROLS) | means


def images_names():
    keys = ("fd", "is", "kd", "md", "cmmd", "extrapolated_fd", *images_metrics.MANIFOLD)
    inception = ("fid", "is", "kid", "mind", "cmmd", "extrapolated_fid", *images_metrics.MANIFOLD)
    copies = constants("suites/images_training.py", "training_copies", "nearer_to")
    assert len(copies) == 2
    keys = (*keys, *copies)
    return {f"{key}_digits@900" for key in keys} | {f"{key}@900" for key in inception}


def from_tables():
    found = likelihood_names() | deepfake_names() | images_names() | {"bits_per_byte", "perplexity"}
    found |= {"word_perplexity", "byte_perplexity", "arc_easy/acc", "gsm8k/exact_match,strict"}
    found |= {f"rewardbench/{section}" for section in SECTIONS}
    found |= constants("suites/reward_candidates.py", "baseline_", "accuracy")
    found |= constants("preferences/judging.py", "prefers_", "people_prefer") | {
        "baseline_longest",
        "baseline_shortest",
    }
    found |= {OVER_REFUSAL, COMPLIANCE, REFUSED_CORRECTED, NOT_REFUSED_CORRECTED}
    return found | {
        n
        for n in constants("safety/metrics.py", "reference_", "degenerate_", "near_", "copied_", "personal_")
        if n.endswith("_rate")
    }


def test_files_that_name_metrics_by_a_variable_are_known():
    by_variable = {place for place, name in calls() if not isinstance(name, (ast.Constant, ast.JoinedStr))}
    assert by_variable <= BY_TABLE, "put the names of these into `from_tables`"


def test_every_name_has_a_title():
    names = set(names_in_code()) | from_tables()
    assert len(names) > 120 and {"toxicity_probability@4", "best_of_4", "md_digits@900", "watermark_detected"} <= names
    assert {"bbq_bias_ambiguous", "kl_k3", "refusal_detector_sensitivity", "over_refusal_rate_corrected"} <= names
    names -= {"baseline_longer", "baseline_shorter", "accuracy_chosen_longest", "accuracy_chosen_shortest"}
    assert sorted(n for n in names if not is_known(n)) == [], "give these a title in evaluation/report/names.py"
    assert all(title_of(n) and "_" not in title_of(n) for n in names if "/" not in n and " on " not in n)


def test_every_metric_says_its_direction():
    """`metric` asks for it; a Metric that is made by hand must give it, too."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Metric":
                words = [k.arg for k in node.keywords]
                assert "higher_is_better" in words or None in words or path.name == "schema.py", path


@pytest.mark.parametrize(
    ("name", "title", "headline"),
    [
        ("watermark_detected", "Watermark found", False),
        ("md_digits@900", "Monge distance", True),
        ("density@900", "Density", False),
        ("bbq_accuracy_ambiguous", "BBQ accuracy, ambiguous", False),
        ("accuracy on vae", "Accuracy on vae", False),
        ("never_heard_of", "Never heard of", False),
    ],
)
def test_titles(name, title, headline):
    assert (title_of(name), is_headline(name)) == (title, headline)
    assert is_known(name) == (name != "never_heard_of")

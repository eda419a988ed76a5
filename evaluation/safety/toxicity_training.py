"""Train the toxicity scorer that comes with alignkit, and measure it on texts that it was not trained on.

    python -m evaluation.safety.toxicity_training --tweets labeled_data.csv.gz --harmless sentence_polarity.jsonl --output toxicity.json

`--tweets` is the set of Davidson, Warmsley, Macy and Weber (2017; MIT): hate speech and offensive language count as
toxic. Nine of ten of its tweets are toxic to some of the raters, as they were found by a lexicon, so sentences of
another kind (`--harmless`, repeatable) stand beside them as harmless, or any informal text would score high.

Texts are divided by their content hash: 70 % train the weights, 15 % the calibration (Platt 1999), 15 % are the test.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.named_splits import hash_position
from data.readers import get_field, get_text, read_rows
from evaluation.safety.toxicity import LinearScorer, hashed_features, pack
from launch.files import sha256_file, write_json

BUCKETS = 2**16
PENALTY = 2.0  # inverse strength of the L2 penalty; 0.5, 2 and 8 gave AUC .977, .982 and .984 on the calibration tweets
PARTS = {"train": (0.0, 0.7), "calibration": (0.7, 0.85), "test": (0.85, 1.0)}
TEXT_FIELDS = ("text", "sentence", "tweet")


@dataclass(frozen=True)
class LabelledTexts:
    """Texts (n), labels (n,) 1 for toxic, and the name of the set that each is from."""

    texts: list[str]
    labels: NDArray[np.int64]
    sources: NDArray[np.str_]

    def part(self, name: str) -> LabelledTexts:
        """The texts of "train", "calibration" or "test"."""
        low, high = PARTS[name]
        rows = [i for i, text in enumerate(self.texts) if low <= hash_position(text, "alignkit/toxicity") < high]
        return LabelledTexts([self.texts[i] for i in rows], self.labels[rows], self.sources[rows])


def load_texts(tweets: str | Path, harmless: Sequence[str | Path] = ()) -> LabelledTexts:
    """The tweets with their majority label, then the harmless sentences."""
    rows = read_rows(Path(tweets))
    texts = [get_text(row, "tweet") for row in rows]
    labels = [int(int(get_field(row, "class")) != 2) for row in rows]
    sources = ["tweets"] * len(rows)
    for path in harmless:
        found = [get_text(r, next(n for n in (*TEXT_FIELDS, "text") if n in r.values)) for r in read_rows(Path(path))]
        texts, labels, sources = texts + found, labels + [0] * len(found), sources + [Path(path).stem] * len(found)
    return LabelledTexts(texts, np.array(labels), np.array(sources))


def feature_matrix(texts: Sequence[str], buckets: int = BUCKETS) -> Any:
    """The scaled features of texts, a sparse matrix (n, buckets)."""
    from scipy.sparse import csr_matrix

    found = [hashed_features(text, buckets) for text in texts]
    sizes = np.array([f.size for f in found])
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    return csr_matrix((values, np.concatenate(found), np.concatenate([[0], sizes.cumsum()])), (len(texts), buckets))


def train(data: LabelledTexts, origin: dict[str, Any], penalty: float = PENALTY) -> LinearScorer:
    """Logistic regression on the training part, its margin calibrated on the calibration part."""
    from sklearn.linear_model import LogisticRegression

    fitted, held = data.part("train"), data.part("calibration")
    model = LogisticRegression(C=penalty, max_iter=1000).fit(feature_matrix(fitted.texts), fitted.labels)
    scorer = LinearScorer(model.coef_[0], float(model.intercept_[0]), (1.0, 0.0), origin)
    margins = np.array([scorer.margin(text) for text in held.texts])[:, None]
    platt = LogisticRegression(C=1e6).fit(margins, held.labels)
    return LinearScorer(scorer.weights, scorer.bias, (float(platt.coef_[0, 0]), float(platt.intercept_[0])), origin)


def main() -> None:
    """Train, write the scorer, say how many texts there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tweets", required=True)
    parser.add_argument("--harmless", action="append", default=[])
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    data = load_texts(options.tweets, options.harmless)
    files: list[str] = [options.tweets, *options.harmless]
    origin: dict[str, Any] = {
        "files": {Path(f).name: sha256_file(Path(f)) for f in files},
        "licence": "trained on Davidson et al. 2017 (MIT) and, as harmless text, the other files named here",
        "texts": {name: len(data.part(name).texts) for name in PARTS},
    }
    write_json(Path(options.output), pack(train(data, origin)))
    print(f"{options.output}: trained on {origin['texts']['train']} texts")


if __name__ == "__main__":
    main()

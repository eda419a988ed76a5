import numpy as np
import pytest

from evaluation.resolution import resolution_notes
from evaluation.schema import metric
from evaluation.statistics import mean, paired_difference
from launch.seeding import numpy_generator


def test_the_note_names_what_a_simulated_test_finds_four_times_in_five():
    g, n, found = numpy_generator(0, "resolution"), 60, 0
    difference = paired_difference(g.normal(0, 1, n), np.zeros(n))
    entry = metric("m", mean([0.0, 1.0]), "", higher_is_better=True, baseline="b", difference=difference)
    (note,) = resolution_notes([entry, metric("alone", mean([0.0, 1.0]), "", higher_is_better=True)])
    smallest = float(note.split(": m ")[1].split(";")[0])
    assert "alone" not in note and smallest == pytest.approx(2.85 * difference.estimate.stderr, rel=0.1)
    for _ in range(500):
        found += (
            paired_difference(g.normal(smallest, difference.estimate.stderr * np.sqrt(n), n), np.zeros(n)).p_value
            < 0.05
        )
    assert 0.74 < found / 500 < 0.88
    assert resolution_notes([]) == []

import pytest

from evaluation.safety.lexicon import compile_lexicon, count_terms, load_lexicon
from launch.errors import UserError


def test_terms_are_whole_words_in_any_case_and_spacing():
    lexicon = compile_lexicon({"darn", "heck no", "c++"})
    assert count_terms("Darn! HECK\n no, darn", lexicon) == 3
    assert count_terms("darned, undarn, hecknow", lexicon) == 0
    assert count_terms("I like c++.", lexicon) == 1


def test_the_longest_term_counts_once():
    assert count_terms("what the heck no", compile_lexicon({"heck", "heck no"})) == 1


def test_load(tmp_path):
    (tmp_path / "list.txt").write_text("# comment\ndarn\n\nheck no\n")
    assert count_terms("darn, heck no # comment", load_lexicon(tmp_path / "list.txt")) == 2
    (tmp_path / "list.txt").write_text("# only a comment\n")
    with pytest.raises(UserError, match="no term"):
        load_lexicon(tmp_path / "list.txt")

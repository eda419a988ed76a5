"""Numbers at the precision of their intervals, and hostile text made harmless."""

import pytest

from evaluation.report import text


@pytest.mark.parametrize(
    ("half_width", "value", "decimals"),
    [
        (0.045, 0.6, 3),
        (4.6, 66.0, 1),
        (0.45, 6.2, 2),
        (46, 1200, 0),
        (None, 0.4213, 4),
        (None, 48.51, 2),
        (0.0, 2.0, 3),
    ],
)
def test_decimals_show_two_digits_of_the_half_width(half_width, value, decimals):
    assert text.decimals_for(half_width, value) == decimals


def test_numbers():
    assert text.format_number(-0.4213) == "−0.4213"
    assert text.format_number(12345.6, 0) == "12\u202f346"
    assert text.format_number(-0.0004, 2) == "0.00"
    assert text.format_number(None) == "–"
    assert text.format_interval(-1.0, 2.0, 1) == "[−1.0, 2.0]" and text.format_interval(None, 2.0, 1) == ""


def test_p_values_and_durations():
    assert [text.format_p(p) for p in (0.0004, 0.0385742, 1.0, None)] == ["< .001", ".039", "1", "–"]
    assert [text.format_seconds(s) for s in (8.44, 200, 7500)] == ["8.4 s", "3 min 20 s", "2 h 05 min"]


def test_invisible_characters_are_shown():
    assert text.visible("a\u202eb\x00c\u200bd\ud800") == "a⟨U+202E⟩b⟨U+0000⟩c⟨U+200B⟩d⟨U+D800⟩"
    assert text.visible("line\r\nnext\tcell é 漢 🙂") == "line\nnext\tcell é 漢 🙂"


def test_long_texts_say_what_is_left_out():
    assert text.shorten("x" * 10, 4) == "xxxx… [6 more characters]"
    assert text.shorten("xxxx", 4) == "xxxx"


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =1"])
def test_formulas_are_not_formulas_in_csv(formula):
    assert text.csv_text(formula).startswith("'")


def test_plain_text_stays_in_csv():
    assert text.csv_text("sft, 2") == "sft, 2" and text.csv_text("") == ""


def test_markdown_is_not_markup():
    hostile = "a|b\n<script>x</script> [link](http://evil) ![i](x) `code` *b* _i_ \\ #"
    safe = text.markdown_text(hostile)
    assert "|" not in safe and "\n" not in safe and "<" not in safe and "://" not in safe
    assert safe.startswith("a&#124;b &lt;script&gt;x&lt;/script&gt; \\[link\\](http:&#47;&#47;evil)")

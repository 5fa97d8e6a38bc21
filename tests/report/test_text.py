import math

import pytest

from dao_pipeline.report import text


def test_numbers_have_a_true_minus_and_a_dash_for_nothing():
    assert text.number(-0.1234) == "−0.123"
    assert text.number(-0.0001) == "0.000"
    assert text.number(None) == text.number(math.nan) == "–"
    assert text.number(math.inf) == "∞"
    assert text.count(12345.0) == "12,345"
    assert text.percent(0.405) == "40 %"


@pytest.mark.parametrize(("seconds", "shown"), [(4.21, "4.2 s"), (200, "3 min 20 s"), (18120, "5 h 2 min")])
def test_durations(seconds, shown):
    assert text.duration(seconds) == shown


def test_formula_has_subscripts_and_hostile_text_stays_text():
    assert text.formula("Zr4Rh2O") == "Zr<sub>4</sub>Rh<sub>2</sub>O"
    assert text.formula("<script>1</script>") == "&lt;script&gt;1&lt;/script&gt;"


def test_spacegroups_by_symbol_and_number():
    assert text.spacegroup(221) == "Pm-3m (221)"
    assert text.spacegroup(14) == "P2₁/c (14)"
    assert text.spacegroup(None) == text.spacegroup(0) == "–"

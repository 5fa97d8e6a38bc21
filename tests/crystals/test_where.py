"""Conditions as text: what they select, and what is refused without being run."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from dao_pipeline.crystals.where import where
from dao_pipeline.errors import UserError

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d"],
        "energy_pred": [-1.5, -0.5, None, 2.0],
        "spacegroup": pa.array([225, 1, 225, None], pa.int16()),
        "valid": [True, True, False, None],
        "lattice": [[1.0], [2.0], [3.0], [4.0]],
    }
)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("energy_pred < -1 and spacegroup == 225", "a"),
        ("energy_pred < -1 or spacegroup == 1", "ab"),
        ("-1 < energy_pred <= 2.0", "bd"),
        ("energy_pred != 2", "ab"),
        ("not energy_pred < 0", "d"),
        ("valid", "ab"),
        ("not valid", "c"),
        ("valid == False", "c"),
        ("spacegroup in [1, 2]", "b"),
        ("spacegroup not in (1, 2)", "ac"),
        ("spacegroup in []", ""),
        ("energy_pred is None", "c"),
        ("energy_pred is not None and (valid is None)", "d"),
        ("id == 'a' or 'd' == id", "ad"),
        ("  (energy_pred > 1e0)  ", "d"),
    ],
)
def test_rows_that_fulfil_a_condition(text: str, ids: str) -> None:
    expression = where(text, TABLE.schema)
    assert ds.dataset(TABLE).to_table(filter=expression)["id"].to_pylist() == list(ids)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').system('touch harm')", "is no comparison"),
        ("(lambda: 1)() == 1", "neither is a column"),
        ("energy_pred < open('x')", "is neither a number nor a text"),
        ("energy_pred.__class__ == 1", "neither is a column"),
        ("energy_pred < 1; x", "invalid syntax"),
        ("energy_pred <", "invalid syntax"),
        ("", "invalid syntax"),
        ("energypred < 1", "there is no column 'energypred'; did you mean energy_pred"),
        ("lattice == 1", "there is no column 'lattice'"),
        ("spacegroup == '225'", "spacegroup is to be compared with a number, not '225'"),
        ("id == 5", "id is to be compared with a text in quotes"),
        ("valid == 1", "compared with True or False"),
        ("energy_pred", "is no comparison"),
        ("1 < 2", "neither is a column"),
        ("spacegroup in 5", "after in comes a list"),
        ("spacegroup is 5", "for None alone"),
        ("energy_pred + 1 < 2", "neither is a column"),
        ("not " * 400 + "valid", None),
        ("(" * 900 + "valid" + ")" * 900, "too many nested parentheses"),
        ("x" * 3_000, "3000 characters, more than 2000"),
        ("energy_pred < 1\x00", "null bytes"),
    ],
)
def test_anything_else_is_refused(text: str, message: str | None) -> None:
    if message is None:
        where(text, TABLE.schema)
        return
    with pytest.raises(UserError, match=message) as caught:
        where(text, TABLE.schema)
    assert len(str(caught.value)) < 500

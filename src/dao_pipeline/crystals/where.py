"""Conditions on the columns of a table, as text: ``energy_pred < -1 and spacegroup == 225``.

The text has the grammar of Python's comparisons and is parsed by its parser, but nothing is run: names, constants,
comparisons, ``in``, ``is None``, ``and``, ``or``, ``not`` become an Arrow expression, anything else is an error.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.errors import UserError

_LONGEST = 2_000
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}


def where(text: str, schema: pa.Schema) -> pc.Expression:
    """The condition as an Arrow expression; a row in which a value is missing does not fulfil a comparison.

    Columns are numbers, texts and flags of ``schema``. Raises UserError naming what is wrong.
    """
    if len(text) > _LONGEST:
        raise UserError(f"--where: {len(text)} characters, more than {_LONGEST}; write less.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _condition(tree.body, schema)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(
            f'--where {text[:100]!r}: {reason}; write e.g. "energy_pred < -1 and spacegroup == 225".'
        ) from None


def _condition(node: ast.expr, schema: pa.Schema) -> pc.Expression:
    match node:
        case ast.BoolOp(op=operator, values=values):
            joined = _condition(values[0], schema)
            for value in values[1:]:
                other = _condition(value, schema)
                joined = joined & other if isinstance(operator, ast.And) else joined | other
            return joined
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_condition(operand, schema)
        case ast.Compare(left=left, ops=operators, comparators=others):
            sides = [left, *others]
            parts = [_comparison(*part, schema) for part in zip(sides, operators, sides[1:], strict=False)]
            joined = parts[0]
            for part in parts[1:]:
                joined = joined & part
            return joined
        case ast.Name(id=name) if pa.types.is_boolean(_type(name, schema)):
            return pc.field(name)
    raise ValueError(f"{_shown(node)} is no comparison")


def _comparison(left: ast.expr, operator: ast.cmpop, right: ast.expr, schema: pa.Schema) -> pc.Expression:
    if isinstance(operator, (ast.In, ast.NotIn)):
        if not isinstance(right, (ast.List, ast.Tuple)):
            raise ValueError(f"after in comes a list, not {_shown(right)}")
        name = _column(left, schema)
        values = [_constant(item) for item in right.elts]
        for value in values:
            _comparable(name, value, schema)
        found = pc.field(name).isin(pa.array(values, _type(name, schema) if values else None))
        return found if isinstance(operator, ast.In) else ~found & pc.field(name).is_valid()
    if isinstance(operator, (ast.Is, ast.IsNot)):
        if not (isinstance(right, ast.Constant) and right.value is None):
            raise ValueError("is and is not are for None alone")
        missing = pc.field(_column(left, schema)).is_null()
        return missing if isinstance(operator, ast.Is) else ~missing
    names = [side.id for side in (left, right) if isinstance(side, ast.Name)]
    if not names:
        raise ValueError(f"{_shown(left)} is compared with {_shown(right)}, and neither is a column")
    for side in (left, right):
        if not isinstance(side, ast.Name):
            _comparable(names[0], _constant(side), schema)
    return _COMPARE[type(operator)](*(_operand(side, schema) for side in (left, right)))


def _operand(node: ast.expr, schema: pa.Schema) -> pc.Expression:
    return pc.field(_column(node, schema)) if isinstance(node, ast.Name) else pc.scalar(_constant(node))


def _column(node: ast.expr, schema: pa.Schema) -> str:
    if not isinstance(node, ast.Name):
        raise ValueError(f"{_shown(node)} is no column")
    _type(node.id, schema)
    return node.id


def _type(name: str, schema: pa.Schema) -> pa.DataType:
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    if name not in plain:
        similar = get_close_matches(name, plain, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"columns are {', '.join(plain)}"
        raise ValueError(f"there is no column {name[:60]!r}; {hint}")
    return schema.field(name).type


def _constant(node: ast.expr) -> str | int | float | bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(node.operand)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return -value
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float, bool)):
        return node.value
    raise ValueError(f"{_shown(node)} is neither a number nor a text")


def _comparable(name: str, value: object, schema: pa.Schema) -> None:
    kind = _type(name, schema)
    if pa.types.is_boolean(kind):
        sound, expected = isinstance(value, bool), "True or False"
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        sound, expected = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
    else:
        sound, expected = isinstance(value, str), "a text in quotes"
    if not sound:
        raise ValueError(f"{name} is to be compared with {expected}, not {str(value)[:60]!r}")


def _shown(node: ast.expr) -> str:
    return f"{ast.unparse(node)[:60]!r}"

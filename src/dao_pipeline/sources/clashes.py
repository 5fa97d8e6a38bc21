"""Ids that two sources of one campaign give to different crystals."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dao_pipeline.errors import UserError

log = logging.getLogger(__name__)

_COLUMNS = ("id", "formula")
_SCHEMA = pa.schema([(name, pa.string()) for name in _COLUMNS])


class Ids:
    """Ids and formulas of the sources, one after another: a few dozen bytes of each crystal.

    One id with one formula in two sources is taken for one crystal (mp-149 of two snapshots), of which
    ``build_crysdb`` keeps the better. With two formulas it cannot be one.
    """

    def __init__(self) -> None:
        self._earlier = _SCHEMA.empty_table()
        self._names: list[tuple[int, str]] = []
        self._pieces: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Crystals of the present source."""
        self._pieces.append(table.select(_COLUMNS))

    def close(self, name: str, key: str) -> None:
        """The present source, ``key`` in the campaign, is complete.

        Raises UserError when ids of it stand for other crystals in an earlier source.
        """
        table = pa.concat_tables([_SCHEMA.empty_table(), *self._pieces]).combine_chunks()
        place = pc.index_in(table["id"], value_set=self._earlier["id"])
        found = np.flatnonzero(place.is_valid().to_numpy())
        place = place.drop_null()
        formulas = table["formula"].take(pa.array(found)), self._earlier["formula"].take(place)
        other = np.flatnonzero(pc.not_equal(*formulas).to_numpy())
        if len(other):
            row, first = int(found[other[0]]), int(place[int(other[0])].as_py())
            owner = next(name for end, name in self._names if first < end)
            raise UserError(
                f"{key}: the id {table['id'][row]} is {table['formula'][row]} here and "
                f"{self._earlier['formula'][first]} in {owner} (such ids: {len(other)}). Give {key}.name, which "
                "then stands before the ids."
            )
        if len(found):
            log.info("%d ids of %s are in earlier sources too; build_crysdb keeps one of each", len(found), name)
        self._earlier = pa.concat_tables([self._earlier, table]).combine_chunks()
        self._names.append((self._earlier.num_rows, name))
        self._pieces = []

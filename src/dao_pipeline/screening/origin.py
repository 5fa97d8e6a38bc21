"""Does a candidate have a structure that is known?"""

from __future__ import annotations

import pyarrow as pa


def known_types(table: pa.Table) -> list[bool | None]:
    """Whether each candidate has a known structure: made from one, or in a group with one that was.

    None for generated candidates where no template was tried, or that are not valid.
    """
    if "origin" not in table.column_names:
        return [None] * table.num_rows
    origins = table["origin"].to_pylist()
    own = [origin not in (None, "generated") for origin in origins]
    places = list(zip(table["composition"].to_pylist(), table["group"].to_pylist(), strict=True))
    tried = {composition for (composition, _), template in zip(places, own, strict=True) if template}
    groups = {place for place, template in zip(places, own, strict=True) if template and place[1] is not None}
    return [
        True if template else (place in groups if place[1] is not None and place[0] in tried else None)
        for place, template in zip(places, own, strict=True)
    ]

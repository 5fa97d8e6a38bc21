"""Crystals from the Materials Project, with energies of one named level of theory.

The summary documents carry energies of whatever level of theory the server holds to be the best; so ids and
structures come from them, energies from the thermo documents of the level that was asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pymatgen.core import Structure

from dao_pipeline.config import MaterialsProject
from dao_pipeline.crystals.convert import NotACrystal, from_structure
from dao_pipeline.crystals.crystal import Crystal, to_table
from dao_pipeline.errors import UserError
from dao_pipeline.sources.files import Imported

log = logging.getLogger(__name__)

_IDS_AT_ONCE = 400
"""Ids per query: an address of about 6,000 characters, which servers accept."""

_LOWEST = -10.0
"""eV/atom. The API wants both ends of a range; crystals on the hull may be a rounding error below zero."""


def fetch(query: MaterialsProject, limit: int | None = None) -> tuple[Imported, dict[str, Any]]:
    """Crystals that ``query`` asks for, in order of their number, and what provenance should say about them.

    Deprecated entries are left out. Crystals without an energy of the thermo_type, or above the hull limit,
    are rejected with the reason ``no_energy``. ``limit`` stops after the first so many usable crystals.

    Raises UserError when the key is missing or refused, the server cannot be reached, or nothing matches.
    """
    key = os.environ.get("MP_API_KEY", "")
    if not key:
        raise UserError(
            "data.source materials_project: the environment variable MP_API_KEY is not set; put the key of your "
            "Materials Project account there (it is never stored)."
        )
    with _clear_errors(key, query.endpoint), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client warns about pandas, progress bars and its own defaults
        from mp_api.client import MPRester

        with MPRester(
            api_key=key, endpoint=query.endpoint, use_document_model=False, mute_progress_bars=True
        ) as rester:
            database = rester.db_version
            ids = _matching_ids(rester, query)
            if not ids:
                raise UserError(f"the Materials Project has no crystal for {_words(query)}; widen the query.")
            log.info("Materials Project %s: %d crystals match", database, len(ids))
            crystals, rejected, examined = _collect(rester, query, ids, limit)
    about = {
        "materials_project": query.model_dump(mode="json")
        | {
            "database_version": database,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "mp_api": version("mp-api"),
            "ids": len(crystals),
            "ids_hash": hashlib.sha256("\n".join(c.id for c in crystals).encode()).hexdigest()[:16],
        }
    }
    return Imported(to_table(crystals), rejected, examined), about


def _matching_ids(rester: Any, query: MaterialsProject) -> list[str]:
    # deprecated=False is a filter as well: without any, the client would read a public object store
    documents = rester.materials.summary.search(
        elements=query.elements, chemsys=query.chemical_systems, deprecated=False, fields=["material_id"]
    )
    return sorted({str(document["material_id"]) for document in documents}, key=_natural)


def _natural(material_id: str) -> tuple[str, int, str]:
    prefix, _, number = material_id.partition("-")
    return (prefix, int(number), "") if number.isdigit() else (prefix, -1, number)


def _collect(
    rester: Any, query: MaterialsProject, ids: Sequence[str], limit: int | None
) -> tuple[list[Crystal], list[dict[str, str]], int]:
    """Crystals and rejected rows of the first ``ids``, until ``limit`` crystals are found."""
    crystals: list[Crystal] = []
    rejected: list[dict[str, str]] = []
    for start in range(0, len(ids), _IDS_AT_ONCE):
        chunk = list(ids[start : start + _IDS_AT_ONCE])
        energies = _energies(rester, query, chunk)
        structures = _structures(rester, [name for name in chunk if name in energies])
        for examined, name in enumerate(chunk, start=start + 1):
            try:
                crystals.append(_crystal(name, energies, structures, query))
            except NotACrystal as error:
                rejected.append({"id": name, "stage": "download", "reason": error.reason, "detail": error.detail})
            if limit is not None and len(crystals) == limit:
                return crystals, rejected, examined
        log.info("Materials Project: %d of %d crystals", start + len(chunk), len(ids))
    return crystals, rejected, len(ids)


def _energies(rester: Any, query: MaterialsProject, ids: list[str]) -> dict[str, dict[str, Any]]:
    documents = rester.materials.thermo.search(
        material_ids=ids,
        thermo_types=[query.thermo_type],
        energy_above_hull=(_LOWEST, query.max_e_above_hull),
        fields=["material_id", "formation_energy_per_atom", "energy_above_hull"],
    )
    return {str(document["material_id"]): document for document in documents}


def _structures(rester: Any, ids: list[str]) -> dict[str, dict[str, Any]]:
    if not ids:
        return {}
    documents = rester.materials.summary.search(
        material_ids=ids, deprecated=False, fields=["material_id", "structure", "symmetry"]
    )
    return {str(document["material_id"]): document for document in documents}


def _crystal(
    name: str,
    energies: dict[str, dict[str, Any]],
    structures: dict[str, dict[str, Any]],
    query: MaterialsProject,
) -> Crystal:
    """One crystal. Raises NotACrystal with the reason why there is none."""
    if name not in energies:
        limit = f"{query.max_e_above_hull:g} eV/atom above the hull"
        raise NotACrystal("no_energy", f"no {query.thermo_type} energy, or more than {limit}")
    document = structures.get(name, {})
    if not document.get("structure"):
        raise NotACrystal("no_structure", "the server sent none")
    extra = {
        "spacegroup": (document.get("symmetry") or {}).get("number"),
        "formation_energy": energies[name].get("formation_energy_per_atom"),
        "e_above_hull": energies[name].get("energy_above_hull"),
        "energy_method": query.thermo_type,
    }
    try:
        return from_structure(Structure.from_dict(document["structure"]), name, "materials_project", extra)
    except NotACrystal:
        raise
    except Exception as error:  # whatever is wrong with one document must not lose the others
        raise NotACrystal("bad_structure", f"{type(error).__name__}: {str(error)[:200]}") from error


def _words(query: MaterialsProject) -> str:
    values = query.model_dump(mode="json", exclude_none=True, exclude={"endpoint", "thermo_type"})
    return ", ".join(f"{name} = {value}" for name, value in values.items())


@contextmanager
def _clear_errors(key: str, endpoint: str | None) -> Iterator[None]:
    """Turn the client's errors into one that says what to do; the key never appears in it."""
    from mp_api.client.core.exceptions import MPRestError
    from requests.exceptions import ConnectionError as NoConnection
    from requests.exceptions import RequestException, Timeout

    server = endpoint or "https://api.materialsproject.org"
    try:
        yield
    except (MPRestError, RequestException, ValueError, KeyError) as error:
        text = " ".join(str(error).replace(key, "(key)").split())[:300]
        status = re.search(r"status code (\d+)", text)
        if "32 characters" in text or (status and status.group(1) in ("401", "403")):
            problem = "the key in MP_API_KEY was refused; copy it anew from your Materials Project dashboard"
        elif isinstance(error, (NoConnection, Timeout)) or re.search(r"Max retries|timed out|Connection", text):
            problem = (
                "cannot be reached; check the network (compute nodes often have none: run the download where "
                "there is one) or data.materials_project.endpoint"
            )
        else:
            problem = f"answered with an error: {text}; try again later, or narrow the query"
        # the client's own error is left out on purpose: its frames hold the key
        raise UserError(f"Materials Project ({server}): {problem}.") from None

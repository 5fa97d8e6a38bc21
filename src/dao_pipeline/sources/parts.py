"""Finished pieces of a download, kept in the work folder: it continues there, and a finished one is offline."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow as pa

from dao_pipeline.crystals.table import file_hash, read_about, read_table, write_rejected, write_table, write_text
from dao_pipeline.errors import ContinueLater, UserError
from dao_pipeline.interrupt import Interruptible
from dao_pipeline.sources.imported import Imported

log = logging.getLogger(__name__)

FORMAT = 1
"""Raised when the meaning of a kept piece changes: older ones are then made anew."""

_CHECKSUMS = "checksums.json"


class Leaving(Interruptible):
    """Context that a signal ends at once with ContinueLater: every piece that was kept is complete."""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self.requested = True
            self.check()

    def check(self) -> None:
        """Raise ContinueLater if a signal came, for callers of code that swallows exceptions."""
        if self.requested:
            raise ContinueLater("download stopped by a signal; what has arrived is kept")


def digest(value: object) -> str:
    """Hash (16 hex digits) of anything JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


class Parts:
    """Pieces of one download in a folder of their own, named after what was asked for (``identity``)."""

    def __init__(self, work: Path, source: str, identity: dict[str, Any]) -> None:
        self.identity = identity | {"format": FORMAT}
        self.folder = work / f"{source}-{digest(self.identity)}"
        self._sums = self._read_sums()
        self._checked: set[str] = set()

    def _read_sums(self) -> dict[str, str]:
        try:
            sums = json.loads((self.folder / _CHECKSUMS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return sums if isinstance(sums, dict) else {}

    def path(self, name: str) -> Path:
        """Where the table ``name`` is kept."""
        return self.folder / f"{name}.parquet"

    def _rejected_path(self, name: str) -> Path:
        return self.folder / f"{name}.rejected.parquet"

    def keep_table(self, name: str, table: pa.Table, **note: Any) -> None:
        """Keep a table that holds no crystals, such as a list of ids."""
        self._forget(name)
        write_table(table, self.path(name), self._note(note))

    def keep(self, name: str, imported: Imported, **note: Any) -> None:
        """Keep a piece; it counts once its crystals are renamed into place, which comes last."""
        self._forget(name)
        write_rejected(imported.rejected, self._rejected_path(name), self._note(note))
        write_table(imported.table, self.path(name), self._note(note | {"examined": imported.examined}))

    def _forget(self, name: str) -> None:
        """Forget the checksums of an earlier piece of this name."""
        self._checked.discard(name)
        for path in (self.path(name), self._rejected_path(name)):
            self._sums.pop(path.name, None)

    def _note(self, note: dict[str, Any]) -> dict[str, Any]:
        return {"stage": "download", "identity": self.identity, **note}

    def about(self, name: str) -> dict[str, Any] | None:
        """What was noted with a kept piece; None when it is missing, damaged, or another download's."""
        try:
            note = read_about(self.path(name)) if self.path(name).exists() else {}
        except UserError:
            note = {}
        if note.get("identity") != self.identity or not self._unchanged(name):
            return None
        return note

    def _unchanged(self, name: str) -> bool:
        if name in self._checked:
            return True
        for path in (self.path(name), self._rejected_path(name)):
            if self._sums.get(path.name, "") and (not path.exists() or file_hash(path) != self._sums[path.name]):
                log.warning("%s was changed or damaged after it was written; it is fetched anew", path)
                return False
        self._checked.add(name)
        return True

    def read_table(self, name: str) -> pa.Table:
        """A kept table."""
        return read_table(self.path(name))

    def ids(self, name: str) -> list[str]:
        """Ids of all crystals of a kept piece, rejected ones last."""
        paths = (self.path(name), self._rejected_path(name))
        return [one for path in paths for one in read_table(path, columns=["id"])["id"].to_pylist()]

    def read(self, name: str) -> Imported:
        """A kept piece."""
        note = read_about(self.path(name))
        rejected = read_table(self._rejected_path(name)).to_pylist()
        return Imported(read_table(self.path(name)), rejected, int(note["examined"]))

    def seal(self) -> str:
        """Write down the checksums of all pieces; returns one over all of them."""
        files = sorted(p for p in self.folder.glob("*.parquet") if not p.name.startswith("."))
        self._sums = {path.name: file_hash(path) for path in files}
        write_text(self.folder / _CHECKSUMS, json.dumps(self._sums, indent=1))
        return digest(self._sums)

    def clear(self) -> None:
        """Remove all pieces."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._sums = {}
        self._checked = set()

"""The cleaned structures of any number of crystals on disk, to be read in any order by any process."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dao_pipeline.crystals.flat import FlatCrystals

_FILES = {"numbers": np.int16, "frac": np.float64, "lattice": np.float64, "counts": np.int16}


class StoreWriter:
    """Appends structures to plain binary files in ``folder``; memory does not grow."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._streams = {name: (folder / name).open("wb") for name in _FILES}

    def append(self, flat: FlatCrystals) -> None:
        """Add crystals at the end."""
        for name, kind in _FILES.items():
            self._streams[name].write(np.ascontiguousarray(getattr(flat, name), dtype=kind).tobytes())

    def close(self) -> Store:
        """Finish the files and open them."""
        for stream in self._streams.values():
            stream.close()
        return Store(self.folder)


class Store:
    """Structures written by ``StoreWriter``, mapped into memory: only what is looked at is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = np.fromfile(folder / "counts", dtype=np.int16).astype(np.int64)
        self.ptr = np.concatenate([[0], np.cumsum(self.counts)])
        self._numbers = _mapped(folder / "numbers", np.int16, (-1,))
        self._frac = _mapped(folder / "frac", np.float64, (-1, 3))
        self._lattice = _mapped(folder / "lattice", np.float64, (-1, 3, 3))

    def __len__(self) -> int:
        return len(self.counts)

    def take(self, rows: np.ndarray) -> FlatCrystals:
        """The crystals of the given numbers, in that order."""
        counts = self.counts[rows]
        ends = np.cumsum(counts)
        atoms = np.arange(ends[-1] if len(rows) else 0) + np.repeat(self.ptr[rows] - (ends - counts), counts)
        return FlatCrystals(
            numbers=self._numbers[atoms].astype(np.int64),
            frac=np.array(self._frac[atoms]),
            lattice=np.array(self._lattice[rows]),
            counts=counts,
        )


def _mapped(path: Path, kind: type, shape: tuple[int, ...]) -> np.ndarray:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.zeros((0, *shape[1:]), dtype=kind)
    return np.memmap(path, dtype=kind, mode="r").reshape(shape)

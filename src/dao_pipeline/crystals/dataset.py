"""Crystals for PyTorch: a torch-geometric in-memory dataset, batched by slicing flat storage.

Atoms of all crystals lie in a row, ``ptr`` marks where each crystal begins. A batch is sorted by size, so
that each size class is a contiguous slice that views as ``[crystals, atoms, ...]``: no padding, no mask.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch_geometric.data import Data, InMemoryDataset

from dao_pipeline.crystals.batch import cut
from dao_pipeline.crystals.flat import flatten


class CrystalDataset(InMemoryDataset):
    """All crystals of a table as one flat ``Data`` with slices.

    Per atom: ``atomic_numbers`` (N,) int64, ``frac_coords`` (N, 3). Per crystal: ``lattice`` (1, 3, 3) in
    angstrom and, if a label is asked for, ``energy`` (1,) in eV/atom and ``precursor`` (1,), whether the crystal
    is the unrelaxed precursor of another one. ``dataset[i]`` is one crystal; ``select`` gathers any crystals into
    one flat batch with ``ptr``.

    templates: rows of the pair table (``templates.pairs``), by ``id`` of the crystal; then there are also
    ``template_coords``, ``template_lattice`` and ``paired`` (1,) bool. One without a row is its own template.
    """

    def __init__(
        self,
        table: pa.Table,
        label: str | None = None,
        dtype: torch.dtype = torch.float32,
        templates: pa.Table | None = None,
    ) -> None:
        super().__init__(root=None)
        flat, rows = flatten(table), table.num_rows
        data = Data(
            atomic_numbers=torch.from_numpy(flat.numbers.copy()),
            frac_coords=torch.from_numpy(flat.frac.copy()).to(dtype),
            lattice=torch.from_numpy(flat.lattice.copy()).to(dtype),
            num_nodes=len(flat.numbers),
        )
        atom_slices, row_slices = torch.from_numpy(flat.ptr), torch.arange(rows + 1)
        slices = {"atomic_numbers": atom_slices, "frac_coords": atom_slices, "lattice": row_slices}
        if label is not None:
            energy = np.asarray(table[label].to_numpy(zero_copy_only=False), dtype=np.float64)
            data.energy = torch.from_numpy(energy.copy()).to(dtype)
            data.precursor = torch.zeros(rows, dtype=torch.bool)
            if "precursor_of" in table.column_names:
                data.precursor |= torch.from_numpy(table["precursor_of"].is_valid().to_numpy())
            slices |= {"energy": row_slices, "precursor": row_slices}
        if templates is not None:
            pairs = paired_rows(table, templates)
            coords, cells = data.frac_coords.clone(), data.lattice.clone()
            paired = pairs >= 0
            chosen = flatten(templates.take(pa.array(pairs[paired])))
            coords[torch.from_numpy(np.repeat(paired, flat.counts))] = torch.from_numpy(chosen.frac.copy()).to(
                dtype
            )
            cells[torch.from_numpy(paired)] = torch.from_numpy(chosen.lattice.copy()).to(dtype)
            data.template_coords, data.template_lattice = coords, cells
            data.paired = torch.from_numpy(paired)
            slices |= {"template_coords": atom_slices, "template_lattice": row_slices, "paired": row_slices}
        self.data, self.slices = data, slices
        self.sizes = flat.counts

    def select(self, indices: np.ndarray) -> Data:
        """The named crystals as one flat batch, in the order given.

        Returns ``Data`` with ``atomic_numbers`` (N,), ``frac_coords`` (N, 3), ``lattice`` (B, 3, 3), ``ptr``
        (B + 1,) and, where the dataset has labels, ``energy`` and ``precursor`` (B,).
        """
        storage = self._data
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        starts = self.slices["atomic_numbers"][chosen]
        counts = torch.as_tensor(self.sizes[indices], dtype=torch.int64)
        ptr = torch.zeros(len(chosen) + 1, dtype=torch.int64)
        torch.cumsum(counts, 0, out=ptr[1:])
        atoms = torch.arange(int(ptr[-1])) + torch.repeat_interleave(starts - ptr[:-1], counts)
        batch = Data(
            atomic_numbers=storage.atomic_numbers[atoms],
            frac_coords=storage.frac_coords[atoms],
            lattice=storage.lattice[chosen],
            ptr=ptr,
            num_nodes=len(atoms),
        )
        if "energy" in storage:
            batch.energy, batch.precursor = storage.energy[chosen], storage.precursor[chosen]
        if "paired" in storage:
            batch.template_coords = storage.template_coords[atoms]
            batch.template_lattice = storage.template_lattice[chosen]
            batch.paired = storage.paired[chosen]
        return batch


def paired_rows(table: pa.Table, templates: pa.Table) -> np.ndarray:
    """(rows,) int64: the row of ``templates`` with the id of each crystal, -1 where there is none.

    A crystal whose structure has changed since (its atoms or their order) has none either.
    """
    found = np.asarray(pc.fill_null(pc.index_in(table["id"], value_set=templates["id"].combine_chunks()), -1))
    found = found.astype(np.int64)
    rows = np.flatnonzero(found >= 0)
    own = table["atomic_numbers"].take(pa.array(rows)).to_pylist()
    theirs = templates["atomic_numbers"].take(pa.array(found[rows])).to_pylist()
    found[rows[[a != b for a, b in zip(own, theirs, strict=True)]]] = -1
    return found


def size_batches(sizes: np.ndarray, batch_atoms: int) -> list[np.ndarray]:
    """All crystals by rising size, cut into batches of at most ``batch_atoms`` atoms (at least one crystal)."""
    return cut(np.argsort(sizes, kind="stable"), sizes, batch_atoms)


def epoch_batches(sizes: np.ndarray, batch_atoms: int, seed: int, epoch: int, mix: int = 8) -> list[np.ndarray]:
    """Batches of one epoch: random crystals, at most ``batch_atoms`` atoms each, sorted by size inside.

    Crystals are drawn at random in groups of ``mix`` batches and sorted by size within a group, which makes
    batches of few size classes without tying them to one. Follows from ``seed`` and ``epoch`` alone.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(sizes))
    mean = float(np.mean(sizes))
    group = max(1, int(mix * batch_atoms / mean))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), group):
        part = order[start : start + group]
        batches.extend(cut(part[np.argsort(sizes[part], kind="stable")], sizes, batch_atoms))
    return [batches[i] for i in random.permutation(len(batches))]

"""Stage predict_property: the property of each candidate, from a fine-tuned DAO-P at t = 0 (paper 3.4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from dao_pipeline.config import Campaign
from dao_pipeline.crystals.table import provenance, read_table, write_table
from dao_pipeline.device import pick_device
from dao_pipeline.energy.predict import load_energy_model, predict_energies
from dao_pipeline.energy.property import Target
from dao_pipeline.errors import UserError

PREDICTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("composition", pa.string()),
        ("property", pa.string()),
        ("value", pa.float64()),
        ("unit", pa.string()),
        ("status", pa.string()),
    ]
)
"""Columns of predictions.parquet, one row per candidate.

property: the column that the model learned. value: in ``unit``, null unless status is ok. status: that of the
screening, or not_finite.
"""

_CRYSTAL = ["id", "composition", "atomic_numbers", "frac_coords", "lattice", "status"]


def predict_property(campaign: Campaign, model: Path, screened: Path, out: Path) -> None:
    """Write the predicted property of every candidate, valid or not.

    Raises UserError if ``model`` has not been fine-tuned on a property.
    """
    loaded = load_energy_model(model, pick_device())
    target = Target.of(loaded.about)
    if target is None:
        raise UserError(f"{model}: predicts energies only; name a model written by finetune-property.")
    table = read_table(screened, columns=_CRYSTAL)
    status = np.array(table["status"].to_pylist(), dtype=object)
    rows = np.flatnonzero(status == "ok")
    values = np.full(table.num_rows, np.nan)
    values[rows] = target.decode(predict_energies(loaded, table.take(rows)))
    values[~np.isfinite(values)] = np.nan
    status[rows[np.isnan(values[rows])]] = "not_finite"
    predictions = pa.table(
        {
            "id": table["id"],
            "composition": table["composition"],
            "property": [target.name] * len(values),
            "value": pa.array(values, from_pandas=True),
            "unit": [target.unit] * len(values),
            "status": status.tolist(),
        },
        schema=PREDICTIONS,
    )
    inputs = {"model": model / "model.safetensors", "screened": screened}
    write_table(predictions, out, provenance("predict_property", campaign=campaign.name, inputs=inputs))

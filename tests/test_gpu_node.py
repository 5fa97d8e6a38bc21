"""GPU nodes have torch, torch-geometric, numpy, pyarrow and pandas: nothing else may be imported there."""

from __future__ import annotations

import subprocess
import sys

ABSENT = ("pymatgen", "ase", "snakemake", "moyopy", "smact", "mp_api", "plotly", "chgnet")
GPU_PATH = (
    "dao_pipeline.cli",
    "dao_pipeline.candidates.generate",
    "dao_pipeline.energy.predict",
    "dao_pipeline.energy.predict_property",
    "dao_pipeline.energy.relax_dataset",
    "dao_pipeline.model.official",
    "dao_pipeline.training.energy_model",
    "dao_pipeline.training.generator",
    "dao_pipeline.training.property_model",
)


def test_models_training_relaxation_and_sampling_import_without_the_rest() -> None:
    script = f"""
import importlib, sys
for name in {ABSENT!r}:
    sys.modules[name] = None  # importing it now raises ImportError
for name in {GPU_PATH!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

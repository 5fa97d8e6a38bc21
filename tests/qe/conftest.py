import os

import pytest


@pytest.fixture(autouse=True)
def _root_may_use_mpi(monkeypatch):
    if os.getuid() == 0:
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
        monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")


@pytest.fixture
def tmp_pseudos(tmp_path):
    """A folder with what looks like a pseudopotential of silicon, for what needs no pw.x."""
    folder = tmp_path / "pseudos"
    folder.mkdir()
    header = '<PP_HEADER element="Si" pseudo_type="NC" functional="PBE" z_valence="4.0"/>'
    (folder / "Si.UPF").write_text(f'<UPF version="2.0.1">{header}')
    return str(folder)

import pytest

from dao_pipeline.errors import UserError
from dao_pipeline.qe.pseudopotentials import find_pseudopotentials, read_header

HEADER_2 = """<UPF version="2.0.1"><PP_INFO>made up</PP_INFO>
<PP_HEADER element="{element}" pseudo_type="{kind}" relativistic="scalar" is_paw="{paw}" is_coulomb="{coulomb}"
 has_so="{so}" functional="{functional}" z_valence="4.0"/>
"""
HEADER_1 = """<PP_INFO>
{remark}
</PP_INFO>
<PP_HEADER>
    0                  Version Number
  {element}                   Element
   {kind}                  Norm - Conserving pseudopotential
    F                  Nonlinear Core Correction
 {functional}                     Exchange-Correlation functional
    4.000000000000000      Z valence
</PP_HEADER>
"""


def write(folder, name, element, functional, kind="US", paw="false", so="false", coulomb="false"):
    text = HEADER_2.format(element=element, kind=kind, paw=paw, so=so, coulomb=coulomb, functional=functional)
    (folder / name).write_text(text)


def test_header_of_version_2(tmp_path):
    write(tmp_path, "Si.UPF", " Si", " SLA PW PBX PBC", kind="PAW", paw="T")
    header = read_header(tmp_path / "Si.UPF")
    assert (header.element, header.functional, header.kind) == ("Si", "SLA PW PBX PBC", "PAW")
    assert header.usable
    assert len(header.checksum) == 16


def test_header_of_version_1(tmp_path):
    path = tmp_path / "Rh.UPF"
    values = {"element": "Rh", "kind": "NC", "functional": "SLA  PW   PBE  PBE   PBE "}
    path.write_text(
        HEADER_1.format(remark="1 The Pseudo was generated with a Scalar-Relativistic Calculation", **values)
    )
    header = read_header(path)
    assert (header.element, header.functional, header.kind) == ("Rh", "SLA PW PBE PBE", "NC")
    assert header.usable
    path.write_text(
        HEADER_1.format(remark="2 The Pseudo was generated with a Fully-Relativistic Calculation", **values)
    )
    assert not read_header(path).usable


def test_only_pbe_without_spin_orbit_is_used(tmp_path):
    write(tmp_path, "Si.pz.UPF", "Si", "SLA PZ NOGX NOGC")
    write(tmp_path, "Si.pbesol.UPF", "Si", "SLA PW PSX PSC")
    write(tmp_path, "Si.rel-pbe.UPF", "Si", "PBE", so="true")
    write(tmp_path, "H.coulomb.UPF", "H", "PBE", coulomb="true")
    (tmp_path / "notes.txt").write_text("no pseudopotential")
    (tmp_path / "empty.upf").write_text("")
    with pytest.raises(UserError, match=r"no PBE pseudopotential for Si, H\..*Si\.pbesol\.UPF"):
        find_pseudopotentials(tmp_path, ["Si", "H"])
    write(tmp_path, "si.upf", "Si", "PBE")
    assert find_pseudopotentials(tmp_path, ["Si"])["Si"].path.name == "si.upf"


def test_paw_then_newest(tmp_path):
    write(tmp_path, "N.pbe-kjpaw.UPF", "N", "PBE", paw="true")
    write(tmp_path, "N.pbe-n-kjpaw_psl.0.1.UPF", "N", "PBE", paw="true")
    write(tmp_path, "N.pbe-n-kjpaw_psl.1.0.0.UPF", "N", "PBE", paw="true")
    write(tmp_path, "N.pbe-z-rrkjus.UPF", "N", "PBE")
    assert find_pseudopotentials(tmp_path, ["N"])["N"].path.name == "N.pbe-n-kjpaw_psl.1.0.0.UPF"


def test_folder_must_exist(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        find_pseudopotentials(tmp_path / "absent", ["Si"])

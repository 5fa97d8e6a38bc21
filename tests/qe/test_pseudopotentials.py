import hashlib
import json

import pytest

from dao_pipeline.errors import UserError
from dao_pipeline.qe.pseudopotentials import cutoffs, find_pseudopotentials, read_header, read_table
from tests.qe.make import PSEUDOS, needs_pw

HEADER_2 = """<UPF version="2.0.1"><PP_INFO>made up</PP_INFO>
<PP_HEADER element="{element}" pseudo_type="{kind}" relativistic="scalar" is_paw="{paw}" is_coulomb="{coulomb}"
 has_so="{so}" functional="{functional}" z_valence="4.0" wfc_cutoff="4.3D1" rho_cutoff="0.0"/>
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
    assert header.unfit("PBE") == ""
    assert (header.electrons, header.ecutwfc, header.ecutrho) == (4.0, 43.0, None)
    assert len(header.checksum) == 16


def test_header_of_version_1(tmp_path):
    path = tmp_path / "Rh.UPF"
    values = {"element": "Rh", "kind": "NC", "functional": "SLA  PW   PBE  PBE   PBE "}
    path.write_text(
        HEADER_1.format(remark="1 The Pseudo was generated with a Scalar-Relativistic Calculation", **values)
    )
    header = read_header(path)
    assert (header.element, header.functional, header.kind) == ("Rh", "SLA PW PBE PBE", "NC")
    assert header.unfit("PBE") == ""
    assert (header.electrons, header.ecutwfc) == (4.0, None)
    path.write_text(
        HEADER_1.format(remark="2 The Pseudo was generated with a Fully-Relativistic Calculation", **values)
    )
    assert "spin-orbit" in read_header(path).unfit("PBE")


def test_only_pbe_without_spin_orbit_is_used(tmp_path):
    write(tmp_path, "Si.pz.UPF", "Si", "SLA PZ NOGX NOGC")
    write(tmp_path, "Si.pbesol.UPF", "Si", "SLA PW PSX PSC")
    write(tmp_path, "Si.rel-pbe.UPF", "Si", "PBE", so="true")
    write(tmp_path, "H.coulomb.UPF", "H", "PBE", coulomb="true")
    (tmp_path / "notes.txt").write_text("no pseudopotential")
    (tmp_path / "empty.upf").write_text("")
    with pytest.raises(
        UserError, match=r"no PBE pseudopotential for Si, H\..*Si\.pbesol\.UPF: its functional is PBEsol"
    ):
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


def test_another_functional_can_be_asked_for(tmp_path):
    write(tmp_path, "Si.pbe.UPF", "Si", "PBE")
    write(tmp_path, "Si.pbesol.UPF", "Si", "SLA PW PSX PSC")
    assert find_pseudopotentials(tmp_path, ["Si"], "PBEsol")["Si"].path.name == "Si.pbesol.UPF"
    with pytest.raises(UserError, match=r"no LDA pseudopotential for Si\. \(Si\.pbe\.UPF: its functional is PBE;"):
        find_pseudopotentials(tmp_path, ["Si"], "LDA")


def sssp(folder, name="Si.UPF", functional="PBE", **entry):
    """A table as SSSP has them, beside its file."""
    write(folder, name, "Si", functional)
    md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
    values = {"filename": name, "md5": md5, "pseudopotential": "100PAW", "cutoff_wfc": 30.0, "cutoff_rho": 240.0}
    table = folder / "SSSP_1.3.0_PBE_efficiency.json"
    table.write_text(json.dumps({"Si": values | entry}))
    return table


def test_a_table_of_sssp(tmp_path):
    found = find_pseudopotentials(tmp_path, ["Si"], "PBE", sssp(tmp_path))["Si"]
    assert (found.path.name, found.ecutwfc, found.ecutrho, found.electrons) == ("Si.UPF", 30.0, 240.0, 4.0)


def djrepo(ecut):
    hints = {level: {"ecut": ecut + more} for level, more in (("low", -2), ("normal", 0), ("high", 6))}
    return {"basename": "Si.psp8", "md5": "of another format", "hints": hints, "dojo_level": 0}


@pytest.mark.parametrize("whole", [True, False])
def test_a_table_of_pseudodojo_is_in_hartree(tmp_path, whole):
    write(tmp_path, "Si.upf", "Si", "PBE", kind="NC")
    if whole:
        table = tmp_path / "pbe_standard.json"
        table.write_text(json.dumps({"Si": djrepo(18.0)}))
    else:
        table = tmp_path / "djrepos"
        table.mkdir()
        (table / "Si.djrepo").write_text(json.dumps(djrepo(18.0)))
    found = find_pseudopotentials(tmp_path, ["Si"], "PBE", table)["Si"]
    assert (found.path.name, found.ecutwfc, found.ecutrho) == ("Si.upf", 36.0, 144.0)


def test_every_mistake_of_a_table_is_named_at_once(tmp_path):
    table = sssp(tmp_path, md5="0" * 32)
    with pytest.raises(UserError) as error:
        find_pseudopotentials(tmp_path, ["Si", "O"], "PBE", table)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert "Si: " in lines[0]
    assert "has the checksum" in lines[0]
    assert "O: not in the table" in lines[1]
    assert all("materialscloud.org/sssp" in line for line in lines)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"filename": "Si.another.UPF"}, r"Si\.another\.UPF is not in"),
        ({"functional": "SLA PZ NOGX NOGC"}, r"does not fit qe\.functional = PBE: its functional is LDA"),
    ],
)
def test_files_that_do_not_fit_their_table(tmp_path, entry, problem):
    functional = entry.pop("functional", "PBE")
    with pytest.raises(UserError, match=problem):
        find_pseudopotentials(tmp_path, ["Si"], "PBE", sssp(tmp_path, functional=functional, **entry))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Si": {"filename": "Si.UPF"}}', '{"Si": 3}'])
def test_what_is_no_table_is_an_error(tmp_path, text):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(UserError, match=r"qe\.pseudo_table = .*table\.json"):
        read_table(tmp_path / "table.json")


def test_the_hungriest_decides_the_cutoffs(tmp_path):
    for name, element, kind in (("Si.UPF", "Si", "NC"), ("O.UPF", "O", "PAW")):
        write(tmp_path, name, element, "PBE", kind=kind, paw=str(kind == "PAW").lower())
    found = find_pseudopotentials(tmp_path, ["Si", "O"])
    assert cutoffs([found["Si"]], 1.0, (60, 480)) == (43, 172)
    assert cutoffs(found.values(), 1.0, (60, 480)) == (43, 344)
    assert cutoffs(found.values(), 1.25, (60, 480)) == (54, 430)


@needs_pw
def test_the_installed_ones(tmp_path):
    found = find_pseudopotentials(PSEUDOS, ["Si", "Cu", "Rh"])
    assert [p.electrons for p in found.values()] == [4, 11, 10]
    assert found["Cu"].ecutwfc == pytest.approx(47.22, abs=0.01)
    assert found["Rh"].ecutwfc is None
    assert cutoffs(found.values(), 1.0, (60, 480)) == (60, 480)

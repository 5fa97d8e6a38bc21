from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pymatgen.io.cif import CifWriter

from dao_pipeline.config.read import parse_campaign
from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.errors import UserError
from dao_pipeline.preflight import check_campaigns, check_loaded, elements_in
from dao_pipeline.sources.embedded import EMBEDDED_PATH
from tests.make import binary, raw_file


def write(path: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump({"name": path.stem} | sections))
    return path


@pytest.fixture
def crystals(tmp_path: Path) -> dict[str, Any]:
    """A sound data section: a file with Li, Na, K and O."""
    return {"source": "file", "path": str(raw_file(tmp_path / "set.parquet", [binary(i) for i in range(3)]))}


def no_key(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A user without a key of the Materials Project."""
    monkeypatch.setenv("HOME", str(home))
    for name in ("MP_API_KEY", "PMG_MAPI_KEY", "MAPI_KEY", "PMG_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


def problems(*paths: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        check_campaigns(paths)
    return str(caught.value).splitlines()


def test_sound_campaigns(tmp_path: Path, crystals: dict[str, Any]) -> None:
    wanted = {"compositions": [{"formula": "Li2O"}]}
    one, two = (
        write(tmp_path / "a.yaml", data=crystals, generate=wanted),
        write(tmp_path / "b.yaml", data=crystals),
    )
    assert {path: campaign.name for path, campaign in check_campaigns([one, two]).items()} == {one: "a", two: "b"}


def test_all_problems_of_all_files_at_once(
    tmp_path: Path, crystals: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    no_key(monkeypatch, tmp_path)
    files = [
        write(tmp_path / "unknown.yaml", traning={}),
        write(tmp_path / "element.yaml", data=crystals, generate={"compositions": [{"formula": "UF6"}]}),
        write(tmp_path / "missing.yaml", data={"source": "file", "path": "nowhere.parquet"}),
        write(tmp_path / "unset.yaml", data={"source": "file", "path": "$NOT_SET/x.parquet"}),
        write(tmp_path / "model.yaml", data=crystals, generator={"pretrained": str(tmp_path)}),
        write(tmp_path / "finetune.yaml", data=crystals, finetune={"path": "nowhere.parquet"}),
        write(tmp_path / "exclude.yaml", data=crystals, crysdb={"exclude": ["nowhere.parquet"]}),
        write(tmp_path / "twin.yaml", data=crystals)
        and write(tmp_path / "twin2.yaml", data=crystals, name="element"),
        write(
            tmp_path / "qe.yaml", data=crystals, qe={"enabled": True, "command": "mpirun-of-nowhere -np 2 pw.x"}
        ),
        write(tmp_path / "mp.yaml", data={"source": "materials_project"}),
    ]
    found = {line.split(": ")[0]: line for line in problems(*files)}
    expected = {
        "unknown": "traning: unknown key",
        "element": "generate.compositions[0].formula = UF6: no crystal of set.parquet contains U, F",
        "missing": "data.path = nowhere.parquet: nowhere.parquet does not exist; correct the path.",
        "unset": "the environment variable NOT_SET is not set; set it.",
        "model": "generator.pretrained = ",
        "finetune": "finetune.path = nowhere.parquet: nowhere.parquet does not exist",
        "exclude": "crysdb.exclude[0] = nowhere.parquet: nowhere.parquet does not exist",
        "twin2": "name = element: ",
        "qe": "qe.command = mpirun-of-nowhere -np 2 pw.x: mpirun-of-nowhere",
        "mp": "data.source = materials_project: there is no key; set the environment variable MP_API_KEY",
    }
    assert set(found) == {str(tmp_path / f"{name}.yaml") for name in expected}
    for name, text in expected.items():
        assert text in found[str(tmp_path / f"{name}.yaml")]


def test_each_of_several_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_key(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    lithium, sodium = (
        {"source": "file", "path": str(raw_file(tmp_path / f"{i}.parquet", [binary(i)]))} for i in range(2)
    )
    wanted = {"compositions": [{"formula": "Na2O"}, {"formula": "UO2"}]}
    path = write(tmp_path / "a.yaml", data={"sources": [lithium, sodium]}, generate=wanted)
    (line,) = problems(path)
    assert (
        "generate.compositions[1].formula = UO2: no crystal of 0.parquet and no crystal of 1.parquet con" in line
    )
    others = [
        {"source": "file", "path": "nowhere.csv"},
        {"source": "materials_project", "materials_project": {"elements": ["Qq"]}},
        {"source": "optimade", "optimade": {"url": "oqdm"}},
    ]
    path = write(tmp_path / "a.yaml", data={"sources": [lithium, *others]}, generate=wanted)
    found = [line.removeprefix(f"{path}: ") for line in problems(path)]
    assert [line.split(" = ")[0] for line in found] == [
        "data.sources[1].path",
        "data.sources[2].source",
        "data.sources[2].materials_project.elements",
        "data.sources[3].optimade.url",
    ]


def test_loaded_campaigns_are_checked_with_their_overrides(crystals: dict[str, Any]) -> None:
    campaign = parse_campaign(
        {"name": "a", "data": crystals, "generate": {"compositions": [{"formula": "UO2"}]}}, "x"
    )
    with pytest.raises(UserError, match=r"^config/a.yaml: generate.compositions\[0\].formula = UO2"):
        check_loaded({"config/a.yaml": campaign})
    check_loaded({})


def test_model_directory(tmp_path: Path, crystals: dict[str, Any]) -> None:
    path = write(tmp_path / "a.yaml", data=crystals, generator={"pretrained": str(tmp_path / "model")})
    assert "config.json and model.safetensors not found" in problems(path)[0]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert "model.safetensors not found" in problems(path)[0]
    (tmp_path / "model" / "model.safetensors").touch()
    assert "config.json describes no model (KeyError: 'kind')" in problems(path)[0]
    (tmp_path / "model" / "config.json").write_text(json.dumps({"kind": "dao_p", "process": {}}))
    assert "a dao_p model cannot generate" in problems(path)[0]
    note = {"kind": "dao_g", "process": {"kind": "flow"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(note))
    check_campaigns([path])
    refined = {"template_share": 0.5, "template_refinement": "path"}
    path = write(
        tmp_path / "b.yaml", data=crystals, generator={"pretrained": str(tmp_path / "model")}, generate=refined
    )
    assert "has not learned paths from templates" in problems(path)[0]
    (tmp_path / "model" / "config.json").write_text(json.dumps(note | {"template_errors": [0.02, 0.03]}))
    check_campaigns([path])


def test_a_model_of_the_other_process(tmp_path: Path, crystals: dict[str, Any]) -> None:
    """Neither guided by this campaign's DAO-P nor sampled with settings of the campaign's process."""
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"kind": "dao_g", "process": {"kind": "diffusion"}}))
    pretrained = {"data": crystals, "generator": {"pretrained": str(tmp_path)}}
    guided = write(tmp_path / "a.yaml", **pretrained, generate={"guidance_scale": 1})
    assert (
        "trained with process.kind = diffusion; this campaign, and so its DAO-P, has flow" in problems(guided)[0]
    )
    check_campaigns([write(tmp_path / "a.yaml", **pretrained, generate={"guidance_scale": 0})])
    foreign = {"guidance_scale": 0, "method": "midpoint"}
    assert (
        "generate.method (midpoint) has no meaning for process.kind: diffusion"
        in problems(write(tmp_path / "a.yaml", **pretrained, generate=foreign))[0]
    )
    check_campaigns([write(tmp_path / "a.yaml", **pretrained, process={"kind": "diffusion"})])


def test_finetuning_table_must_be_one(tmp_path: Path, crystals: dict[str, Any]) -> None:
    (tmp_path / "foreign.parquet").write_text("no table")
    path = write(tmp_path / "a.yaml", data=crystals, finetune={"path": str(tmp_path / "foreign.parquet")})
    assert "not a readable Parquet file" in problems(path)[0]
    check_campaigns([write(tmp_path / "a.yaml", data=crystals, finetune={"path": crystals["path"]})])


def test_quantum_espresso(tmp_path: Path, crystals: dict[str, Any]) -> None:
    program = tmp_path / "pw.x"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    qe = {"enabled": True, "command": str(program)}
    assert "qe.pseudo_dir: not given" in problems(write(tmp_path / "a.yaml", data=crystals, qe=qe))[0]
    qe["pseudo_dir"] = str(tmp_path)
    assert "no UPF files" in problems(write(tmp_path / "a.yaml", data=crystals, qe=qe))[0]
    header = '<PP_HEADER element="{}" pseudo_type="NC" functional="{}" z_valence="6.0"/>'
    (tmp_path / "O.UPF").write_text(header.format("O", "PBE"))
    check_campaigns([write(tmp_path / "a.yaml", data=crystals, qe=qe)])
    asked = {"compositions": [{"formula": "LiO"}]}  # elements that are known to come
    found = problems(write(tmp_path / "a.yaml", data=crystals, generate=asked, qe=qe))
    assert "no PBE pseudopotential for Li" in found[-1]
    (tmp_path / "Li.UPF").write_text(header.format("Li", "SLA PZ NOGX NOGC"))
    found = problems(write(tmp_path / "a.yaml", data=crystals, generate=asked, qe=qe))
    assert "Li.UPF: its functional is LDA" in found[-1]
    table = {"pseudo_table": str(tmp_path / "O.UPF")}
    assert "no table of pseudopotentials" in problems(write(tmp_path / "a.yaml", data=crystals, qe=qe | table))[0]
    assert (
        "absent.txt: not readable"
        in problems(write(tmp_path / "a.yaml", data=crystals, qe=qe | {"candidates": "absent.txt"}))[0]
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"launcher": "mpirun-of-nowhere -np 2"}, "mpirun-of-nowhere not found on this machine"),
        ({"launcher": "sh -np 4"}, "4 processes, but compute.dft.threads = 2; raise"),
        ({"launcher": "sh -np 2", "pools": 3}, "does not divide the 2 processes"),
        ({"command": ""}, "qe.command: empty"),
        ({"command": "pw-of-a-module.x", "setup": "module load qe"}, None),
    ],
)
def test_how_quantum_espresso_is_started(
    tmp_path: Path, crystals: dict[str, Any], values: dict[str, Any], problem: str | None
) -> None:
    (tmp_path / "O.UPF").write_text("<PP_HEADER")
    qe = {"enabled": True, "command": "sh", "pseudo_dir": str(tmp_path)} | values
    path = write(tmp_path / "a.yaml", data=crystals, qe=qe)
    if problem is None:
        check_campaigns([path])
    else:
        assert problem in problems(path)[0]


def test_materials_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MP_API_KEY", "k" * 32)
    query = {"elements": ["Qq"], "chemical_systems": ["Li-O"]}
    path = write(
        tmp_path / "a.yaml",
        data={"source": "materials_project", "materials_project": query},
        generate={"compositions": [{"formula": "NaO"}]},
    )
    first, second = problems(path)
    assert "data.materials_project.elements = Qq: no such element" in first
    assert "no system of data.materials_project.chemical_systems contains Na" in second


def test_a_finished_download_needs_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_key(monkeypatch, tmp_path)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "a.yaml", data={"source": "materials_project"})
    assert "there is no key" in problems(path)[0]
    done = tmp_path / "work" / "a" / "download" / "materials_project-0" / "checksums.json"
    done.parent.mkdir(parents=True)
    done.touch()
    check_campaigns([path])


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("api.materialsproject.org", "no address of a server"),
        ("ftp://x.org/", "no address of a server"),
        ("https://:99999/", "no address of a server"),
        ("https://me:secret@x.org/", "holds a user or password"),
        ("http://x.org/", "the key would travel unencrypted"),
        ("http://127.0.0.1:8000/", ""),
        ("https://x.org/api", ""),
    ],
)
def test_addresses_of_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, problem: str) -> None:
    monkeypatch.setenv("MP_API_KEY", "k" * 32)
    query = {"endpoint": address}
    path = write(tmp_path / "a.yaml", data={"source": "materials_project", "materials_project": query})
    if problem:
        (line,) = problems(path)
        assert problem in line
        assert "secret" not in line
    else:
        check_campaigns([path])


def test_optimade(tmp_path: Path) -> None:
    def asked(url: str | None) -> Path:
        return write(tmp_path / "a.yaml", data={"source": "optimade", "optimade": {"url": url}})

    for good in ("oqmd", "http://example.org/optimade"):
        check_campaigns([asked(good)])
    assert "neither an address (https://...) nor one of the names oqmd" in problems(asked("oqdm"))[0]
    assert "no address of a server" in problems(asked("https://"))[0]
    assert "so name the server" in problems(asked(None))[0]


def test_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "cifs").mkdir()
    path = write(tmp_path / "a.yaml", data={"source": "file", "path": str(tmp_path / "cifs")})
    assert "no file of crystals in this folder" in problems(path)[0]
    (tmp_path / "cifs" / "a.cif").touch()
    check_campaigns([path])
    (tmp_path / "set.docx").touch()
    path = write(tmp_path / "a.yaml", data={"source": "file", "path": str(tmp_path / "set.docx")})
    assert "unknown kind of file" in problems(path)[0]


@pytest.mark.parametrize("name", ["set.json", "set.zip", "set.cif", "set.xyz", "set.csv.gz"])
def test_tables_to_exclude_may_be_of_any_kind(tmp_path: Path, crystals: dict[str, Any], name: str) -> None:
    """Their content is looked at by build_crysdb; only Parquet and CSV are cheap enough to read here."""
    (tmp_path / name).touch()
    check_campaigns([write(tmp_path / "a.yaml", data=crystals, crysdb={"exclude": [str(tmp_path / name)]})])
    (tmp_path / "set.docx").touch()
    path = write(tmp_path / "a.yaml", data=crystals, crysdb={"exclude": [str(tmp_path / "set.docx")]})
    assert "crysdb.exclude[0] = " in problems(path)[0]


def test_elements_of_a_csv(tmp_path: Path) -> None:
    cifs = [str(CifWriter(to_structure(binary(i)))) for i in (0, 20)]
    path = tmp_path / "set.csv"
    path.write_text("material_id,cif\n" + "\n".join(f'mp-{i},"{cif}"' for i, cif in enumerate(cifs)))
    assert elements_in(path) == {"Li", "O", "Ca", "S"}
    bare = [cif.replace("_chemical_formula", "_other") for cif in cifs]
    path.write_text("material_id,cif\n" + "\n".join(f'mp-{i},"{cif}"' for i, cif in enumerate(bare)))
    assert elements_in(path) == {"Li", "O", "Ca", "S"}


def test_embedded_source_is_checked_quickly_and_lightly(tmp_path: Path) -> None:
    if not EMBEDDED_PATH.exists():
        pytest.skip("the embedded table is not built")
    path = write(tmp_path / "a.yaml", generate={"compositions": [{"formula": "SrTiO3"}]})
    start = time.perf_counter()
    check_campaigns([path])
    assert time.perf_counter() - start < 0.5
    code = (
        "import sys, pathlib; from dao_pipeline.preflight import check_campaigns;"
        f"check_campaigns([pathlib.Path({str(path)!r})]);"
        "print(*(m for m in ('torch', 'pymatgen', 'ase', 'pandas', 'scipy') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
    rare = write(tmp_path / "b.yaml", generate={"compositions": [{"formula": "RnF2"}]})
    assert "no crystal of embedded.parquet contains Rn" in problems(rare)[0]

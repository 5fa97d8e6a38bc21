"""Checks of whole campaigns before any job starts; light enough for the Snakefile (no pymatgen, no torch)."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dao_pipeline.config import Campaign, DataSource, Process, expand_path
from dao_pipeline.config.read import load_campaign, variants
from dao_pipeline.crystals.elements import ATOMIC_NUMBERS, SYMBOLS
from dao_pipeline.crystals.formula import parse_formula
from dao_pipeline.crystals.schema import CRYSTAL
from dao_pipeline.crystals.table import read_about, require_crystals, table_files
from dao_pipeline.errors import UserError
from dao_pipeline.preflight_screen import screen_problems
from dao_pipeline.sources.keys import HOW_TO, materials_project_key

Origin = str | Path
"""Where a campaign comes from; it is named in front of each problem."""

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MODEL_FILES = ("config.json", "model.safetensors")
_CSV_SUFFIXES = (".csv", ".tsv", ".txt")
_STRUCTURE = ("atomic_numbers", "frac_coords", "lattice")
_FORMULA_SUM = re.compile(rb"_chemical_formula_sum\s+['\"]*([A-Z][A-Za-z0-9. ]*)")
_SITE = re.compile(rb"^\s*([A-Z][a-z]?)\d*[+-]?\s+\S+\s+[-\d.]", re.MULTILINE)


def check_campaigns(paths: Iterable[Path]) -> dict[Path, Campaign]:
    """Load and check campaign files.

    Raises one UserError with every problem of every file, a line each: file, key, value, remedy.
    """
    campaigns: dict[Path, Campaign] = {}
    problems: list[str] = []
    for path in paths:
        try:
            campaigns[path] = load_campaign(path)
        except UserError as error:
            problems += str(error).splitlines()
    problems += _problems(campaigns)
    _raise(problems)
    return campaigns


def check_loaded(campaigns: Mapping[Path, Campaign] | Mapping[str, Campaign]) -> None:
    """Check campaigns that are already loaded, with whatever was merged over their files.

    Raises one UserError with every problem.
    """
    _raise(_problems(campaigns))


def _raise(problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join(problems))


def _problems(campaigns: Mapping[Path, Campaign] | Mapping[str, Campaign]) -> list[str]:
    found: list[str] = []
    owner: dict[str, Origin] = {}
    for origin, campaign in campaigns.items():
        if campaign.name in owner:
            found.append(
                f"{origin}: name = {campaign.name}: {owner[campaign.name]} has the same name, so their results "
                "would overwrite one another; rename one."
            )
        owner.setdefault(campaign.name, origin)
        own = _own_problems(campaign)
        found += [f"{origin}: {problem}" for problem in own]
        try:
            differing = variants(campaign, str(origin))
        except UserError as error:
            found += str(error).splitlines()
            continue
        for name, variant in differing.items():
            new = [problem for problem in _own_problems(variant) if problem not in own]
            found += [f"{origin}: ablation.variants.{name}: {problem}" for problem in new]
            if not variant.generator.enabled:
                found.append(
                    f"{origin}: ablation.variants.{name}: generator.enabled is false: nothing to compare."
                )
            if not variant.generate.known:
                found.append(
                    f"{origin}: ablation.variants.{name}: generate.compositions is set, or files, systems or "
                    "substitutions are, so there are no known crystals to find; leave them out."
                )
    return found


def _own_problems(campaign: Campaign) -> list[str]:
    checks = (_asked, _data, _tables, _pretrained, _ranker, screen_problems, _qe)
    return [problem for check in checks for problem in check(campaign)]


def _asked(campaign: Campaign) -> Iterator[str]:
    """Problems of the files of formulas, and campaigns that ask for nothing."""
    if campaign.generate.known:
        return
    from dao_pipeline.candidates.asked import resolve

    try:
        found = resolve(campaign)
    except UserError as error:
        yield from str(error).splitlines()
        return
    if not found.names:
        lost = ", ".join(f"{n} {reason}" for reason, n in found.about["dropped"].items()) or "none dropped"
        yield f"generate: no composition is left to predict ({lost}); ask for others."


def problems_of(campaign: Campaign, origin: Origin) -> list[str]:
    """Every problem of one campaign, a line each."""
    return _problems({str(origin): campaign})


def source_elements(campaign: Campaign) -> set[str] | None:
    """Symbols of the elements that the sources can teach; None where that takes more than a look."""
    taught = _taught(campaign, [])
    return None if taught is None else set().union(*(one.elements for one in taught))


def _data(campaign: Campaign) -> Iterator[str]:
    """Problems of the sources, and elements that all of them together cannot teach."""
    problems: list[str] = []
    taught = _taught(campaign, problems)
    yield from problems
    if taught is not None:
        elements = set().union(*(one.elements for one in taught))
        yield from _unseen(campaign, elements, f"no {' and no '.join(one.what for one in taught)} contains")


def _taught(campaign: Campaign, problems: list[str]) -> list[_Taught] | None:
    """What each source teaches; None if one was not looked into, as any element may be in it."""
    taught = [_source(campaign, key, source, problems) for key, source in campaign.data.each()]
    known = [one for one in taught if one is not None]
    return known if len(known) == len(taught) else None


class _Taught(NamedTuple):
    """Elements of a source, and what it consists of, in words."""

    elements: set[str]
    what: str


def _source(campaign: Campaign, key: str, source: DataSource, problems: list[str]) -> _Taught | None:
    """What a source teaches, as far as that is known without much work; appends its problems."""
    if source.source == "materials_project":
        return _materials_project(campaign, key, source, problems)
    if source.source == "optimade":
        problems += _optimade(key, source)
        return None
    if source.source == "embedded":
        from dao_pipeline.sources.embedded import EMBEDDED_PATH

        path = EMBEDDED_PATH
        named = f"{key}.source = embedded"
    else:
        named = f"{key}.path = {source.path}"
        try:
            path = expand_path(source.path or "")
        except UserError as error:
            problems.append(f"{named}: {_reason(error)}")
            return None
    if not path.exists():
        problems.append(f"{named}: {path} does not exist; correct the path.")
        return None
    try:
        seen = _elements_if_cheap(path)
    except UserError as error:
        problems.append(f"{named}: {error}")
        return None
    return None if seen is None else _Taught(seen, f"crystal of {path.name}")


def _elements_if_cheap(path: Path) -> set[str] | None:
    """Elements of a table; None for what must be parsed crystal by crystal, of which only the kind is checked."""
    from dao_pipeline.sources.kinds import TABLES, crystal_files, suffix_of

    kinds = {suffix_of(file) for file in crystal_files(path)}
    if len(kinds) == 1 and kinds <= TABLES and not path.name.lower().endswith(".gz"):
        return elements_in(path) if path.is_file() or kinds == {".parquet"} else None
    return None


def _reason(error: UserError) -> str:
    """What ``expand_path`` says, without the path that is named already."""
    return str(error).partition("': ")[2] or str(error)


def _unseen(campaign: Campaign, seen: set[str], what: str) -> Iterator[str]:
    for i, composition in enumerate(campaign.generate.compositions or []):
        if missing := [symbol for symbol in parse_formula(composition.formula) if symbol not in seen]:
            yield (
                f"generate.compositions[{i}].formula = {composition.formula}: {what} {', '.join(missing)}, so the "
                "models would never see it; choose another source, or remove the composition."
            )


def _materials_project(campaign: Campaign, key: str, source: DataSource, problems: list[str]) -> _Taught | None:
    query = source.materials_project
    try:
        if not materials_project_key() and not _is_downloaded(campaign):
            problems.append(f"{key}.source = materials_project: there is no key; {HOW_TO}.")
    except UserError as error:
        problems.append(f"{key}.source = materials_project: {error}")
    key = f"{key}.materials_project"
    if query.endpoint is not None:
        problems += _address(f"{key}.endpoint", query.endpoint, with_key=True)
    named = sorted({symbol for system in query.chemical_systems or [] for symbol in system.split("-")})
    asked = (
        ("elements", query.elements or []),
        ("exclude_elements", query.exclude_elements or []),
        ("chemical_systems", named),
    )
    for what, symbols in asked:
        if wrong := [s for s in symbols if s not in ATOMIC_NUMBERS and s != "*"]:
            problems.append(f"{key}.{what} = {', '.join(wrong)}: no such element; correct the symbol.")
    if not named or "*" in named:
        return None
    return _Taught(set(named), f"system of {key}.chemical_systems")


def _is_downloaded(campaign: Campaign) -> bool:
    """Whether the crystals are there, so that nothing is asked of the Materials Project."""
    work = Path("work", campaign.name, "download")
    made = Path("results", campaign.name, "raw", "crystals.parquet")
    return made.exists() or any(work.glob("materials_project-*/checksums.json"))


def _optimade(key: str, source: DataSource) -> Iterator[str]:
    from dao_pipeline.sources.kinds import OPTIMADE_NAMES

    if find_spec("optimade") is None:
        yield f"{key}.source = optimade: needs the optimade package; pip install 'dao-pipeline[optimade]'."
    url = source.optimade.url or ""
    if url not in OPTIMADE_NAMES:
        if "://" not in url:
            yield (
                f"{key}.optimade.url = {url}: neither an address (https://...) nor one of the names "
                f"{', '.join(OPTIMADE_NAMES)}; correct it."
            )
        else:
            yield from _address(f"{key}.optimade.url", url, with_key=False)


def _address(key: str, text: str, with_key: bool) -> Iterator[str]:
    """Problems of a server's address; a key must not travel in the clear, nor a password stand in a file."""
    try:
        parts = urlsplit(text)
        host, sound = parts.hostname or "", parts.port is None or parts.port > 0
    except ValueError:
        host, sound = "", False
    if not sound or not host or parts.scheme not in ("http", "https"):
        yield f"{key} = {text}: no address of a server; write https://host/path."
    elif parts.username or parts.password:
        yield f"{key}: the address holds a user or password, which would be written into files; leave them out."
    elif with_key and parts.scheme == "http" and host not in _LOOPBACK:
        yield f"{key} = {text}: the key would travel unencrypted; use https."


def _tables(campaign: Campaign) -> Iterator[str]:
    """Problems of the further tables that the campaign names."""
    for i, text in enumerate(campaign.crysdb.exclude):
        yield from _table(f"crysdb.exclude[{i}]", text, _elements_if_cheap)
    if campaign.finetune.path is not None:
        yield from _table("finetune.path", campaign.finetune.path, _crystal_table)
    labels = campaign.property
    if labels.enabled and labels.path and labels.column:
        yield from _table("property.path", labels.path, partial(_labels, column=labels.column))


def _crystal_table(path: Path) -> None:
    read_about(path)
    require_crystals(path)


def _labels(path: Path, column: str) -> None:
    _crystal_table(path)
    if column not in (names := pq.read_schema(table_files(path)[0]).names):
        raise UserError(
            f"no column {column}; set property.column to one that is there: "
            f"{', '.join(sorted(set(names) - {*CRYSTAL}) or sorted(names))}."
        )


def _table(key: str, text: str, check: Callable[[Path], object]) -> Iterator[str]:
    try:
        path = expand_path(text)
        if not path.exists():
            yield f"{key} = {text}: {path} does not exist; correct the path."
            return
        check(path)
    except (UserError, pa.ArrowInvalid, OSError) as error:
        yield f"{key} = {text}: {error}"


def _pretrained(campaign: Campaign) -> Iterator[str]:
    """Problems of the model directories that the campaign names."""
    for key, text, kind in (
        ("energy_model.pretrained", campaign.energy_model.pretrained, "dao_p"),
        ("generator.pretrained", campaign.generator.pretrained, "dao_g"),
    ):
        if text is not None:
            yield from (f"{key} = {text}: {problem}" for problem in _model(campaign, text, kind))


def _model(campaign: Campaign, text: str, kind: str) -> Iterator[str]:
    try:
        folder = expand_path(text)
    except UserError as error:
        yield _reason(error)
        return
    if missing := [name for name in _MODEL_FILES if not (folder / name).is_file()]:
        yield (
            f"{' and '.join(missing)} not found in {folder}; name a model directory, or leave the key out to "
            "train one."
        )
        return
    try:
        note = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found, process = note["kind"], Process.of_model(note["process"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        file = folder / "config.json"
        yield f"{file} describes no model ({type(error).__name__}: {error}); name another directory."
        return
    if found != kind:
        wanted, use = {"dao_g": ("DAO-G", "generate"), "dao_p": ("DAO-P", "predict energies")}[kind]
        yield f"a {found} model cannot {use}; name a {wanted} directory."
    elif refusal := campaign.refusal(process):
        yield f"{refusal}."
    elif kind == "dao_g" and note.get("template_errors") is None and campaign.needs_paths():
        yield (
            f"{folder} has not learned paths from templates, which generator.template_paths or "
            "generate.template_refinement: path needs; set 0 and none, or name another directory."
        )


def _ranker(campaign: Campaign) -> Iterator[str]:
    text = campaign.ranking.model
    if text is None:
        return
    try:
        folder = expand_path(text)
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["kind"]
    except UserError as error:
        yield f"ranking.model = {text}: {_reason(error)}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"ranking.model = {text}: no ranker's directory ({type(error).__name__}: {error}); name another."
    else:
        if kind != "ranker":
            yield f"ranking.model = {text}: a {kind} model does not rank; name a ranker's directory."


def _qe(campaign: Campaign) -> Iterator[str]:
    if campaign.qe.enabled:
        for check in (_qe_candidates, _qe_pseudopotentials, _qe_command):
            yield from check(campaign)


def _qe_candidates(campaign: Campaign) -> Iterator[str]:
    from dao_pipeline.qe.select import named_candidates

    try:
        named_candidates(campaign.qe)
    except UserError as error:
        yield str(error)


def _qe_pseudopotentials(campaign: Campaign) -> Iterator[str]:
    """Problems of the pseudopotentials: of every element that is known to come, or else of what there is."""
    from dao_pipeline.qe.pseudopotentials import pseudopotentials_of, read_table

    qe = campaign.qe
    if not qe.pseudo_dir:
        yield "qe.pseudo_dir: not given, but qe.enabled is true; name the folder with pseudopotentials (UPF)."
        return
    asked = (parse_formula(composition.formula) for composition in campaign.generate.compositions or [])
    elements = dict.fromkeys(symbol for formula in asked for symbol in formula)
    try:
        folder = expand_path(qe.pseudo_dir)
        if not any(p.suffix.lower() == ".upf" for p in (folder.iterdir() if folder.is_dir() else ())):
            yield f"qe.pseudo_dir = {qe.pseudo_dir}: no UPF files in {folder}; correct the path."
            return
        if qe.pseudo_table:
            read_table(expand_path(qe.pseudo_table))
        if elements:
            pseudopotentials_of(qe, elements)
    except UserError as error:
        yield from str(error).splitlines()


def _qe_command(campaign: Campaign) -> Iterator[str]:
    qe, threads = campaign.qe, campaign.compute.dft.threads
    words = [*shlex.split(qe.launcher), *shlex.split(qe.command)]
    if not shlex.split(qe.command):
        yield "qe.command: empty; write how pw.x is started, e.g. pw.x."
    programs = [word for i, word in enumerate(words) if i == 0 or Path(word).name == "pw.x"]
    if not qe.setup and (missing := [word for word in programs if shutil.which(word) is None]):
        yield (
            f"qe.command = {' '.join(words)}: {' and '.join(missing)} not found on this machine; install Quantum "
            "ESPRESSO, write the full path, or give the commands that load it in qe.setup."
        )
    processes = re.search(r"(?:^|\s)-(?:np|n|c)\s+(\d+)", " ".join(words))
    if processes and int(processes.group(1)) > threads:
        yield (
            f"qe.launcher = {qe.launcher}: {processes.group(1)} processes, but compute.dft.threads = {threads}; "
            "raise compute.dft.threads, which is what a job asks the cluster for."
        )
    if processes and int(processes.group(1)) % qe.pools:
        yield f"qe.pools = {qe.pools}: does not divide the {processes.group(1)} processes; choose a divisor."


def elements_in(path: Path) -> set[str]:
    """Symbols of the elements in a file of crystals (Parquet, folder of shards, or CSV with CIFs).

    Only what is needed is read: one column of Parquet; of CSV, the formulas that the CIFs state.

    Raises UserError for files that hold no crystals.
    """
    if path.suffix.lower() in _CSV_SUFFIXES:
        return _elements_in_csv(path)
    read_about(path)
    found: set[int] = set()
    try:
        for file in table_files(path):
            stored = pq.ParquetFile(file)  # pq.read_table would import pandas, half a second
            names = stored.schema_arrow.names
            if missing := [name for name in _STRUCTURE if name not in names]:
                raise UserError(f"{file}: columns {', '.join(missing)} are missing; this is no table of crystals.")
            numbers = stored.read(columns=["atomic_numbers"])["atomic_numbers"]
            found.update(pc.unique(pc.list_flatten(numbers)).to_pylist())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise UserError(f"{path}: no readable table of crystals ({error}).") from error
    return {SYMBOLS[int(z)] for z in found if isinstance(z, (int, float)) and 1 <= z < len(SYMBOLS)}


def _elements_in_csv(path: Path) -> set[str]:
    text = path.read_bytes()
    header = text.split(b"\n", 1)[0]
    if b"cif" not in header:
        raise UserError(f"{path}: no column cif in the CSV header; add it.")
    sums = {
        symbol for formula in set(_FORMULA_SUM.findall(text)) for symbol in re.findall(rb"[A-Z][a-z]?", formula)
    }
    symbols = sums or set(_SITE.findall(text))
    return {symbol.decode() for symbol in symbols} & set(ATOMIC_NUMBERS)

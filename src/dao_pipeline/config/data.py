"""Where crystals come from."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dao_pipeline.config.section import Section


class MaterialsProject(Section):
    """What to ask the Materials Project for; the key is MP_API_KEY or pymatgen's PMG_MAPI_KEY, never stored."""

    elements: list[str] | None = Field(None, description="only crystals that contain all of these elements")
    exclude_elements: list[str] | None = Field(None, description="only crystals that contain none of these")
    chemical_systems: list[str] | None = Field(
        None, description="chemical systems, e.g. [Li-Fe-O, Na-Cl]; '*' stands for any element"
    )
    min_sites: int | None = Field(None, ge=1, description="atoms per primitive cell at least")
    max_sites: int | None = Field(None, ge=1, description="atoms per primitive cell at most")
    min_e_above_hull: float | None = Field(None, ge=0, le=10, description="eV/atom; e.g. 0.08: unstable only")
    max_e_above_hull: float = Field(1.0, ge=0, le=10, description="eV/atom")
    theoretical: bool | None = Field(
        None, description="true: only crystals nobody has made; false: only known ones; null: both"
    )
    thermo_type: Literal["GGA_GGA+U", "GGA_GGA+U_R2SCAN", "R2SCAN"] = Field(
        "GGA_GGA+U", description="level of theory of the energies; always sent explicitly"
    )
    published: bool = Field(True, description="ask for the year of first publication as well, for splits by time")
    phases: bool = Field(True, description="fetch the phases on the convex hull as well: raw/phases.parquet")
    chunk: int = Field(400, ge=1, le=1000, description="crystals per request; kept as they arrive")
    endpoint: str | None = Field(None, description="address of another server that speaks the same API")

    @model_validator(mode="after")
    def _ranges(self) -> MaterialsProject:
        for low, high in (("min_sites", "max_sites"), ("min_e_above_hull", "max_e_above_hull")):
            lowest, highest = getattr(self, low), getattr(self, high)
            if lowest is not None and highest is not None and lowest > highest:
                raise ValueError(f"{low} ({lowest}) exceeds {high} ({highest})")
        return self


class Optimade(Section):
    """What to ask an OPTIMADE server for (OQMD, Alexandria, JARVIS, COD and others are such)."""

    url: str | None = Field(
        None,
        description="base address without the version, e.g. https://oqmd.org/optimade, or one of the names oqmd, "
        "alexandria, alexandria-pbesol, jarvis, cod, mp",
    )
    filter: str = Field(
        "", description='OPTIMADE filter, e.g. \'elements HAS ALL "Li", "O" AND nsites <= 20\'; empty: everything'
    )
    page: int = Field(100, ge=1, le=1000, description="structures per request; kept as they arrive")
    sort: str | None = Field(
        None, description="property to sort by, where the server can: pages then do not shift while they are read"
    )


ImportedColumn = Literal[
    "id",
    "source",
    "spacegroup",
    "formation_energy",
    "e_above_hull",
    "energy_method",
    "split",
    "published",
    "precursor_of",
]
"""Columns of the crystal table that a source may carry beside the structure."""


class Network(Section):
    """How patiently online sources are asked."""

    timeout: float = Field(60.0, gt=0, le=3600, description="seconds of silence after which a request is repeated")
    attempts: int = Field(
        8, ge=1, le=100, description="tries of a request; 429, 5xx, timeouts and cut connections are repeated"
    )
    backoff: float = Field(1.0, ge=0, le=600, description="seconds before the second try; doubled each time")
    longest_wait: float = Field(
        300.0,
        ge=0,
        description="seconds; where a server asks for a longer pause, the run ends and continues later",
    )


class DataSource(Section):
    """One source of crystals: what ships with the package, a file or folder, or a server."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="goes into the column source, where a file does not fill it itself, and in front of every id, "
        "as NAME:ID; null: the file's or server's own name, and ids as they are",
    )
    source: Literal["embedded", "file", "materials_project", "optimade"] = Field(
        "embedded", description="embedded: the crystals that ship with the package, no network"
    )
    path: str | None = Field(
        None,
        description="for source file: Parquet, CSV with a cif column, CIF, extended XYZ or pymatgen JSON, or a "
        "folder or zip of such; $NAME and ${NAME} are read from the environment",
    )
    columns: dict[ImportedColumn, str] = Field(
        {},
        description="names under which the source carries values, where they differ from the usual ones, e.g. "
        "{formation_energy: ef_per_atom, published: year}",
    )
    energy_method: str | dict[str, str] | None = Field(
        None,
        description="level of theory of the energies in the file, e.g. PBE (recorded, never guessed), or one for "
        "each value of the file's column source, e.g. {oqmd: 'PBE, OQMD', mp: 'PBE, MP'}",
    )
    limit: int | None = Field(None, ge=1, description="use only the first so many crystals")
    seconds_per_crystal: float = Field(
        30.0, gt=0, le=3600, description="a CIF or other text that takes longer to parse is rejected"
    )
    snapshot: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="name of the copy of an online source, e.g. 2026-11; another name downloads anew",
    )
    materials_project: MaterialsProject = MaterialsProject()
    optimade: Optimade = Optimade()
    network: Network = Network()

    @model_validator(mode="after")
    def _complete(self) -> DataSource:
        if self.source == "file" and not self.path:
            raise ValueError("path: source is file, so name the file (or use source: embedded)")
        if self.source == "optimade" and not self.optimade.url:
            raise ValueError("optimade.url: source is optimade, so name the server, e.g. oqmd")
        if self.source != "file" and isinstance(self.energy_method, dict):
            raise ValueError(f"energy_method: source is {self.source}, which needs a single level of theory")
        return self


class Data(DataSource):
    """Stage download: where crystals come from."""

    sources: list[DataSource] | None = Field(
        None,
        min_length=1,
        description="several sources in place of the one above, each with the keys above, the most trusted first: "
        "of equal crystals, build_crysdb keeps that of the earlier source",
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> Data:
        if self.sources is None:
            return self
        single = DataSource()
        if given := [key for key in DataSource.model_fields if getattr(self, key) != getattr(single, key)]:
            raise ValueError(f"{', '.join(given)}: sources is given, so write this into its entries")
        names = [source.name for source in self.sources if source.name]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"sources: {', '.join(twice)} is the name of several; rename one, or put files that belong "
                "together into one folder"
            )
        return self

    def each(self) -> list[tuple[str, DataSource]]:
        """Every source with the key that it stands under in the campaign: ``data`` or ``data.sources[0]``."""
        if self.sources is None:
            return [("data", self)]
        return [(f"data.sources[{i}]", source) for i, source in enumerate(self.sources)]

import base64
import io
import itertools
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow.compute as pc
import pytest
from pymatgen.core import Structure
from rich.console import Console

from dao_pipeline.crystals.convert import to_structure
from dao_pipeline.crystals.crystal import from_table
from dao_pipeline.crystals.table import read_table, write_table
from dao_pipeline.report.page import write_report
from dao_pipeline.report.summary import print_summary
from tests.report.build import build_results, make_campaign

HOSTILE = '<img src=x onerror="alert(1)">[red]</script>'
ALLOWED = {"https://arxiv.org/abs/2503.10471"}


class Page(HTMLParser):
    """Tags, addresses, ids and CIF links of a page."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.cifs, self.tags, self.anchors = [], [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster")]
        self.ids += [values["id"]] if "id" in values else []
        if "download" in values:
            self.cifs[values["download"]] = base64.b64decode(values["href"].split(",", 1)[1]).decode()
        if tag == "a" and values["href"].startswith("#"):
            self.anchors.append(values["href"][1:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def text(folder):
    out = folder / "report" / "index.html"
    write_report(make_campaign(report={"title": "Five compounds"}), folder, out)
    return out.read_text(encoding="utf-8")


def test_page_needs_no_network(text):
    page = Page(text)
    external = [a for a in page.addresses if not a.startswith(("#", "data:"))]
    assert set(external) <= ALLOWED
    assert "@import" not in text
    assert "url(" not in text
    assert set(page.tags).isdisjoint({"iframe", "object", "embed", "base"})
    assert len(text) < 200_000


def test_anchors_lead_somewhere_and_ids_are_unique(text):
    page = Page(text)
    assert set(page.anchors) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_coverage_on_the_page_adds_up(text):
    section = re.search(r'<section id="coverage">.*?</section>', text, re.S).group()
    counts = [int(n) for n in re.findall(r'<div class="count">(\d+)</div>', section)]
    steps = section.split('<li>\n    <div class="label">')[1:]
    dropped = [sum(int(n) for n in re.findall(r"<b>−(\d+)</b>", step)) for step in steps]
    assert counts == [60, 55, 45, 35, 25]
    assert [a - b for a, b in itertools.pairwise(counts)] == dropped[1:]


def test_cif_is_the_same_crystal(text, folder):
    page = Page(text)
    assert len(page.cifs) == 25
    crystals = from_table(read_table(folder / "candidates" / "screened.parquet").filter(read_valid(folder)))
    by_name = {f"{c.extra['composition']}-{c.extra['rank']}.cif": c for c in crystals if c.extra["rank"]}
    for name, cif in page.cifs.items():
        known, parsed = to_structure(by_name[name]), Structure.from_str(cif, fmt="cif")
        assert parsed.species == known.species
        assert np.allclose(parsed.lattice.parameters, known.lattice.parameters, atol=1e-8)
        difference = parsed.frac_coords - known.frac_coords
        assert np.abs(difference - difference.round()).max() < 1e-9


def read_valid(folder):
    return read_table(folder / "candidates" / "screened.parquet")["valid"]


def test_sections_of_stages_that_did_not_run_are_absent(tmp_path, folder, text):
    parts = {
        "candidates": ["candidates", "energies", "coverage"],
        "evaluation": ["found"],
        "crysdb": [],
        "raw": ["crystals"],
        "models": ["training"],
        "relaxed": ["relaxation"],
        "timings": ["timings"],
    }
    assert {name for names in parts.values() for name in names} <= set(Page(text).ids)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    gone = {"filter", "first", "hits", "shown", "ranked"}
    for part, names in parts.items():
        shutil.rmtree(copy / part)
        gone |= set(names)
        write_report(make_campaign(), copy, copy / "page.html")
        page = Page((copy / "page.html").read_text())
        assert set(page.ids).isdisjoint(names)
        assert set(page.anchors) <= set(page.ids)
    assert set(page.ids) == {"overview", "origin", "cite"}


def test_hostile_names_are_text(tmp_path, folder):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("candidates/screened", "candidates/plan", "evaluation/samples", "evaluation/targets"):
        path = copy / f"{name}.parquet"
        table = read_table(path)
        for column in {"composition", "target_id", "status"} & set(table.column_names):
            hostile = pc.binary_join_element_wise(HOSTILE, table[column], "")
            table = table.set_column(table.schema.get_field_index(column), column, hostile)
        write_table(table, path, {})
    (copy / "config.yaml").write_text(f"name: '{HOSTILE}'\n")
    campaign = make_campaign(report={"title": HOSTILE})
    write_report(campaign, copy, copy / "page.html")
    text = (copy / "page.html").read_text()
    page = Page(text)
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert "&lt;img src=x onerror=" in text
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+\.cif", name) for name in page.cifs)
    print_summary(copy, Console(file=io.StringIO(), width=100))


def test_summary_on_the_terminal(folder, text):
    out = io.StringIO()
    print_summary(folder, Console(file=out, width=80))
    printed = out.getvalue()
    assert "found, RMSE 0.043" in printed
    assert "60 requested, 55 generated, 45 valid, 35 unique, 25 novel" in printed
    assert "Template substitution" in printed
    assert str(folder / "report" / "index.html") in printed.replace("\n", "")
    assert max(map(len, printed.split("Report:")[0].splitlines())) <= 80


def test_summary_before_anything_ran(tmp_path):
    out = io.StringIO()
    print_summary(tmp_path, Console(file=out))
    assert "No candidates have been screened yet" in out.getvalue()

"""The page in a real browser, network off: no errors, sorts, filters, fits a narrow screen."""

import json
import os
import re
import shutil
import subprocess

import pytest

from dao_pipeline.report.page import write_report
from tests.report.build import build_results, make_campaign

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

WATCH = (
    '<script>window.seen = []; addEventListener("error", (event) => seen.push(String(event.message)));</script>'
)
ACT = """<script>
const shown = () => [...document.querySelectorAll("#ranked tbody tr")].filter((row) => !row.hidden);
const column = (n) => shown().map((row) => parseFloat(row.cells[n].dataset.sort ?? row.cells[n].textContent));
const type = (text) => { filter.value = text; filter.dispatchEvent(new Event("input")); };
const head = (n) => document.querySelectorAll("#ranked thead button")[n];
const result = {rows: shown().length, width: document.documentElement.scrollWidth, screen: innerWidth};
head(2).click(); result.up = column(2);
head(2).click(); result.down = column(2);
type("na4cl4"); result.filtered = shown().map((row) => row.cells[0].textContent);
result.status = document.querySelector("#shown").textContent;
type("fm-3m"); result.symmetry = shown().map((row) => row.cells[3].textContent);
type(""); first.click(); result.first = shown().length;
first.click(); hits.click(); result.hits = shown().length;
result.links = performance.getEntriesByType("resource").map((entry) => entry.name);
result.errors = seen;
const out = document.createElement("script");
out.type = "application/json"; out.id = "result"; out.textContent = JSON.stringify(result);
document.body.append(out);
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = build_results(tmp_path_factory.mktemp("results"))
    write_report(make_campaign(), folder, folder / "page.html")
    text = (folder / "page.html").read_text()
    text = text.replace("<head>", "<head>" + WATCH).replace("</body>", ACT + "</body>")
    (folder / "acting.html").write_text(text)
    return folder / "acting.html"


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_page_in_a_browser(page, width, tmp_path):
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    command = [CHROMIUM, "--headless=new", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", *sandbox]
    command += [f"--user-data-dir={tmp_path}", f"--window-size={width},900", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    result = json.loads(
        re.search(r'<script type="application/json" id="result">(.*?)</script>', dom, re.S).group(1)
    )
    assert result["errors"] == []
    assert result["links"] == []
    assert result["rows"] == 25
    assert result["up"] == sorted(result["up"])
    assert result["down"] == result["up"][::-1]
    assert result["filtered"] == ["Na4Cl4"] * 5
    assert result["status"] == "5 of 25 rows"
    assert set(result["symmetry"]) == {"Fm-3m (225)"}
    assert result["first"] == 5
    assert result["hits"] == 2
    assert result["width"] <= result["screen"], "the page must not scroll sideways"

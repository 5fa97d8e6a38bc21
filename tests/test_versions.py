"""Versions are written down in several places; all agree with constraints.txt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
PLACES = [*sorted((ROOT / "envs").iterdir()), ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAME = r"([A-Za-z0-9][A-Za-z0-9_.-]*)"


def pinned() -> dict[str, str]:
    lines = re.findall(rf"^{NAME}==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    return {normal(name): version for name, version in lines}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.name)
def test_versions_agree_with_the_constraints(path: Path) -> None:
    wanted = pinned()
    for name, version in re.findall(rf"\b{NAME}==(\d[\w.]*\w)", path.read_text()):
        assert version == wanted[normal(name)], f"{path.name}: {name}=={version}"


def test_every_environment_has_the_python_of_the_constraints() -> None:
    [python] = re.findall(r"\(Python (\d+\.\d+), Linux\)", CONSTRAINTS.read_text())
    found = {
        path.name: re.findall(r"\bpython[=:](\d+\.\d+)", path.read_text()) for path in (ROOT / "envs").iterdir()
    }
    assert found.pop("qe.yaml") == []  # pw.x alone
    assert found == {name: [python] for name in found}
    assert set(found) == {"gpu.yaml", "pipeline.yaml", "container.def"}


def test_the_container_installs_torch_first_and_the_rest_under_the_constraints() -> None:
    """As the Makefile does; resolved together, pip would fetch builds for every version of CUDA."""
    torch, rest = re.findall(r"pip install (.*)", (ROOT / "envs/container.def").read_text())
    assert torch.endswith(f"torch=={pinned()['torch']}")
    assert "--constraint constraints.txt" in rest


def test_the_container_holds_what_the_package_is_built_from() -> None:
    text = (ROOT / "envs/container.def").read_text()
    sources = re.findall(r"^    (\S+) /opt/dao-pipeline/", text, re.MULTILINE)
    assert all((ROOT / source).exists() for source in sources)
    assert {"src", "pyproject.toml", "constraints.txt"} <= set(sources)
    build = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', build, re.MULTILINE)
    assert set(named) <= set(sources)

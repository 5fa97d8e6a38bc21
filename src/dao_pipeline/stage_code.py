"""What code a stage runs: a hash of its modules, so that Snakemake reruns a stage whose code changed.

Snakemake cannot see a change in an installed package by itself. It parses the Snakefile in every job, so this
reads sources and imports none of them.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

PACKAGE = "dao_pipeline"
ROOT = Path(__file__).parent
COMMANDS = {
    "pretrain_generator_stage1": "pretrain_generator",
    "pretrain_generator_stage2": "pretrain_generator",
}
"""Commands of cli.py that have another name than the rule that calls them."""

_NOT_HASHED = {
    f"{PACKAGE}.{name}"
    for name in (
        "cli",
        "cli_tools",
        "config",
        "errors",
        "preflight",
        "workflow_support",
        "stage_code",
    )
}
"""Modules and packages whose edits must not rerun stages: their effect on a stage is in its settings."""

_DATA_FOLDERS = ("data", "templates")
"""Folders beside a module whose files are part of its code."""


@cache
def stage_code_hash(stage: str) -> str:
    """Hash of the module that implements ``stage`` and of all that it imports inside this package.

    Comments, docstrings and formatting do not count. As a rule's ``params`` it reruns the rule when the code
    changes, and what follows.
    """
    modules = sorted(stage_modules(stage))
    digest = hashlib.sha256()
    for module in modules:
        digest.update(f"{module}:{_module_hash(module)}\n".encode())
    for path in _data_files(modules):
        digest.update(f"{path.relative_to(ROOT)}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def modules_hash(modules: Iterable[str]) -> str:
    """Hash of some modules alone: what finished pieces of their work depend on besides settings."""
    return hashlib.sha256("".join(_module_hash(module) for module in modules).encode()).hexdigest()[:16]


@cache
def stage_modules(stage: str) -> frozenset[str]:
    """Modules of this package that a stage runs, however late they are imported."""
    found: set[str] = set()
    waiting = [_implementing_module(stage)]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting.extend(_imports(module) - found)
    return frozenset(found)


def _implementing_module(stage: str) -> str:
    """The module that the stage's command imports (see cli.py)."""
    command = COMMANDS.get(stage, stage)
    for node in _tree(f"{PACKAGE}.cli").body:
        if isinstance(node, ast.FunctionDef) and node.name == command:
            for inner in ast.walk(node):
                if isinstance(inner, ast.ImportFrom) and (inner.module or "").startswith(f"{PACKAGE}."):
                    return str(inner.module)
    raise ValueError(f"cli.py has no command {command!r} that imports its implementation")


def _module_file(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path if path.is_file() else None


@cache
def _tree(module: str) -> ast.Module:
    path = _module_file(module)
    if path is None:
        raise ValueError(f"{module}: no such module")
    return ast.parse(path.read_bytes())


@cache
def _imports(module: str) -> frozenset[str]:
    """Modules of this package that ``module`` imports, inside functions too; not those for type checkers."""
    found: set[str] = set()
    for node in _runtime_nodes(_tree(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            if node.level:
                above = module.split(".")[: -node.level]
                parent = ".".join([*above, parent] if parent else above)
            # `from package import name`: name may be a module or something that the package defines.
            found.update([parent, *(f"{parent}.{alias.name}" for alias in node.names)])
    return frozenset(
        name
        for name in found
        if name.startswith(f"{PACKAGE}.") and not _unhashed(name) and _module_file(name) is not None
    )


def _unhashed(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in _NOT_HASHED)


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from _runtime_nodes(node)


@cache
def _module_hash(module: str) -> str:
    tree = _tree(module)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Bare strings are docstrings, of modules, classes, functions and constants.
            node.body = [s for s in body if not _is_text(s)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _data_files(modules: Iterable[str]) -> list[Path]:
    """Files that ship beside these modules."""
    packages = {ROOT.joinpath(*module.split(".")[1:-1]) for module in modules} - {ROOT}
    folders = [package / name for package in packages for name in _DATA_FOLDERS]
    return sorted(path for folder in folders if folder.is_dir() for path in folder.rglob("*") if path.is_file())

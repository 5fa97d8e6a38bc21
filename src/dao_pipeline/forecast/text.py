"""A forecast on the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dao_pipeline.forecast.forecast import Forecast, StagePlan
from dao_pipeline.forecast.rates import SHIPPED_WITH, shipped

_REASONS = {
    "too_many_atoms": "have more atoms than generate.max_atoms",
    "unseen_element": "have an element that no crystal to learn from contains",
    "not_neutral": "are not neutral in any choice of oxidation states",
    "elements_become_one": "lose an element by substitution",
}


def print_forecast(found: Forecast, console: Console | None = None) -> None:
    """Print stages, jobs, candidates, hours, disk, and what will not be predicted."""
    console = console or Console(highlight=False)
    if found.stages:
        console.print(_stages(found))
    atoms = f", {_atoms(found.atoms)} atoms each" if found.atoms else ""
    console.print(f"{found.compositions:,} compositions{atoms}; {found.candidates:,} candidates")
    hours = [f"{_hours(found.cpu_hours)} of one CPU core"]
    if found.gpu_hours or any(stage.device == "gpu" for stage in found.stages):
        hours.append(f"{_hours(found.gpu_hours)} of one GPU")
    console.print(f"Left to do: {' and '.join(hours)} (estimated), up to {_size(found.disk_bytes)} for candidates")
    if any(stage.measured == SHIPPED_WITH for stage in found.stages):
        console.print(Text(f"The throughput that comes with the package was measured on: {shipped()['hardware']}"))
    if found.not_measured:
        missing = ", ".join(found.not_measured)
        console.print(Text(f"Without {missing}: not measured; run a small campaign like this one first"))
    for bound in found.bounds:
        console.print(Text(f"Not known yet, so an upper bound: {bound}"))
    _print_infeasible(found, console)
    for problem in found.problems:
        console.print(Text(f"error: {problem}", style="red"))
    if not found.compositions and not found.problems:
        console.print(Text("error: nothing can be predicted", style="red"))


def _stages(found: Forecast) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"Campaign {found.campaign}", title_justify="left")
    table.add_column("stage", no_wrap=True)
    for name in ("jobs", "done", "work", "left to do"):
        table.add_column(name, justify="right")
    table.add_column("by the throughput of")
    for stage in found.stages:
        table.add_row(
            stage.stage,
            f"{stage.jobs:,}",
            f"{stage.done:,}" if stage.done else "",
            "" if stage.work is None else f"{stage.work:,.0f} {stage.unit}",
            _estimate(stage),
            Text(stage.measured),
        )
    table.add_section()
    table.add_row("all", f"{found.jobs:,}")
    return table


def _estimate(stage: StagePlan) -> str:
    if stage.hours is None:
        return "?"
    return f"{_hours(stage.hours)} {'GPU' if stage.device == 'gpu' else 'CPU'}"


def _print_infeasible(found: Forecast, console: Console) -> None:
    for reason, number in found.reasons.items():
        console.print(f"Not predicted: {number:,} that {_REASONS.get(reason, reason)}")
    for one in found.infeasible:
        console.print(Text(f"  {one.composition[:60]} ({one.asked_by[:80]}): {one.reason}"))
    more = sum(found.reasons.values()) - len(found.infeasible)
    if found.infeasible and more > 0:
        console.print(f"  and {more:,} more")


def _atoms(atoms: dict[str, float]) -> str:
    if "min" not in atoms:
        return f"{atoms['mean']:.1f}"
    return f"{atoms['min']} to {atoms['max']} (mean {atoms['mean']:.1f})"


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.1f} min" if hours < 1 else f"{hours:,.1f} h"


def _size(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"

"""Figures as HTML with inline SVG: tables in, markup out; no network, no script, readable in print.

Lines are drawn in a stretched SVG of 100 x 100 units and labels are HTML beside it, so a figure fills any
width while its text keeps its size. Colours are the style sheet's, hence light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

from dao_pipeline.report.text import count, number, short

MAX_POINTS = 400
"""Points of a line or strip beyond which neighbours are merged: a page stays small, the eye sees no more."""


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic axis; ``place`` maps values to 0 to 100 (percent of the axis)."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], log: bool = False, pad: float = 0.04) -> Axis:
        """An axis that holds all finite values with a little room; logarithmic only if all are positive."""
        finite = [float(v) for v in values if math.isfinite(v)] or [0.0, 1.0]
        log = log and min(finite) > 0
        low, high = (math.log10(min(finite)), math.log10(max(finite))) if log else (min(finite), max(finite))
        room = (high - low) * pad if high > low else abs(high) * 0.1 or 0.5
        return cls(low - room, high + room, log)

    def place(self, value: float) -> float:
        """Percent along the axis."""
        inner = math.log10(value) if self.log else value
        return 100 * (inner - self.low) / (self.high - self.low)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values inside the axis, at most ``most`` of them."""
        if self.log:
            powers = range(math.floor(self.low), math.floor(self.high) + 1)
            for digits in ((1,), (1, 3), (1, 2, 5)):
                inside = [
                    d * 10.0**k for k in powers for d in digits if self.low <= math.log10(d * 10.0**k) <= self.high
                ]
                if len(inside) >= 3:
                    return inside[:: math.ceil(len(inside) / most)]
            return Axis(10**self.low, 10**self.high).ticks(most + 2)
        raw = (self.high - self.low) / most
        base = 10.0 ** math.floor(math.log10(raw))
        step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw)
        first = math.ceil(self.low / step)
        return [round(k * step, 12) for k in range(first, math.floor(self.high / step) + 1)]


def _frame(ink: Markup, x: Axis | None, y: Axis | None, x_label: str, y_label: str, about: str) -> Markup:
    """The plot area with grid, tick labels and axis labels; ``about`` is read to those who cannot see it."""
    x_ticks = [(x.place(t), short(t)) for t in x.ticks()] if x else []
    y_ticks = [(y.place(t), short(t)) for t in y.ticks(4)] if y else []
    grid = Markup("").join(
        Markup('<line x1="0" x2="100%" y1="{0:.2f}%" y2="{0:.2f}%"/>').format(100 - p) for p, _ in y_ticks
    )
    labels = Markup("").join(
        [
            *(Markup('<span class="tx" style="left:{:.2f}%">{}</span>').format(p, t) for p, t in x_ticks),
            *(Markup('<span class="ty" style="top:{:.2f}%">{}</span>').format(100 - p, t) for p, t in y_ticks),
        ]
    )
    return Markup(
        '<div class="chart" role="img" aria-label="{about}"><div class="yl">{y_label}</div><div class="plot">'
        '<svg class="rules" aria-hidden="true">{grid}</svg>{ink}{labels}</div>'
        '<div class="xl">{x_label}</div></div>'
    ).format(about=about, y_label=y_label, grid=grid, ink=ink, labels=labels, x_label=x_label)


def _thin(frame: pd.DataFrame) -> pd.DataFrame:
    """At most MAX_POINTS rows, each the mean of its neighbours."""
    if len(frame) <= MAX_POINTS:
        return frame
    bins = np.arange(len(frame)) * MAX_POINTS // len(frame)
    return frame.groupby(bins).mean()


def curves(metrics: pd.DataFrame, title: str) -> Markup:
    """Learning curve: training and validation loss against optimiser steps, logarithmic where positive."""
    lines: list[tuple[str, pd.DataFrame]] = []
    for split in ("train", "val"):
        rows = metrics.loc[metrics["split"] == split, ["step", "loss"]].dropna().sort_values("step")
        if len(rows):
            lines.append((split, _thin(rows)))
    values = [v for _, rows in lines for v in rows["loss"]]
    x = Axis.over([0.0, *(float(s) for _, rows in lines for s in rows["step"])], pad=0.0)
    y = Axis.over(values, log=True)
    ink = Markup('<svg class="ink" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">')
    for split, rows in lines:
        pairs = zip(rows["step"], rows["loss"], strict=True)
        points = " ".join(
            f"{x.place(s):.2f},{100 - y.place(v):.2f}"
            for s, v in pairs
            if math.isfinite(v) and (v > 0 or not y.log)
        )
        ink += Markup('<polyline class="line-{}" points="{}"/>').format(split, points)
    return _frame(ink + Markup("</svg>"), x, y, "optimiser steps", "loss", f"Learning curve of {title}")


def histogram(values: Sequence[float], label: str, about: str, bins: int = 30) -> Markup:
    """Distribution of values; what lies outside the central 99 % is gathered in the outer bars."""
    finite = np.asarray([v for v in values if v is not None and math.isfinite(v)], dtype=float)
    if not len(finite):
        return Markup("")
    low, high = np.quantile(finite, [0.005, 0.995])
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(finite, low, high), bins=bins, range=(low, high))
    x, y = Axis(float(low), float(high)), Axis(0.0, float(counts.max()) * 1.06)
    width = 100 / bins
    bars = Markup("").join(
        Markup('<rect x="{:.2f}%" y="{:.2f}%" width="{:.2f}%" height="{:.2f}%"><title>{}</title></rect>').format(
            i * width + 0.1 * width,
            100 - y.place(n),
            0.8 * width,
            y.place(n),
            f"{short(edges[i])} to {short(edges[i + 1])}: {count(n)}",
        )
        for i, n in enumerate(counts)
        if n
    )
    return _frame(Markup('<svg class="bars">{}</svg>').format(bars), x, y, label, "crystals", about)


def parity(
    truth: Sequence[float], predicted: Sequence[float], notes: Sequence[str], x_label: str, y_label: str
) -> Markup:
    """Predicted against true values on equal axes, with the diagonal on which they agree."""
    axis = Axis.over([*truth, *predicted])
    ends = (axis.low, axis.high)
    line = Markup('<line class="agree" x1="{:.2f}%" y1="{:.2f}%" x2="{:.2f}%" y2="{:.2f}%"/>').format(
        axis.place(ends[0]), 100 - axis.place(ends[0]), axis.place(ends[1]), 100 - axis.place(ends[1])
    )
    dots = Markup("").join(
        Markup('<circle cx="{:.2f}%" cy="{:.2f}%" r="4"><title>{}</title></circle>').format(
            axis.place(x), 100 - axis.place(y), f"{note}: {short(x)} by DFT, {short(y)} predicted"
        )
        for x, y, note in zip(truth, predicted, notes, strict=True)
    )
    ink = Markup('<svg class="dots" aria-hidden="true">{}{}</svg>').format(line, dots)
    return _frame(ink, axis, axis, x_label, y_label, f"Parity of {len(truth)} energies")


@dataclass(frozen=True)
class Mark:
    """One candidate in a strip: its energy, whether it is the known crystal, and what to say about it."""

    energy: float
    matched: bool
    note: str


def strip(marks: Sequence[Mark], axis: Axis, about: str) -> Markup:
    """Energies of one composition's candidates on a shared axis; the known crystal stands out."""
    plain = sorted((m for m in marks if not m.matched), key=lambda m: m.energy)
    if len(plain) > MAX_POINTS:
        plain = [plain[i] for i in np.linspace(0, len(plain) - 1, MAX_POINTS).astype(int)]
    dots = Markup("").join(
        # Height only separates neighbours; the golden ratio spreads them evenly and is the same every time.
        Markup('<circle cx="{:.2f}%" cy="{:.0f}%" r="3.5"><title>{}</title></circle>').format(
            axis.place(m.energy), 22 + 56 * ((i * 0.618034) % 1), m.note
        )
        for i, m in enumerate(plain)
    )
    hits = Markup("").join(
        Markup(
            '<svg x="{:.2f}%" y="50%" overflow="visible"><path class="hit" d="M0-8L7 0L0 8L-7 0Z">'
            "<title>{}</title></path></svg>"
        ).format(axis.place(m.energy), m.note)
        for m in marks
        if m.matched
    )
    return Markup('<svg class="strip" role="img" aria-label="{}">{}{}</svg>').format(about, dots, hits)


def strip_axis(axis: Axis) -> Markup:
    """The tick labels under strips that share ``axis``."""
    return Markup("").join(
        Markup('<span class="tx" style="left:{:.2f}%">{}</span>').format(axis.place(t), short(t))
        for t in axis.ticks()
    )


def rate_bar(rate: float, low: float | None, high: float | None) -> Markup:
    """A share between 0 and 1 as a bar; its 95 % interval as a line where it has a width."""
    about, line = f"{number(100 * rate, 0)} %", Markup("")
    if low is not None and high is not None and high > low:
        about += f", 95 % interval {number(100 * low, 0)} to {number(100 * high, 0)} %"
        line = Markup('<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>').format(
            100 * low, 100 * high
        )
    return Markup(
        '<svg class="rate" role="img" aria-label="{}"><rect class="track" width="100%" height="100%" rx="3"/>'
        '<rect class="bar" width="{:.2f}%" height="100%" rx="3"/>{}</svg>'
    ).format(about, 100 * rate, line)

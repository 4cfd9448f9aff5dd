"""How charts look: colours, the figure, legends, titles, numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.ids import producer_name

Format = Literal["png", "svg"]

ACCENT, INK, SOFT, GRID, PAPER = "#0f766e", "#1f2933", "#66727f", "#e4e7eb", "#ffffff"
ALARM = "#c2410c"
# First the accent; the others are told apart by people who confuse red and green.
SERIES = (ACCENT, "#b45309", "#4f46e5", "#be185d", "#64748b", "#0284c7", "#65a30d", "#7c2d12")

_WIDTH = 4.6  # inches
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib, so a chart is the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 9,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.9,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "svg.hashsalt": "cvp",  # ids inside the SVG do not change from run to run
}


@contextmanager
def figure(height: float, subject: str, form: Format) -> Iterator[tuple[Any, io.BytesIO]]:
    """A figure that is saved on leaving, drawn without any global state of matplotlib's."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sink = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, sink
        # No date and no version inside: equal tables give equal bytes.
        metadata = {"Date": None, "Title": subject, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(sink, format=form, dpi=192, metadata=metadata)


def series(rows: pa.Table, order: Sequence[str]) -> list[tuple[str, str, pa.Table]]:
    """Name, colour and rows (sorted by x) of each model and class; the class is named if there are several.

    The order of models decides colours where there is one class.
    """
    keys = sorted({(r["model"], r["class_name"]) for r in rows.select(["model", "class_name"]).to_pylist()})
    several = len({c for _, c in keys}) > 1
    colours = palette([producer_name(m) for m, _ in keys], order)
    parts = []
    for i, (model, class_name) in enumerate(keys[: len(SERIES)]):
        part = only(rows, model=model, class_name=class_name)
        part = part.sort_by([("x", "ascending"), ("y", "descending")])
        name = producer_name(model)
        colour = nth_colour(i) if several else colours[name]
        parts.append((f"{name} {class_name}" if several else name, colour, part))
    return parts


def models_of(rows: pa.Table) -> list[str]:
    return sorted(set(rows.column("model").to_pylist()))


def palette(names: Sequence[str], order: Sequence[str]) -> dict[str, str]:
    """A colour a name: first those of `order`, then the others as they come."""
    return {name: nth_colour(i) for i, name in enumerate(dict.fromkeys([*order, *names]))}


def only(rows: pa.Table, **wanted: str) -> pa.Table:
    for column, value in wanted.items():
        rows = rows.filter(pc.equal(rows.column(column), value))
    return rows


def floats(rows: pa.Table, column: str) -> NDArray[np.float64]:
    return np.asarray(rows.column(column).to_numpy(zero_copy_only=False), np.float64)


def xy(rows: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return floats(rows, "x"), floats(rows, "y")


def legend(axes: Any, rows: pa.Table) -> None:
    if rows.num_rows:
        unique_legend(axes)


def unique_legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axes.legend(
            unique.values(), unique.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False,
            borderaxespad=0, handlelength=1.2, columnspacing=1.2, fontsize=8.5,
        )  # fmt: skip


def title(axes: Any, text: str, rows: Any) -> None:
    """The title, above a legend if there is one; and a word where nothing could be drawn."""
    legend = axes.get_legend()
    lines = -(-len(legend.get_texts()) // 2) if legend else 0
    axes.set_title(text, pad=10 + 14 * lines)
    if len(rows) == 0:
        axes.text(0.5, 0.5, "nothing to show yet", transform=axes.transAxes, ha="center", va="center", color=SOFT)


def ramp() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("accent", ["#f7f9fa", ACCENT])


def nth_colour(index: int) -> str:
    return SERIES[index] if index < len(SERIES) else SOFT


def short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def duration(seconds: float) -> str:
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"

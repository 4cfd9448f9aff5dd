"""Pictures of tables: PNG or SVG bytes, legible at the width of a phone.

Charts take Arrow tables in the schema's form. They are drawn at about 440 px so that a page can show
them at their own size, beside each other where there is room.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline import schema
from pipeline.ids import producer_name
from pipeline.images import Pixels

Format = Literal["png", "svg"]
PictureFormat = Literal["PNG", "JPEG"]

ACCENT, INK, SOFT, GRID, PAPER = "#0f766e", "#1f2933", "#66727f", "#e4e7eb", "#ffffff"
ALARM = "#c2410c"
# First the accent; the others are told apart by people who confuse red and green.
SERIES = (ACCENT, "#b45309", "#4f46e5", "#be185d", "#64748b", "#0284c7", "#65a30d", "#7c2d12")

STATUS_COLOURS = {
    "human": "#f8fafc",
    "accepted": "#22c55e",
    "verified": "#38bdf8",
    "needs_review": "#facc15",
    "rejected": "#f87171",
}
ERROR_COLOURS = {
    "missed": "#facc15",
    "background": "#f87171",
    "localisation": "#fb923c",
    "classification": "#e879f9",
    "both": "#a78bfa",
    "duplicate": "#38bdf8",
    "outline": "#4ade80",
}

_WIDTH = 4.6  # inches
_MAP_POINTS = 20_000
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


# -- photos ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlay:
    """Boxes on one photo.

    Attributes:
        boxes: (n, 4) xyxy pixels of the photo.
        colours: n CSS hex colours.
        labels: n short words drawn at the boxes, or none at all.
    """

    boxes: NDArray[np.floating]
    colours: Sequence[str]
    labels: Sequence[str] = ()


def contact_sheet(
    images: Sequence[Pixels],
    overlays: Sequence[Overlay | None] = (),
    captions: Sequence[str] = (),
    *,
    columns: int = 4,
    cell: int = 240,
    form: PictureFormat = "PNG",
) -> bytes:
    """Photos in a grid, each fitted whole into a square of `cell` pixels.

    Args:
        images: (height, width, 3) uint8 each; none gives a sheet that says so.
        overlays, captions: one per image, or none at all.

    Returns:
        PNG or JPEG bytes.
    """
    if not images:
        return _saved(_notice("no pictures", cell), form)
    columns = max(1, min(columns, len(images)))
    gap, line = max(4, cell // 40), max(11, cell // 16)
    foot = line + gap if any(captions) else 0
    rows = -(-len(images) // columns)
    size = columns * (cell + gap) - gap, rows * (cell + foot + gap) - gap
    sheet = Image.new("RGB", size, PAPER)
    for i, pixels in enumerate(images):
        x, y = i % columns * (cell + gap), i // columns * (cell + foot + gap)
        overlay = overlays[i] if overlays else None
        sheet.paste(_thumbnail(pixels, overlay, cell), (x, y))
        if captions and captions[i]:
            _write(sheet, captions[i], (x, y + cell + 2), cell, line)
    return _saved(sheet, form)


def _thumbnail(pixels: Pixels, overlay: Overlay | None, cell: int) -> Image.Image:
    """One photo in a square, enlarged at most fourfold, with its boxes."""
    height, width = pixels.shape[:2]
    scale = min(cell / max(width, height, 1), 4.0)
    shown = max(1, round(width * scale)), max(1, round(height * scale))
    ground = Image.new("RGB", (cell, cell), "#eef1f4")
    left, top = (cell - shown[0]) // 2, (cell - shown[1]) // 2
    ground.paste(Image.fromarray(pixels).resize(shown, Image.Resampling.LANCZOS), (left, top))
    if overlay is not None and len(overlay.boxes):
        drawn = np.asarray(overlay.boxes, np.float64) * scale + np.array([left, top, left, top])
        _draw_boxes(ground, drawn, overlay, max(1, round(cell / 100)))
    return ground


def _draw_boxes(image: Image.Image, boxes: NDArray[np.float64], overlay: Overlay, width: int) -> None:
    pen = ImageDraw.Draw(image)
    font = _font(max(9, image.width // 24))
    for i, (box, colour) in enumerate(zip(boxes, overlay.colours, strict=True)):
        if not np.isfinite(box).all():
            continue
        x1, y1 = np.minimum(box[:2], box[2:])
        x2, y2 = np.maximum(box[:2], box[2:])
        # A dark line around keeps any colour visible on any photo.
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=INK)
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=width)
        if overlay.labels and overlay.labels[i]:
            _tag(pen, overlay.labels[i], (x1, y1), colour, font)


def _tag(pen: ImageDraw.ImageDraw, text: str, at: tuple[float, float], colour: str, font: Any) -> None:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    x, y = at[0], max(0.0, at[1] - (bottom - top) - 4)
    pen.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
    pen.text((x + 2 - left, y + 2 - top), text, fill="#111827", font=font)


def _write(sheet: Image.Image, text: str, at: tuple[int, int], width: int, size: int) -> None:
    pen, font = ImageDraw.Draw(sheet), _font(size)
    while len(text) > 1 and pen.textlength(text, font=font) > width:
        text = text[:-2] + "…"
    pen.text(at, text, fill=SOFT, font=font)


def _notice(text: str, cell: int) -> Image.Image:
    sheet = Image.new("RGB", (cell * 2, cell // 2), "#eef1f4")
    _write(sheet, text, (cell // 12, cell // 5), cell * 2, max(12, cell // 14))
    return sheet


def _font(size: int) -> Any:
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _saved(image: Image.Image, form: PictureFormat) -> bytes:
    sink = io.BytesIO()
    if form == "JPEG":
        image.save(sink, "JPEG", quality=82, optimize=True, progressive=True)
    else:
        image.save(sink, "PNG", optimize=True)
    return sink.getvalue()


# -- charts ---------------------------------------------------------------------------------------


def precision_recall(curves: pa.Table, *, models: Sequence[str] = (), form: Format = "png") -> bytes:
    """Precision over recall: one line a model and class of the table `curves`.

    Args:
        models: bare model names in the order that decides their colours, to agree between charts.
    """
    rows = _only(curves, curve="precision_recall")
    with _figure(2.9, "Precision and recall", form) as (figure, sink):
        axes = figure.add_subplot()
        for name, colour, part in _series(rows, models):
            axes.plot(*_xy(part), color=colour, label=name, drawstyle="steps-post")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        _legend(axes, rows)
        _title(axes, "Precision over recall", rows)
    return sink.getvalue()


def reliability(curves: pa.Table, *, models: Sequence[str] = (), form: Format = "png") -> bytes:
    """Share that is right over the score: one line a model and class of `curves` or `reliability`.

    Where there are limits, they are shaded; scores after calibration are a dashed line of the same colour.

    Args:
        models: as in `precision_recall`.
    """
    rows, after = _only(curves, curve="reliability"), _only(curves, curve="calibrated")
    with _figure(2.9, "Reliability", form) as (figure, sink):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        for name, colour, part in _series(rows, models):
            axes.plot(*_xy(part), color=colour, label=name, marker="o", markersize=4)
            low, high = _floats(part, "low"), _floats(part, "high")
            axes.fill_between(_floats(part, "x"), low, high, color=colour, alpha=0.15, linewidth=0)
        order = models or [producer_name(m) for m in _models_of(rows)]
        for name, colour, part in _series(after, order):
            style = {"linestyle": (0, (4, 2)), "marker": "s", "markersize": 3, "linewidth": 1.3}
            axes.plot(
                *_xy(part), color=colour, label=f"{name}, calibrated" if len(order) > 1 else "calibrated", **style
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="share that is right")
        _legend(axes, rows)
        _title(axes, "Do scores mean what they say?", rows)
    return sink.getvalue()


def learning_curve(
    curves: pa.Table, zero_shot: float | None = None, *, metric: str = "accuracy", form: Format = "png"
) -> bytes:
    """Quality over labels a class, with intervals.

    Args:
        zero_shot: quality without any label, drawn as a level; None where there is none.
    """
    rows = _only(curves, curve="learning")
    with _figure(2.9, "Learning curve", form) as (figure, sink):
        axes = figure.add_subplot()
        for name, colour, part in _series(rows, ()):
            x, y = _xy(part)
            low, high = _floats(part, "low"), _floats(part, "high")
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=colour, marker="o", markersize=4.5, label=name)
            for at, value in zip(x, y, strict=True):
                axes.annotate(f"{value:.2f}", (at, value), (0, 7), textcoords="offset points", ha="center")
        if rows.num_rows:
            ticks = sorted({float(v) for v in _floats(rows, "x")})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{t:.3g}" if t < 100 else f"{t:.0f}" for t in ticks])
            axes.minorticks_off()
            axes.margins(x=0.1, y=0.2)
        if zero_shot is not None:
            axes.axhline(zero_shot, color=SOFT, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.annotate(
                f"no labels at all: {zero_shot:.2f}", (0.01, zero_shot), (0, 4), color=SOFT,
                xycoords=("axes fraction", "data"), textcoords="offset points",
            )  # fmt: skip
        axes.set(xlabel="labels a class", ylabel=metric)
        _legend(axes, rows)
        _title(axes, "What more labels buy", rows)
    return sink.getvalue()


def intervals(
    names: Sequence[str],
    groups: Sequence[str],
    values: Sequence[float | None],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    *,
    title: str,
    label: str = "",
    order: Sequence[str] = (),
    form: Format = "png",
) -> bytes:
    """Values with their intervals: one row a name, one colour a group. Undefined values are left out.

    Rows come in the order of their first appearance, groups beside each other.

    Args:
        order: groups in the order that decides their colours.
    """
    rows, kinds = list(dict.fromkeys(names)), list(dict.fromkeys(groups))
    step = 0.62 / max(1, len(kinds))
    colours = _palette(kinds, order)
    height = 0.95 + len(rows) * max(0.3, 0.2 * len(kinds)) + (0.25 * -(-len(kinds) // 2) if len(kinds) > 1 else 0)
    with _figure(height, title, form) as (figure, sink):
        axes = figure.add_subplot()
        edge = max([v for v in (*values, *highs) if v is not None and np.isfinite(v)], default=1.0)
        for name, group, value, low, high in zip(names, groups, values, lows, highs, strict=True):
            if value is None or not np.isfinite(value):
                continue
            k = kinds.index(group)
            y = rows.index(name) + (k - (len(kinds) - 1) / 2) * step
            if low is not None and high is not None:
                axes.plot([low, high], [y, y], color=colours[group], linewidth=2.6, alpha=0.4)
            axes.plot([value], [y], "o", color=colours[group], markersize=5.5, label=group)
            right = value if high is None else max(high, value)
            axes.annotate(
                _number(value),
                (right, y),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=SOFT,
            )
        axes.set_yticks(range(len(rows)), [_short(r, 20) for r in rows], color=INK)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, max(edge * 1.16, 1e-9)), xlabel=label)
        axes.grid(visible=False, axis="y")
        if len(kinds) > 1:
            _unique_legend(axes)
        _title(axes, title, rows)
    return sink.getvalue()


def slice_bars(
    evaluation: pa.Table,
    metric: str,
    *,
    split: str = "test",
    models: Sequence[str] = (),
    form: Format = "png",
) -> bytes:
    """One metric by slice and model, with intervals, from the table `evaluation`.

    Args:
        models: as in `precision_recall`.
    """
    rows = _only(evaluation, metric=metric, split=split, class_name="all")
    chosen = sorted(rows.to_pylist(), key=lambda r: (r["slice"] != "all", r["slice"], r["model"]))
    return intervals(
        [r["slice"] for r in chosen],
        [producer_name(r["model"]) for r in chosen],
        [r["value"] for r in chosen],
        [r["low"] for r in chosen],
        [r["high"] for r in chosen],
        title=f"{metric} by slice",
        label=f"{metric}, {split} split",
        order=models,
        form=form,
    )


def slice_history(history: pa.Table, names: Mapping[str, str], *, form: Format = "png") -> bytes:
    """What a model got wrong on slices from run to run, from its rows of the table `slice_history`.

    Args:
        names: the slices to draw, all of which the last run still found, and what to call each.
    """
    rows = schema.where_in(history, "slice", list(names)).sort_by("at").to_pylist()
    runs = sorted(set(history.column("at").to_pylist()))
    with _figure(2.7, "Slices from run to run", form) as (figure, sink):
        axes = figure.add_subplot()
        for k, (name, words) in enumerate(names.items() if rows else ()):
            x, y = zip(*((runs.index(r["at"]), r["value"]) for r in rows if r["slice"] == name), strict=True)
            axes.plot(x, y, "o", color=_colour(k), markersize=4)
            line: dict[str, Any] = {"color": _colour(k), "drawstyle": "steps-post", "label": _short(words, 26)}
            # A run that changed nothing has no row.
            axes.plot([*x, len(runs) - 1], [*y, y[-1]], **line)
        if rows:
            shown = np.unique(np.linspace(0, len(runs) - 1, 5).round().astype(int)).tolist()
            axes.set_xticks(shown, [f"{runs[k]:%d %b %Y\n%H:%M}" for k in shown])
            axes.set_ylim(bottom=0)
            axes.set_ylabel(rows[0]["metric"].replace("_", " "))
            _unique_legend(axes)
        _title(axes, "Slices from run to run", rows)
    return sink.getvalue()


def drift(rows: pa.Table, *, form: Format = "png") -> bytes:
    """p-values of every batch, one panel a test and subject, from the table `drift`."""
    rows = rows.filter(pc.is_valid(rows.column("p_value")))
    panels = sorted({(r["test"], r["subject"]) for r in rows.select(["test", "subject"]).to_pylist()})
    batches = sorted(set(rows.column("batch").to_pylist()))
    count = max(1, len(panels))
    floor = max(1e-6, float(min([p for p in _floats(rows, "p_value") if p > 0], default=1e-3)))
    with _figure(0.9 + count * (0.45 + 0.26 * max(1, len(batches))), "Drift", form) as (figure, sink):
        grid = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        for axes, (test, subject) in zip(grid, panels, strict=False):
            _drift_panel(axes, _only(rows, test=test, subject=subject), batches, floor)
            alone = sum(t == test for t, _ in panels) == 1
            name = test.replace("_", " ")
            axes.set_title(name if alone else f"{name}, {producer_name(subject)}", fontsize=9)
        if panels:
            note = "p-value; dashed: the level at which a batch counts as drifted"
            grid[-1].set_xlabel(note, loc="right", fontsize=8)
        else:
            _title(grid[0], "Drift", [])
    return sink.getvalue()


def _drift_panel(axes: Any, rows: pa.Table, batches: list[str], floor: float) -> None:
    for row in rows.to_pylist():
        y, p = batches.index(row["batch"]), max(row["p_value"], floor / 2)
        colour = ALARM if row["drifted"] else ACCENT
        axes.plot([1, p], [y, y], color=colour, linewidth=1.6, alpha=0.35)
        axes.plot([p], [y], "o", color=colour, markersize=6)
        word = f"{row['p_value']:.2g}" + (" drifted" if row["drifted"] else "")
        where: Any = ("axes fraction", "data")
        axes.annotate(word, (1.03, y), xycoords=where, va="center", fontsize=8, color=colour)
        axes.axvline(row["alpha"], color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
    axes.set_xscale("log")
    axes.set_xlim(1.3, floor / 4)  # the unlikely on the right, where the eye ends
    axes.set_yticks(range(len(batches)), [_short(b, 22) for b in batches], color=INK)
    axes.set_ylim(len(batches) - 0.3, -0.6)
    axes.minorticks_off()
    axes.grid(visible=False, axis="y")


def embedding_map(
    places: pa.Table,
    images: pa.Table,
    polygons: Mapping[str, Sequence[tuple[float, float]]],
    *,
    form: Format = "png",
) -> bytes:
    """The table `map`, one colour a batch (at most 8 are coloured), with the outlines of slices and what to read them
    off by. At most 20,000 images are drawn.

    Args:
        images: the table `images`, for batches. polygons: corners by name.
    """
    places = places.slice(0, _MAP_POINTS)  # sorted by hashes, so the first ones are a fair sample
    batch_of = dict(zip(images.column("image_id").to_pylist(), images.column("batch").to_pylist(), strict=True))
    batches = np.array([batch_of.get(i, "") for i in places.column("image_id").to_pylist()], dtype=object)
    x, y = _xy(places)
    with _figure(4.2, "Where the photos lie", form) as (figure, sink):
        axes = figure.add_subplot()
        kinds = sorted(set(batches))
        for k, kind in enumerate(kinds):
            mine = batches == kind
            style = {"s": 12, "color": _colour(k), "alpha": 0.7, "linewidths": 0, "rasterized": True}
            axes.scatter(x[mine], y[mine], label=_short(kind, 24), **style)
        for name, corners in polygons.items():
            edge = np.array([*corners, corners[0]])
            axes.plot(edge[:, 0], edge[:, 1], color=INK, linewidth=1.2)
            axes.annotate(name, edge[edge[:, 1].argmax()], (0, 3), textcoords="offset points", fontsize=8, ha="center")
        axes.locator_params(nbins=9)
        axes.set(xlabel="x", ylabel="y")
        if len(kinds) > 1:
            _unique_legend(axes)
        _title(axes, "Where the photos lie", places)
    return sink.getvalue()


def cost_bars(costs: pa.Table, *, form: Format = "png") -> bytes:
    """Seconds by asset, from the table `costs`, the dearest first; at most 14 are shown."""
    totals: dict[str, float] = {}
    for row in costs.select(["asset", "seconds"]).to_pylist():
        totals[row["asset"]] = totals.get(row["asset"], 0.0) + row["seconds"]
    ranked = sorted(totals.items(), key=lambda item: (-item[1], item[0]))
    shown, others = ranked[:14], ranked[14:]
    if others:
        shown.append((f"{len(others)} others", sum(seconds for _, seconds in others)))
    with _figure(0.8 + 0.24 * max(2, len(shown)), "Costs", form) as (figure, sink):
        axes = figure.add_subplot()
        seconds = [value for _, value in shown]
        axes.barh(range(len(shown)), seconds, color=ACCENT, height=0.62)
        for i, value in enumerate(seconds):
            axes.annotate(_duration(value), (value, i), (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name, _ in shown], color=INK)
        axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, max(seconds, default=1.0) * 1.18 or 1.0))
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _title(axes, "Where the time went", shown)
    return sink.getvalue()


def confusion(rows: pa.Table, *, form: Format = "png") -> bytes:
    """The confusion matrix of one model and split, rows as shares of the actual class."""
    found = {*rows.column("actual").to_pylist(), *rows.column("predicted").to_pylist()}
    names = sorted(found, key=lambda name: (name == "background", name))
    counts = np.zeros((len(names), len(names)))
    for row in rows.to_pylist():
        counts[names.index(row["actual"]), names.index(row["predicted"])] += row["count"]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)
    with _figure(1.2 + 0.5 * max(2, min(len(names), 12)), "Confusion", form) as (figure, sink):
        axes = figure.add_subplot()
        if len(names):
            axes.imshow(shares, cmap=_ramp(), vmin=0, vmax=1, aspect="auto")
        if len(names) <= 12:
            for (i, j), count in np.ndenumerate(counts):
                colour = PAPER if shares[i, j] > 0.55 else INK
                axes.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=8, color=colour)
        labels = [_short(n, 12) for n in names]
        axes.set_xticks(range(len(names)), labels, rotation=90 if len(names) > 5 else 0)
        axes.set_yticks(range(len(names)), labels)
        axes.set(xlabel="predicted", ylabel="actual")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _title(axes, "What is taken for what", names)
    return sink.getvalue()


def training_loss(history: str, *, form: Format = "png") -> bytes:
    """Loss over steps, from the JSON list of {step, loss, lr} in `models.history`."""
    steps = json.loads(history) if history else []
    with _figure(2.3, "Training", form) as (figure, sink):
        axes = figure.add_subplot()
        axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], color=ACCENT)
        axes.set(xlabel="step", ylabel="loss")
        axes.set_ylim(bottom=0)
        _title(axes, "Training loss", steps)
    return sink.getvalue()


def class_counts(names: Sequence[str], counts: Sequence[int], *, title: str, form: Format = "png") -> bytes:
    """Bars of counts, in the given order."""
    with _figure(0.7 + 0.26 * max(2, len(names)), title, form) as (figure, sink):
        axes = figure.add_subplot()
        axes.barh(range(len(names)), counts, color=ACCENT, height=0.6)
        for i, count in enumerate(counts):
            axes.annotate(f"{count:,}", (count, i), (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(names)), [_short(n, 24) for n in names], color=INK)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, max(counts, default=1) * 1.18 or 1))
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        _title(axes, title, names)
    return sink.getvalue()


# -- how ------------------------------------------------------------------------------------------


@contextmanager
def _figure(height: float, subject: str, form: Format) -> Iterator[tuple[Any, io.BytesIO]]:
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


def _series(rows: pa.Table, order: Sequence[str]) -> list[tuple[str, str, pa.Table]]:
    """Name, colour and rows (sorted by x) of each model and class; the class is named if there are several.

    The order of models decides colours where there is one class.
    """
    keys = sorted({(r["model"], r["class_name"]) for r in rows.select(["model", "class_name"]).to_pylist()})
    several = len({c for _, c in keys}) > 1
    colours = _palette([producer_name(m) for m, _ in keys], order)
    parts = []
    for i, (model, class_name) in enumerate(keys[: len(SERIES)]):
        part = _only(rows, model=model, class_name=class_name)
        part = part.sort_by([("x", "ascending"), ("y", "descending")])
        name = producer_name(model)
        colour = _colour(i) if several else colours[name]
        parts.append((f"{name} {class_name}" if several else name, colour, part))
    return parts


def _models_of(rows: pa.Table) -> list[str]:
    return sorted(set(rows.column("model").to_pylist()))


def _palette(names: Sequence[str], order: Sequence[str]) -> dict[str, str]:
    """A colour a name: first those of `order`, then the others as they come."""
    return {name: _colour(i) for i, name in enumerate(dict.fromkeys([*order, *names]))}


def _only(rows: pa.Table, **wanted: str) -> pa.Table:
    for column, value in wanted.items():
        rows = rows.filter(pc.equal(rows.column(column), value))
    return rows


def _floats(rows: pa.Table, column: str) -> NDArray[np.float64]:
    return np.asarray(rows.column(column).to_numpy(zero_copy_only=False), np.float64)


def _xy(rows: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return _floats(rows, "x"), _floats(rows, "y")


def _legend(axes: Any, rows: pa.Table) -> None:
    if rows.num_rows:
        _unique_legend(axes)


def _unique_legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        axes.legend(
            unique.values(), unique.keys(), loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False,
            borderaxespad=0, handlelength=1.2, columnspacing=1.2, fontsize=8.5,
        )  # fmt: skip


def _title(axes: Any, text: str, rows: Any) -> None:
    """The title, above a legend if there is one; and a word where nothing could be drawn."""
    legend = axes.get_legend()
    lines = -(-len(legend.get_texts()) // 2) if legend else 0
    axes.set_title(text, pad=10 + 14 * lines)
    if len(rows) == 0:
        axes.text(0.5, 0.5, "nothing to show yet", transform=axes.transAxes, ha="center", va="center", color=SOFT)


def _ramp() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("accent", ["#f7f9fa", ACCENT])


def _colour(index: int) -> str:
    return SERIES[index] if index < len(SERIES) else SOFT


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    if seconds >= 90:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"

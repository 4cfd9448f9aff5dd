"""Charts of tables, drawn at about 440 px so that a page can show them at their own size, beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.ids import producer_name
from pipeline.plots import style
from pipeline.plots.style import ACCENT, ALARM, INK, PAPER, SOFT, Format

_MAP_POINTS = 20_000


def precision_recall(curves: pa.Table, *, models: Sequence[str] = (), form: Format = "png") -> bytes:
    """Precision over recall: one line a model and class of the table `curves`.

    Args:
        models: bare model names in the order that decides their colours, to agree between charts.
    """
    rows = style.only(curves, curve="precision_recall")
    with style.figure(2.9, "Precision and recall", form) as (figure, sink):
        axes = figure.add_subplot()
        for name, colour, part in style.series(rows, models):
            axes.plot(*style.xy(part), color=colour, label=name, drawstyle="steps-post")
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        style.legend(axes, rows)
        style.title(axes, "Precision over recall", rows)
    return sink.getvalue()


def reliability(curves: pa.Table, *, models: Sequence[str] = (), form: Format = "png") -> bytes:
    """Share that is right over the score: one line a model and class of `curves` or `reliability`.

    Where there are limits, they are shaded; scores after calibration are a dashed line of the same colour.

    Args:
        models: as in `precision_recall`.
    """
    rows, after = style.only(curves, curve="reliability"), style.only(curves, curve="calibrated")
    with style.figure(2.9, "Reliability", form) as (figure, sink):
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        for name, colour, part in style.series(rows, models):
            axes.plot(*style.xy(part), color=colour, label=name, marker="o", markersize=4)
            low, high = style.floats(part, "low"), style.floats(part, "high")
            axes.fill_between(style.floats(part, "x"), low, high, color=colour, alpha=0.15, linewidth=0)
        order = models or [producer_name(m) for m in style.models_of(rows)]
        for name, colour, part in style.series(after, order):
            look = {"linestyle": (0, (4, 2)), "marker": "s", "markersize": 3, "linewidth": 1.3}
            axes.plot(
                *style.xy(part), color=colour, label=f"{name}, calibrated" if len(order) > 1 else "calibrated", **look
            )
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score", ylabel="share that is right")
        style.legend(axes, rows)
        style.title(axes, "Do scores mean what they say?", rows)
    return sink.getvalue()


def learning_curve(
    curves: pa.Table, zero_shot: float | None = None, *, metric: str = "accuracy", form: Format = "png"
) -> bytes:
    """Quality over labels a class, with intervals.

    Args:
        zero_shot: quality without any label, drawn as a level; None where there is none.
    """
    rows = style.only(curves, curve="learning")
    with style.figure(2.9, "Learning curve", form) as (figure, sink):
        axes = figure.add_subplot()
        for name, colour, part in style.series(rows, ()):
            x, y = style.xy(part)
            low, high = style.floats(part, "low"), style.floats(part, "high")
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, y, color=colour, marker="o", markersize=4.5, label=name)
            for at, value in zip(x, y, strict=True):
                axes.annotate(f"{value:.2f}", (at, value), (0, 7), textcoords="offset points", ha="center")
        if rows.num_rows:
            ticks = sorted({float(v) for v in style.floats(rows, "x")})
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
        style.legend(axes, rows)
        style.title(axes, "What more labels buy", rows)
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
    colours = style.palette(kinds, order)
    height = 0.95 + len(rows) * max(0.3, 0.2 * len(kinds)) + (0.25 * -(-len(kinds) // 2) if len(kinds) > 1 else 0)
    with style.figure(height, title, form) as (figure, sink):
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
                style.number(value),
                (right, y),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=SOFT,
            )
        axes.set_yticks(range(len(rows)), [style.short(r, 20) for r in rows], color=INK)
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, max(edge * 1.16, 1e-9)), xlabel=label)
        axes.grid(visible=False, axis="y")
        if len(kinds) > 1:
            style.unique_legend(axes)
        style.title(axes, title, rows)
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
    rows = style.only(evaluation, metric=metric, split=split, class_name="all")
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
    with style.figure(2.7, "Slices from run to run", form) as (figure, sink):
        axes = figure.add_subplot()
        for k, (name, words) in enumerate(names.items() if rows else ()):
            x, y = zip(*((runs.index(r["at"]), r["value"]) for r in rows if r["slice"] == name), strict=True)
            axes.plot(x, y, "o", color=style.nth_colour(k), markersize=4)
            # A run that changed nothing has no row.
            line, label = [*x, len(runs) - 1], style.short(words, 26)
            axes.plot(line, [*y, y[-1]], color=style.nth_colour(k), drawstyle="steps-post", label=label)
        if rows:
            shown = np.unique(np.linspace(0, len(runs) - 1, 5).round().astype(int)).tolist()
            axes.set_xticks(shown, [f"{runs[k]:%d %b %Y\n%H:%M}" for k in shown])
            axes.set_ylim(bottom=0)
            axes.set_ylabel(rows[0]["metric"].replace("_", " "))
            style.unique_legend(axes)
        style.title(axes, "Slices from run to run", rows)
    return sink.getvalue()


def drift(rows: pa.Table, *, form: Format = "png") -> bytes:
    """p-values of every batch, one panel a test and subject, from the table `drift`."""
    rows = rows.filter(pc.is_valid(rows.column("p_value")))
    panels = sorted({(r["test"], r["subject"]) for r in rows.select(["test", "subject"]).to_pylist()})
    batches = sorted(set(rows.column("batch").to_pylist()))
    count = max(1, len(panels))
    floor = max(1e-6, float(min([p for p in style.floats(rows, "p_value") if p > 0], default=1e-3)))
    with style.figure(0.9 + count * (0.45 + 0.26 * max(1, len(batches))), "Drift", form) as (figure, sink):
        grid = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        for axes, (test, subject) in zip(grid, panels, strict=False):
            _drift_panel(axes, style.only(rows, test=test, subject=subject), batches, floor)
            alone = sum(t == test for t, _ in panels) == 1
            name = test.replace("_", " ")
            axes.set_title(name if alone else f"{name}, {producer_name(subject)}", fontsize=9)
        if panels:
            note = "p-value; dashed: the level at which a batch counts as drifted"
            grid[-1].set_xlabel(note, loc="right", fontsize=8)
        else:
            style.title(grid[0], "Drift", [])
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
    axes.set_yticks(range(len(batches)), [style.short(b, 22) for b in batches], color=INK)
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
    shown = schema.where_in(images, "image_id", places.column("image_id").to_pylist())
    batch_of = dict(zip(shown.column("image_id").to_pylist(), shown.column("batch").to_pylist(), strict=True))
    batches = np.array([batch_of.get(i, "") for i in places.column("image_id").to_pylist()], dtype=object)
    x, y = style.xy(places)
    with style.figure(4.2, "Where the photos lie", form) as (figure, sink):
        axes = figure.add_subplot()
        kinds = sorted(set(batches))
        for k, kind in enumerate(kinds):
            mine = batches == kind
            look = {"s": 12, "color": style.nth_colour(k), "alpha": 0.7, "linewidths": 0, "rasterized": True}
            axes.scatter(x[mine], y[mine], label=style.short(kind, 24), **look)
        for name, corners in polygons.items():
            edge = np.array([*corners, corners[0]])
            axes.plot(edge[:, 0], edge[:, 1], color=INK, linewidth=1.2)
            axes.annotate(name, edge[edge[:, 1].argmax()], (0, 3), textcoords="offset points", fontsize=8, ha="center")
        axes.locator_params(nbins=9)
        axes.set(xlabel="x", ylabel="y")
        if len(kinds) > 1:
            style.unique_legend(axes)
        style.title(axes, "Where the photos lie", places)
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
    with style.figure(0.8 + 0.24 * max(2, len(shown)), "Costs", form) as (figure, sink):
        axes = figure.add_subplot()
        seconds = [value for _, value in shown]
        axes.barh(range(len(shown)), seconds, color=ACCENT, height=0.62)
        for i, value in enumerate(seconds):
            axes.annotate(
                style.duration(value), (value, i), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
        axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name, _ in shown], color=INK)
        axes.set(ylim=(len(shown) - 0.4, -0.6), xlim=(0, max(seconds, default=1.0) * 1.18 or 1.0))
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        style.title(axes, "Where the time went", shown)
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
    with style.figure(1.2 + 0.5 * max(2, min(len(names), 12)), "Confusion", form) as (figure, sink):
        axes = figure.add_subplot()
        if len(names):
            axes.imshow(shares, cmap=style.ramp(), vmin=0, vmax=1, aspect="auto")
        if len(names) <= 12:
            for (i, j), count in np.ndenumerate(counts):
                colour = PAPER if shares[i, j] > 0.55 else INK
                axes.text(j, i, f"{count:.0f}", ha="center", va="center", fontsize=8, color=colour)
        labels = [style.short(n, 12) for n in names]
        axes.set_xticks(range(len(names)), labels, rotation=90 if len(names) > 5 else 0)
        axes.set_yticks(range(len(names)), labels)
        axes.set(xlabel="predicted", ylabel="actual")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        style.title(axes, "What is taken for what", names)
    return sink.getvalue()


def training_loss(history: str, *, form: Format = "png") -> bytes:
    """Loss over steps, from the JSON list of {step, loss, lr} in `models.history`."""
    steps = json.loads(history) if history else []
    with style.figure(2.3, "Training", form) as (figure, sink):
        axes = figure.add_subplot()
        axes.plot([s["step"] for s in steps], [s["loss"] for s in steps], color=ACCENT)
        axes.set(xlabel="step", ylabel="loss")
        axes.set_ylim(bottom=0)
        style.title(axes, "Training loss", steps)
    return sink.getvalue()


def class_counts(names: Sequence[str], counts: Sequence[int], *, title: str, form: Format = "png") -> bytes:
    """Bars of counts, in the given order."""
    with style.figure(0.7 + 0.26 * max(2, len(names)), title, form) as (figure, sink):
        axes = figure.add_subplot()
        axes.barh(range(len(names)), counts, color=ACCENT, height=0.6)
        for i, count in enumerate(counts):
            axes.annotate(f"{count:,}", (count, i), (5, 0), textcoords="offset points", va="center", fontsize=8)
        axes.set_yticks(range(len(names)), [style.short(n, 24) for n in names], color=INK)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, max(counts, default=1) * 1.18 or 1))
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        style.title(axes, title, names)
    return sink.getvalue()

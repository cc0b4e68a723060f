"""The report's figures, each a function of labels and scores that returns one SVG, the same bytes every time.

One grammar throughout: pneumonia is vermilion, normal is blue (both told apart by colour-blind readers), the
operating point is a black ring, and lines carry their names, so that no legend has to be looked up.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

from pneumobatch import metrics

PNEUMONIA, NORMAL = "#c8500a", "#0b6aa8"
INK, MUTED, RULE = "#1d252c", "#66717b", "#d9dfe4"
SIZE = (5.6, 4.3)  # inches; the page scales them

STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "pneumobatch", "font.family": "sans-serif", "font.size": 10.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10.5, "axes.titlelocation": "left",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE, "grid.linewidth": 0.6,
    "xtick.color": MUTED, "ytick.color": MUTED, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5, "ytick.labelsize": 9.5, "lines.linewidth": 1.8, "lines.solid_capstyle": "round",
}  # fmt: skip

RING: Any = {
    "marker": "o",
    "ms": 9,
    "mfc": "white",
    "mec": INK,
    "mew": 1.8,
    "ls": "none",
    "zorder": 5,
    "clip_on": False,
}


def _figure(size: tuple[float, float] = SIZE, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]


def _svg(figure: Figure, name: str, title: str) -> str:
    """Returns the inline SVG, with ids of its own (a page holds many) and a name for screen readers."""
    stream = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="|url\(#|href="#', lambda found: found[0] + f"{name}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _square(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=x, ylabel=y)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1f}".replace("0.0", "0").replace("1.0", "1")))


def _thin(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Drops the points of a curve that no eye could tell from their neighbours: a million films, a small page."""
    xy = np.column_stack([np.asarray(x, float), np.asarray(y, float)])
    cell = np.round(xy * 300)
    keep = np.any(np.diff(cell, axis=0, prepend=-1) != 0, axis=1)
    keep[-1] = True
    keep[:-1] |= keep[1:]  # both ends of each move, so that steps stay steps
    return xy[keep, 0], xy[keep, 1]


def three(value: float | None) -> str:
    """Returns a rate with three decimals; one that only rounds to 0 or 1 does not pass for it."""
    if value is None:
        return "–"
    text = f"{value:.3f}"
    return {"0.000": "<0.001", "1.000": ">0.999"}.get(text, text) if 0 < value < 1 else text


def confusion_matrix(counts: metrics.Counts) -> str:
    """Draws the confusion matrix: films, and their share of the row."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure()
        rows = (("Pneumonia", (counts.tp, counts.fn), "TP FN"), ("Normal", (counts.fp, counts.tn), "FP TN"))
        for y, (_, cells, names) in enumerate(rows):
            for x, (films, name) in enumerate(zip(cells, names.split(), strict=True)):
                share = films / sum(cells) if sum(cells) else 0.0
                colour = PNEUMONIA if x == 0 else NORMAL
                box = Rectangle((x + 0.02, y + 0.02), 0.96, 0.96, fc=colour, alpha=0.05 + 0.4 * share, lw=0)
                axes.add_patch(box)
                axes.text(x + 0.5, y + 0.47, f"{films:,}", ha="center", va="center", fontsize=23)
                label = f"{name}   {share:.1%} of row" if sum(cells) else name
                axes.text(x + 0.5, y + 0.72, label, ha="center", va="center", fontsize=10)
        axes.set(xlim=(0, 2), ylim=(2, 0), xticks=[0.5, 1.5], yticks=[0.5, 1.5])
        axes.set_xticklabels(["called pneumonia", "called normal"])
        axes.set_yticklabels([f"{name}\n{sum(cells):,} films" for name, cells, _ in rows])
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelsize=10.5)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        return _svg(figure, "confusion", "Confusion matrix")


def roc(
    labels: ArrayLike, scores: ArrayLike, counts: metrics.Counts, interval: metrics.Interval | None, threshold: float
) -> str:
    """Draws the ROC curve with its area, and the operating point with the Wilson intervals of both rates."""
    area, points = metrics.auroc(labels, scores), metrics.operating_points(labels, scores)
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure()
        _square(axes, "1 − specificity (normal films called pneumonia)", "Sensitivity")
        x, y = np.append(0, points.false_positives), np.append(0, points.true_positives)
        span = " ({:.3f}–{:.3f})".format(*interval) if interval else ""
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (4, 4)))
        axes.plot(*_thin(x / x[-1], y / y[-1]), color=INK, clip_on=False)
        axes.fill_between(*_thin(x / x[-1], y / y[-1]), color=INK, alpha=0.05, lw=0)
        axes.text(0.97, 0.06, f"AUROC {three(area)}{span}", ha="right", fontsize=12)
        _cross(axes, 1 - (counts.rate("specificity") or 0), counts.rate("sensitivity") or 0, counts, threshold)
        return _svg(figure, "roc", "ROC curve")


def _cross(axes: Axes, x: float, y: float, counts: metrics.Counts, threshold: float) -> None:
    low, high = counts.interval("specificity") or (1 - x, 1 - x)
    axes.plot([1 - high, 1 - low], [y, y], color=INK, lw=1.1, zorder=4)
    axes.plot([x, x], counts.interval("sensitivity") or (y, y), color=INK, lw=1.1, zorder=4)
    axes.plot([x], [y], **RING)
    note = f"threshold {three(threshold)}\nsensitivity {three(y)}, specificity {three(1 - x)}"
    below = y > 0.35
    place: Any = {"ha": "left" if x < 0.45 else "right", "va": "top" if below else "bottom"}
    axes.annotate(note, (x, y), (14 if x < 0.45 else -14, -14 if below else 14), textcoords="offset points", **place)


def precision_recall(labels: ArrayLike, scores: ArrayLike, counts: metrics.Counts, threshold: float) -> str:
    """Draws precision against recall with the operating point, and the prevalence as the line to beat."""
    points, average = metrics.operating_points(labels, scores), metrics.average_precision(labels, scores)
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure()
        _square(axes, "Recall (sensitivity)", "Precision (PPV)")
        tp, fp = points.true_positives, points.false_positives
        axes.plot(
            *_thin(np.append(0, tp / tp[-1]), np.append(tp[0], tp) / np.append(tp[0] + fp[0], tp + fp)), color=INK
        )
        prevalence = counts.positives / counts.total
        axes.axhline(prevalence, color=MUTED, lw=0.9, ls=(0, (4, 4)))
        above = prevalence < 0.5
        text = f"prevalence {prevalence:.3f}: calling every film pneumonia"
        axes.annotate(text, (0.02, prevalence), (0, 4 if above else -4), textcoords="offset points", color=MUTED,
                      va="bottom" if above else "top", fontsize=9.5)  # fmt: skip
        axes.text(0.03, 0.06 if prevalence > 0.15 else 0.2, f"Average precision {three(average)}", fontsize=12)
        recall, precision = counts.rate("sensitivity") or 0, counts.rate("precision")
        if precision is not None:
            axes.plot([recall], [precision], **RING)
            note = f"threshold {three(threshold)}\nPPV {three(precision)}, sensitivity {three(recall)}"
            place: Any = {"ha": "right" if recall > 0.45 else "left", "va": "top" if precision > 0.4 else "bottom"}
            offset = (-14 if recall > 0.45 else 14, -14 if precision > 0.4 else 14)
            axes.annotate(note, (recall, precision), offset, textcoords="offset points", **place)
        return _svg(figure, "precision-recall", "Precision–recall curve")


def reliability(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10, prevalence: float | None = None) -> str:
    """Draws observed against stated probability by bin, with Wilson intervals and each bin's number of films.

    With a prevalence, the films are weighted to it: each share, and its interval, is what it would be there.
    """
    weights = None if prevalence is None else metrics.prevalence_weights(labels, prevalence)
    rows = metrics.reliability(labels, probabilities, bins, weights)
    gap, brier = metrics.ece(labels, probabilities, weights, bins), metrics.brier(labels, probabilities, weights)
    own = float(np.asarray(labels).mean())
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure()
        _square(axes, "Stated probability of pneumonia", "Observed share of pneumonia")
        axes.set_ylim(-0.09, 1)  # room for the bins' numbers
        axes.plot([0, 1], [0, 1], color=MUTED, lw=0.9, ls=(0, (4, 4)))
        x, y = [row.probability for row in rows], [row.observed for row in rows]
        for row in rows:
            span: ArrayLike = metrics.wilson(row.positives, row.films) or ()
            span = span if prevalence is None else metrics.shift_prior(span, own, prevalence)
            axes.plot([row.probability] * 2, span, color=INK, lw=1.1)
            axes.annotate(f"{row.films:,}", ((row.low + row.high) / 2, -0.08), (0, 3), textcoords="offset points",
                          ha="center", color=MUTED, fontsize=8 if bins <= 10 else 6)  # fmt: skip
        axes.plot(x, y, color=INK, lw=1, alpha=0.5, clip_on=False)
        sizes = [14 + 90 * np.sqrt(row.films / max(r.films for r in rows)) for row in rows]
        axes.scatter(x, y, s=sizes, color=INK, zorder=4, clip_on=False, edgecolors="white", linewidths=0.8)
        behind: Any = {"fc": "white", "ec": "none", "alpha": 0.85, "pad": 2}
        axes.text(0.03, 0.92, f"ECE {three(gap)}, Brier {three(brier)}", fontsize=12, bbox=behind, zorder=6)
        name, title = "reliability", "Reliability curve"
        if prevalence is not None:
            name, title = f"{name}-local", f"{title} at the local prevalence"
        return _svg(figure, name, title)


def scores(
    groups: Sequence[tuple[str, str, ArrayLike]],
    threshold: float | None,
    band: Sequence[float] | None = None,
    bins: int = 40,
) -> str:
    """Draws one histogram of scores a class, one above the other; counts are logarithmic, so single films show.

    Args:
        groups: Name, colour and probabilities [N] of each class; empty ones are left out.
        threshold: The operating point, or None.
        band: Lowest and highest uncertain probability, or None.
        bins: Equal-width bins over 0–1.
    """
    edges = np.linspace(0, 1, bins + 1)
    drawn = [(name, colour, np.asarray(values, float)) for name, colour, values in groups if np.size(values)]
    with mpl.rc_context(STYLE):
        figure, panes = _figure(rows=max(1, len(drawn)))
        films = [np.histogram(values, edges)[0] for _, _, values in drawn]
        top = max([10, *(int(n.max()) for n in films)])
        for axes, (name, colour, values), heights in zip(panes, drawn, films, strict=False):
            axes.stairs(heights, edges, baseline=0.6, fill=True, color=colour, alpha=0.75, lw=0)
            axes.set_yscale("log")
            axes.set(xlim=(0, 1), ylim=(0.6, top * 2), ylabel="Films")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.minorticks_off()
            axes.tick_params(labelbottom=axes is panes[-1])
            called = ""
            if band is not None:
                axes.axvspan(*band, color=MUTED, alpha=0.15, lw=0)
            if threshold is not None:
                axes.axvline(threshold, color=INK, lw=1.2, clip_on=False)
                called = f", {np.count_nonzero(values >= threshold):,} at or above the threshold"
            axes.set_title(f"{name}: {values.size:,} films{called}", color=colour, pad=4)
        panes[-1].set_xlabel(
            "Probability of pneumonia" + (f" (threshold {three(threshold)})" if threshold is not None else "")
        )
        return _svg(figure, "scores", "Histograms of scores")


def score_shift(reference: ArrayLike, run: ArrayLike, threshold: float | None, bins: int = 25) -> str:
    """Draws the share of films by score, the run's as a line over the reference's area, and the share that is called.

    Args:
        reference: Probabilities of the reference [M].
        run: Probabilities of the run [N].
        threshold: The operating point, or None.
        bins: Equal-width bins over 0–1.
    """
    edges = np.linspace(0, 1, bins + 1)
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure((5.6, 3.4))
        for name, values, place in (("reference", np.asarray(reference), 0), ("this run", np.asarray(run), 1)):
            share = np.histogram(values, edges)[0] / values.size
            drawn: Any = (
                {"fill": True, "color": MUTED, "alpha": 0.3, "lw": 0} if place == 0 else {"color": INK, "lw": 1.8}
            )
            axes.stairs(share, edges, baseline=0, **drawn)
            text = f"{name}: {values.size:,} films"
            if threshold is not None:
                text += f", {np.mean(values >= threshold):.1%} called"
            axes.text(0.5, 0.98 - 0.09 * place, text, color=MUTED if place == 0 else INK, ha="center", va="top",
                      transform=axes.transAxes)  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, axes.get_ylim()[1] * 1.25), ylabel="Share of films")
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        if threshold is not None:
            axes.axvline(threshold, color=INK, lw=1.2, ymax=0.8)
        axes.set_xlabel(
            "Probability of pneumonia" + (f" (threshold {three(threshold)})" if threshold is not None else "")
        )
        return _svg(figure, "score-shift", "Scores of this run and of the reference")


def trade_off(thresholds: Sequence[float], counts: Sequence[metrics.Counts], threshold: float) -> str:
    """Draws sensitivity and specificity against the threshold, each with its Wilson band."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _figure()
        _square(axes, "Threshold", "Rate")
        for name, colour in (("sensitivity", PNEUMONIA), ("specificity", NORMAL)):
            values = np.array([c.rate(name) or 0.0 for c in counts])
            bounds = np.array([c.interval(name) or (0.0, 1.0) for c in counts])
            axes.fill_between(thresholds, bounds[:, 0], bounds[:, 1], color=colour, alpha=0.15, lw=0)
            axes.plot(thresholds, values, color=colour, clip_on=False)
        axes.axvline(threshold, color=INK, lw=1.2)
        side = "left" if threshold < 0.6 else "right"
        axes.annotate(f"threshold {three(threshold)}", (threshold, 0.04), (5 if side == "left" else -5, 0), ha=side,
                      textcoords="offset points")  # fmt: skip
        for y, name, colour in ((0.24, "sensitivity", PNEUMONIA), (0.16, "specificity", NORMAL)):
            axes.text(0.66 if threshold < 0.5 else 0.34, y, name, color=colour, fontsize=11.5, ha="center")
        return _svg(figure, "trade-off", "Sensitivity and specificity against the threshold")


def training_curves(history: pa.Table) -> str | None:
    """Draws loss, validation rates and learning rate by epoch from a bundle's history; None without any."""
    columns = {name: history[name].to_pylist() for name in history.column_names}
    panels = (
        ("Loss", (("train_loss", "training", MUTED), ("validation_loss", "validation", INK))),
        ("Validation rate", (("auroc", "AUROC", INK), ("sensitivity", "sensitivity", PNEUMONIA),
                             ("specificity", "specificity", NORMAL), ("accuracy", "accuracy", MUTED))),
        ("Learning rate", (("learning_rate", "", INK),)),
    )  # fmt: skip
    drawn = [(title, [line for line in lines if any(v is not None for v in columns.get(line[0], []))])
             for title, lines in panels]  # fmt: skip
    drawn = [(title, lines) for title, lines in drawn if lines]
    if not drawn or not columns.get("epoch"):
        return None
    with mpl.rc_context(STYLE):
        figure, panes = _figure((11.6, 3.6), columns=len(drawn))
        for axes, (title, lines) in zip(panes, drawn, strict=True):
            for name, label, colour in lines:
                values = [np.nan if v is None else v for v in columns[name]]
                axes.plot(columns["epoch"], values, color=colour, label=label, marker="o" if len(values) < 3 else "")
            axes.set_title(title)
            axes.set_xlabel("Epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            if title == "Learning rate":
                axes.ticklabel_format(axis="y", style="plain")
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1g}"))
            else:
                legend = axes.legend(frameon=False, labelcolor="linecolor", handlelength=0, handletextpad=0)
                for handle in filter(None, legend.legend_handles):
                    handle.set_visible(False)
        return _svg(figure, "training", "Training curves")

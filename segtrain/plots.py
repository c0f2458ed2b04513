"""Pictures for reports: intervals, loss curves, and images with the outline of their labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from synth.core.checks import IGNORE

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, told apart by colour-blind readers too."""

OUTLINES = ((64, 224, 255), (255, 176, 0), (120, 255, 120), (255, 110, 200))
TILE_PX = 192


@dataclass(frozen=True)
class Bar:
    """One line of an interval plot: a value, its interval (None if there is none), single points beside it.

    Attributes:
        colour: #rrggbb.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    points: tuple[float, ...] = ()
    colour: str = PALETTE[0]


@dataclass(frozen=True)
class Curve:
    """One line of a loss plot."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def interval_plot(scores: Sequence[Bar], differences: Sequence[Bar]) -> str:
    """Returns an SVG: scores with intervals on the left, paired differences with intervals and a zero line right."""
    figure, axes = _figure(1, 2 if differences else 1, height=1.2 + 0.42 * max(len(scores), len(differences)))
    _bars(axes[0], scores)
    axes[0].set_xlabel("Dice, mean over test cases")
    if differences:
        _bars(axes[1], differences)
        axes[1].axvline(0, color="#333333", linewidth=1)
        axes[1].set_xlabel("paired difference in Dice")
    return _svg(figure)


def _bars(axis, bars: Sequence[Bar]) -> None:  # noqa: ANN001 - matplotlib is imported only where it draws
    for y, bar in enumerate(bars):
        colour = bar.colour
        axis.scatter(bar.points, [y + 0.22] * len(bar.points), s=46, marker="|", color=colour, alpha=0.8, zorder=2)
        if bar.interval:
            axis.plot(bar.interval, [y, y], color=colour, linewidth=2.5, solid_capstyle="butt", zorder=3)
        axis.scatter([bar.value], [y], s=42, color=colour, edgecolors="white", linewidths=1, zorder=4)
    axis.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", color="#dddddd", linewidth=0.8)


def loss_plot(curves: Sequence[Curve]) -> str:
    """Returns an SVG of losses over optimiser steps, log scale, one colour per arm (curves of one name share it)."""
    figure, axes = _figure(1, 1, height=3.4)
    names = list(dict.fromkeys(curve.name for curve in curves))
    for curve in curves:
        first = next(c for c in curves if c.name == curve.name) is curve
        axes[0].plot(curve.steps, curve.values, color=PALETTE[names.index(curve.name) % len(PALETTE)], linewidth=1.3,
                     alpha=0.85 if first else 0.3, label=curve.name if first else None)
    if all(v > 0 for curve in curves for v in curve.values):
        axes[0].set_yscale("log")
    axes[0].set_xlabel("optimiser step")
    axes[0].set_ylabel("loss on labelled images")
    axes[0].grid(color="#dddddd", linewidth=0.8)
    axes[0].legend(frameon=False, fontsize=8, ncols=3)
    return _svg(figure)


def _figure(rows: int, columns: int, *, height: float) -> tuple:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=9)
    return figure, axes


def _svg(figure) -> str:  # noqa: ANN001
    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: the same numbers give the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "pairsmith", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def tile(image: np.ndarray, labels: np.ndarray | None, *, intensity_range: tuple[float, float],
         side: int = TILE_PX) -> bytes:
    """Returns a PNG of pixels (H, W[, 3]) at about `side` px with the outline of labels (H, W); ignored is darkened.

    Every picture pixel becomes a square of whole pixels, so that nothing is smoothed over.
    """
    low, high = intensity_range
    grey = np.clip((image.astype(np.float32) - low) / (high - low), 0, 1) * 255
    colour = np.repeat(grey[..., None], 3, axis=2) if grey.ndim == 2 else grey
    factor = max(1, round(side / image.shape[0]))
    shown = colour.round().astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
    if labels is not None:
        _outline(shown, labels.repeat(factor, 0).repeat(factor, 1), width=max(1, factor // 2))
    buffer = io.BytesIO()
    Image.fromarray(shown).save(buffer, format="PNG")
    return buffer.getvalue()


def _outline(shown: np.ndarray, labels: np.ndarray, *, width: int) -> None:
    from scipy.ndimage import binary_erosion

    ignored = labels == IGNORE
    shown[ignored] = shown[ignored] // 3
    for k in sorted(set(np.unique(labels).tolist()) - {0, IGNORE}):
        inside = labels == k
        shown[inside & ~binary_erosion(inside, iterations=width)] = OUTLINES[(k - 1) % len(OUTLINES)]

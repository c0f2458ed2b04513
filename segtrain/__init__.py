"""Training segmenters from few labels, synthetic pairs and unlabelled images, and comparing them honestly."""

from __future__ import annotations

from synth.core.lazy import publish

_HOMES = {
    "Segmenter": "segtrain.segmenter",
    "compare": "segtrain.compare",
    "fit": "segtrain.train",
    "load_segmenter": "segtrain.segmenter",
    "predict": "segtrain.segmenter",
    "score": "segtrain.score",
}

__all__ = publish(__name__, _HOMES)

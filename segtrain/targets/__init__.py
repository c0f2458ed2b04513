"""What a student is asked to predict: sources say it, operators narrow it."""

from segtrain.targets.components import COMPONENTS
from segtrain.targets.ensemble import ENSEMBLE
from segtrain.targets.filters import FILTERS
from segtrain.targets.forms import FORMS
from segtrain.targets.quantile import QUANTILE
from segtrain.targets.rank import RANK_FILTERS, RANK_SOURCES
from segtrain.targets.rounds import ROUNDS
from segtrain.targets.sources import SOURCES as _SOURCES
from segtrain.targets.store import STORE
from segtrain.targets.students import STUDENT_FILTERS, STUDENT_SOURCES
from segtrain.targets.target import Target, from_labels, from_prob, soft
from segtrain.targets.weights import WEIGHTS
from synth.core.config import Settings

__all__ = ["SOURCES", "TARGETS", "Target", "from_labels", "from_prob", "soft"]

SOURCES: dict[str, type[Settings]] = {
    **_SOURCES, **FORMS, **RANK_SOURCES, **STUDENT_SOURCES, **STORE, **ENSEMBLE, **ROUNDS}
"""Sources by the name that method files use."""

TARGETS: dict[str, type[Settings]] = {
    **FILTERS, **RANK_FILTERS, **COMPONENTS, **STUDENT_FILTERS, **WEIGHTS, **QUANTILE}
"""Operators by the name that method files use."""

"""Training segmenters from few labels, synthetic pairs and unlabelled images, and comparing them honestly."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_HOMES = {
    "Segmenter": "segtrain.segmenter",
    "compare": "segtrain.compare",
    "fit": "segtrain.train",
    "load_segmenter": "segtrain.segmenter",
    "predict": "segtrain.segmenter",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Returns a public name, imported only now: `import segtrain` stays fast and pulls in no training library."""
    if name not in _HOMES:
        raise AttributeError(f"module 'segtrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Keeps `segtrain.compare` the function: importing the room of that name would overwrite it with the module."""

    @property
    def compare(self) -> object:
        """Returns the function `compare`."""
        return __getattr__("compare")

    @compare.setter
    def compare(self, room: ModuleType) -> None:
        """Drops the module that the import system hands over; `sys.modules` still holds it."""


sys.modules[__name__].__class__ = _Package

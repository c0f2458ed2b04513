"""Public names of a package, imported on first use (PEP 562), so that importing the package costs nothing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType


def publish(package: str, homes: Mapping[str, str]) -> list[str]:
    """Returns the public names of `package` in order; each is imported from its home module when first asked for.

    A function may bear the name of the room it lives in (`synth.draw` in synth/draw/): importing that room would
    overwrite the function with the module, so the package refuses modules under its public names. `sys.modules`
    still holds them, and `from synth.draw.run import ...` finds them.
    """

    class Package(ModuleType):
        """The package with its public names."""

        def __getattr__(self, name: str) -> object:
            """Returns a public name."""
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            return getattr(importlib.import_module(homes[name]), name)

        def __setattr__(self, name: str, value: object) -> None:
            """Sets an attribute, but for a submodule that a public name would vanish behind."""
            if not (name in homes and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            """Returns the public names beside what is there."""
            return sorted({*self.__dict__, *homes})

    sys.modules[package].__class__ = Package
    return sorted(homes)

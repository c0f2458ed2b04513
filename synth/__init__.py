"""Pairsmith's generative engine: mask-aligned synthetic image-label pairs from a few annotated images."""

from __future__ import annotations

import importlib

_HOMES = {
    "load_pairs": "synth.formats", "load_images": "synth.formats",
    "write_folder": "synth.formats", "write_imagefolder": "synth.formats",
    "fit": "synth.fit", "load_generator": "synth.fit",
    "draw": "synth.draw", "draw_copypaste": "synth.draw", "verify_shards": "synth.draw",
    "default_gates": "synth.gates", "run_gates": "synth.gates", "Gates": "synth.gates", "GateSettings": "synth.gates",
    "Generator": "synth.generator", "InpaintPipeline": "synth.diffusion.inpaint",
    "Pair": "synth.core.pairs", "PairSet": "synth.core.pairs", "ImageSet": "synth.core.pairs",
    "UserError": "synth.core.checks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Returns a public name, importing its home on first use (PEP 562): `import synth` stays fast."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'synth' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__

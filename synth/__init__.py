"""Pairsmith's generative engine: mask-aligned synthetic image-label pairs from a few annotated images."""

from __future__ import annotations

from synth.core.lazy import publish

_HOMES = {
    "load_pairs": "synth.formats", "load_images": "synth.formats",
    "write_folder": "synth.formats", "write_imagefolder": "synth.formats",
    "load_masks": "synth.formats", "MaskSet": "synth.formats",
    "fit": "synth.fit", "load_generator": "synth.fit",
    "draw": "synth.draw", "draw_copypaste": "synth.draw", "draw_roundtrip": "synth.draw", "verify_shards": "synth.draw",
    "draw_layouts": "synth.draw", "default_supply": "synth.draw", "SupplySettings": "synth.draw",
    "curate": "synth.draw", "default_curation": "synth.draw", "CurateSettings": "synth.draw",
    "default_gates": "synth.gates", "run_gates": "synth.gates", "Gates": "synth.gates", "GateSettings": "synth.gates",
    "ShapeModel": "synth.layouts", "LayoutSettings": "synth.layouts",
    "FrequencyPrior": "synth.spectral.prior",
    "Generator": "synth.generator", "InpaintPipeline": "synth.diffusion.inpaint",
    "SpectralPipeline": "synth.appearance.pipeline",
    "TranslatePipeline": "synth.gan.translate",
    "AppearancePipeline": "synth.gan.restyle.pipeline", "translate_images": "synth.draw",
    "LabelPipeline": "synth.gan.unpaired.label", "label": "synth.gan.unpaired.label",
    "load_labeller": "synth.gan.unpaired.label",
    "Pair": "synth.core.pairs", "PairSet": "synth.core.pairs", "ImageSet": "synth.core.pairs",
    "UserError": "synth.core.checks",
}

__all__ = publish(__name__, _HOMES)

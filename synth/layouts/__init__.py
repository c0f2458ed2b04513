"""New label masks from old ones: draw the parameters, then apply them to image and mask alike."""

from synth.core.frame import detect_frame
from synth.layouts.frame import keep_in_of
from synth.layouts.layout import Layout, Placed, apply_layout, draw_layout, layout_from_json, layout_to_json
from synth.layouts.recombine import Anatomy, Recombination, fits, is_cut, learn_anatomy, share_with_several
from synth.layouts.settings import LayoutSettings
from synth.layouts.warp import IDENTITY, Affine, apply_image, apply_mask, apply_region, draw_affine, draw_fitting

__all__ = [
    "IDENTITY", "Affine", "Anatomy", "Layout", "LayoutSettings", "Placed", "Recombination", "apply_image",
    "apply_layout", "apply_mask", "apply_region", "detect_frame", "draw_affine", "draw_fitting", "draw_layout", "fits",
    "is_cut", "keep_in_of", "layout_from_json", "layout_to_json", "learn_anatomy", "share_with_several",
]

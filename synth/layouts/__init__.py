"""New label masks from old ones: draw the parameters, then apply them to image and mask alike."""

from synth.core.frame import detect_frame
from synth.layouts.frame import keep_in_of
from synth.layouts.layout import (
    Layout,
    Placed,
    apply_layout,
    draw_layout,
    layout_from_json,
    layout_to_json,
    place,
    second_parent,
)
from synth.layouts.morph import Morph, apply_morph, bounded, draw_morph
from synth.layouts.recombine import (
    Anatomy,
    Recombination,
    class_chances,
    fits,
    hole_of,
    is_cut,
    learn_anatomy,
    share_with_several,
)
from synth.layouts.rules import Rules, RuleSettings, learn_rules
from synth.layouts.settings import LayoutSettings, check_moves_alone
from synth.layouts.shape import ShapeCode, ShapeModel, Shapes
from synth.layouts.warp import (
    IDENTITY,
    Affine,
    apply_image,
    apply_mask,
    apply_region,
    draw_affine,
    draw_fitting,
    mirrored_in,
)

__all__ = [
    "IDENTITY", "Affine", "Anatomy", "Layout", "LayoutSettings", "Morph", "Placed", "Recombination", "RuleSettings",
    "Rules", "ShapeCode", "ShapeModel", "Shapes", "apply_image", "apply_layout", "apply_mask", "apply_morph",
    "apply_region", "bounded", "check_moves_alone", "class_chances", "detect_frame", "draw_affine", "draw_fitting",
    "draw_layout", "draw_morph", "fits", "hole_of", "is_cut", "keep_in_of", "layout_from_json", "layout_to_json",
    "learn_anatomy", "learn_rules", "mirrored_in", "place", "second_parent", "share_with_several",
]

"""A shape model: a variational autoencoder of label maps that draws new ones and says how plausible one is."""

from synth.layouts.shape.model import ShapeModel
from synth.layouts.shape.supply import ShapeCode, Shapes, draw_code

__all__ = ["ShapeCode", "ShapeModel", "Shapes", "draw_code"]

"""Simulated MRI scanners: one slice of tissue in, one image and its label mask out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from synth.core.rng import derive_seed
from synth.core.space import resize_image

WARP_PX = 2.0  # spread of the smooth displacement, in px of the slice (1 mm)
WARP_SMOOTH_PX = 16.0
TURN_DEGREES, ZOOM = 5.0, 0.06  # largest turn and change of scale


@dataclass(frozen=True)
class Slice:
    """One plane of the template, each (H, W) float32: T1 brightness, tissue shares in [0, 1], ventricle 0 or 1."""

    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    ventricle: np.ndarray


@dataclass(frozen=True)
class Scanner:
    """How a scanner shows tissue.

    Attributes:
        gamma: of the contrast curve. grey, white, fluid: brightness added to each tissue. bias: spread of the log of
            the bias field. noise: spread of the Rician noise, 1 = full scale. blur_px: loss of resolution, in mm.
    """

    gamma: float
    grey: float
    white: float
    fluid: float
    bias: float
    noise: float
    blur_px: float


SCANNERS = {
    "a": Scanner(gamma=1.3, grey=-0.02, white=0.00, fluid=-0.06, bias=0.06, noise=0.015, blur_px=0.3),
    "b": Scanner(gamma=0.8, grey=0.00, white=-0.06, fluid=0.03, bias=0.14, noise=0.030, blur_px=0.6),
    "c": Scanner(gamma=2.0, grey=-0.06, white=0.04, fluid=-0.08, bias=0.10, noise=0.025, blur_px=0.9),
    "d": Scanner(gamma=1.0, grey=-0.08, white=-0.16, fluid=-0.04, bias=0.20, noise=0.045, blur_px=0.5),
    "e": Scanner(gamma=1.6, grey=-0.14, white=-0.02, fluid=0.06, bias=0.26, noise=0.060, blur_px=0.8),
    "f": Scanner(gamma=0.65, grey=0.02, white=-0.10, fluid=-0.02, bias=0.12, noise=0.035, blur_px=1.3),
}
TRAINING, UNSEEN = ("a", "b", "c", "d"), ("e", "f")


@dataclass(frozen=True)
class Scanned:
    """Pixels (S, S) uint8 and labels (S, S) uint8 of one simulated image."""

    pixels: np.ndarray
    mask: np.ndarray


def scan(plane: Slice, scanner: str, *, size: int, seed: int, name: str) -> Scanned:
    """Returns `plane` (H, W) as the scanner of that name shows it at `size` px; depends on its arguments alone."""
    settings, rng = SCANNERS[scanner], np.random.Generator(np.random.PCG64(derive_seed(seed, "scan", name)))
    coordinates = _draw_warp(rng, plane.t1.shape)
    t1, grey, white, ventricle = (ndimage.map_coordinates(x, coordinates, order=1, mode="mirror")
                                  for x in (plane.t1, plane.grey, plane.white, plane.ventricle))
    mask = _shrink(ventricle, size) > 0.5
    brain = np.clip(t1 * 4, 0, 1)
    fluid = brain * np.clip(1 - grey - white, 0, 1)
    tissue = np.clip(t1 + settings.grey * grey + settings.white * white + settings.fluid * fluid, 0, 1)
    shown = ndimage.gaussian_filter(tissue ** (settings.gamma * rng.uniform(0.93, 1.07)), settings.blur_px)
    shown = _shrink(shown * _draw_bias(rng, shown.shape, settings.bias), size)
    noise = settings.noise * rng.standard_normal((2, size, size))
    magnitude = np.hypot(shown + noise[0], noise[1])
    return Scanned(np.rint(np.clip(magnitude, 0, 1) * 255).astype(np.uint8), mask.astype(np.uint8))


def _draw_warp(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Returns where each px of the result lies in the source, (2, H, W): turned, scaled and smoothly bent."""
    middle = (np.array(shape).reshape(2, 1, 1) - 1) / 2
    y, x = np.indices(shape) - middle
    angle, zoom = np.deg2rad(rng.uniform(-TURN_DEGREES, TURN_DEGREES)), 1 + rng.uniform(-ZOOM, ZOOM)
    turned = np.stack([np.cos(angle) * y - np.sin(angle) * x, np.sin(angle) * y + np.cos(angle) * x]) * zoom
    return turned + middle + WARP_PX * np.stack([_draw_smooth(rng, shape, WARP_SMOOTH_PX) for _ in range(2)])


def _draw_bias(rng: np.random.Generator, shape: tuple[int, int], strength: float) -> np.ndarray:
    field = np.exp(strength * _draw_smooth(rng, shape, shape[0] / 4))
    return field / field.mean() * 0.9


def _draw_smooth(rng: np.random.Generator, shape: tuple[int, int], smooth_px: float) -> np.ndarray:
    """Returns a smooth random field (H, W) of mean 0 and spread 1."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape), smooth_px, mode="reflect")
    return (field - field.mean()) / field.std()


def _shrink(values: np.ndarray, size: int) -> np.ndarray:
    return resize_image(np.rint(np.clip(values, 0, 2) * 30000).astype(np.uint16)[None], size)[0] / 30000

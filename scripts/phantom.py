"""A procedural phantom: several patients, several appearances, masks that are the truth. For tests, not for results.

    python scripts/phantom.py --out data/phantom --n 100 --size 64
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from synth.core.checks import MIN_SIDE, UserError
from synth.core.pairs import DataInfo, PairSet, memory_set
from synth.core.rng import derive_seed
from synth.formats import write_folder

OBJECT_LEVELS = (0.85, 0.2, 0.7, 0.35)
"""Brightness of classes 1, 2, ... before the appearance; tissue is about 0.5."""


@dataclass(frozen=True)
class Anatomy:
    """One patient: `axes` of the body, `wobble` of its outline (amplitude, phase per harmonic), spots, object sizes."""

    axes: tuple[float, float]
    wobble: np.ndarray
    texture_px: float
    object_radius: float
    object_ratio: float


@dataclass(frozen=True)
class Appearance:
    """One scanner: contrast curve, noise, and the slope of its bias field; tint is for RGB."""

    gamma: float
    gain: float
    noise: float
    bias: tuple[float, float]
    tint: np.ndarray


def make_phantom(n: int, *, size: int = 64, n_groups: int = 6, channels: int = 1, bit_depth: int = 8, seed: int = 0,
                 n_classes: int = 2) -> PairSet:
    """Returns `n` pairs in memory, `size` px a side, dealt out to `n_groups` patients in turn.

    Each patient has its own body outline, texture and scanner; each image has one or two objects of every class > 0,
    and its mask is exact. The same arguments give the same pixels.

    Raises:
        UserError: if there are more classes than the phantom can draw, RGB is asked for with 16 bit, or a number is
            too small.
    """
    for name, value, least in (("n", n, 1), ("size", size, MIN_SIDE), ("n_groups", n_groups, 1)):
        if value < least:
            raise UserError(f"{name}={value}", rule=f"it is at least {least}", repair=f"write --{name} {least}".replace(
                "_", "-"))
    if not 2 <= n_classes <= len(OBJECT_LEVELS) + 1:
        raise UserError(f"n_classes={n_classes}", rule=f"the phantom draws 2 to {len(OBJECT_LEVELS) + 1} classes",
                        repair="choose a number between")
    if channels == 3 and bit_depth == 16:
        raise UserError("channels=3 bit_depth=16", rule="RGB has 8 bit", repair="choose one of the two")
    top = 255 if bit_depth == 8 else 4095  # 12 of 16 bits, as most scanners fill them
    names = ("background", *(f"object_{i}" for i in range(1, n_classes)))
    info = DataInfo(names, channels, bit_depth, (0.0, float(top)), "phantom", "phantom")
    images, masks = [], []
    for i in range(n):
        group = np.random.Generator(np.random.PCG64(derive_seed(seed, "group", i % n_groups)))
        anatomy, appearance = _draw_anatomy(group), _draw_appearance(group)
        rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "image", i)))
        tissue, mask = _draw_scene(rng, anatomy, size, n_classes)
        values = np.rint(_scan(rng, tissue, appearance) * top).astype(info.dtype)
        images.append(values[..., 0] if channels == 1 else values)
        masks.append(mask)
    groups = [f"patient_{i % n_groups:02d}" for i in range(n)]
    pairs = memory_set(images, masks, info, ids=[f"phantom_{i:04d}" for i in range(n)], groups=groups)
    assert isinstance(pairs, PairSet)
    return pairs


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    wobble = np.stack([rng.uniform(0, 0.05, 4), rng.uniform(0, 2 * np.pi, 4)])
    return Anatomy(tuple(rng.uniform(0.7, 0.9, 2)), wobble, rng.uniform(0.02, 0.06), rng.uniform(0.12, 0.2),
                   rng.uniform(0.6, 1.0))


def _draw_appearance(rng: np.random.Generator) -> Appearance:
    return Appearance(rng.uniform(0.7, 1.4), rng.uniform(0.75, 1.0), rng.uniform(0.01, 0.04),
                      tuple(rng.uniform(-0.2, 0.2, 2)), rng.uniform(0.6, 1.0, 3))


def _draw_scene(rng: np.random.Generator, anatomy: Anatomy, size: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns brightness (S, S) in [0, 1] and labels (S, S)."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size),) * 2, indexing="ij")
    angle = np.arctan2(y, x)
    amplitude, phase = anatomy.wobble
    outline = 1 + sum(amplitude[k] * np.cos((k + 2) * angle + phase[k]) for k in range(4))
    body = np.hypot(y / anatomy.axes[0], x / anatomy.axes[1]) < outline
    texture = gaussian_filter(rng.standard_normal((size, size)), anatomy.texture_px * size)
    tissue = np.where(body, 0.5 + 0.08 * texture / texture.std(), 0.02)
    mask = np.zeros((size, size), np.uint8)
    for label in range(1, n_classes):
        for _ in range(int(rng.integers(1, 3))):
            inside = _draw_object(rng, anatomy, y, x) & body & (mask == 0)
            mask[inside] = label
            tissue[inside] = OBJECT_LEVELS[label - 1] + 0.3 * (tissue[inside] - 0.5)
    return gaussian_filter(tissue, 0.008 * size), mask


def _draw_object(rng: np.random.Generator, anatomy: Anatomy, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    turn, far, where = rng.uniform(0, np.pi), 0.45 * np.sqrt(rng.uniform()), rng.uniform(0, 2 * np.pi)
    dy, dx = y - far * np.sin(where), x - far * np.cos(where)
    radius = anatomy.object_radius * rng.uniform(0.8, 1.2)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return np.hypot(along, across / anatomy.object_ratio) < radius


def _scan(rng: np.random.Generator, tissue: np.ndarray, appearance: Appearance) -> np.ndarray:
    """Returns the brightness (S, S) as the scanner shows it, (S, S, 3) in [0, 1]."""
    ramp = np.linspace(-1, 1, len(tissue))
    bias = np.exp(appearance.bias[0] * ramp[:, None] + appearance.bias[1] * ramp[None, :])
    clean = appearance.gain * np.clip(tissue, 0, 1) ** appearance.gamma * bias
    noisy = clean[..., None] * appearance.tint / appearance.tint[0]
    return np.clip(noisy + appearance.noise * rng.standard_normal(noisy.shape), 0, 1)


def main() -> None:
    """Writes a phantom as a folder with images/, masks/, groups.csv and dataset.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    for name, value in (("n", 100), ("size", 64), ("n-groups", 6), ("channels", 1), ("bit-depth", 8), ("seed", 0),
                        ("n-classes", 2)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"default {value}")
    args = parser.parse_args()
    try:
        pairs = make_phantom(args.n, size=args.size, n_groups=args.n_groups, channels=args.channels,
                             bit_depth=args.bit_depth, seed=args.seed, n_classes=args.n_classes)
        write_folder(pairs, args.out)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{len(pairs)} pairs of {args.n_groups} patients in {args.out}")


if __name__ == "__main__":
    main()

"""What does a spectral match cost? Against the bare Fourier transforms it needs, against an FDA loop in NumPy; memory.

    python scripts/benchmarks/spectral.py --json spectral.json [--data DIR] [--quick]

`ratio/match_over_fft` is seconds of `match_amplitude` (form ratio, all defaults) over those of one forward and one
inverse transform of the same images with the same margin, in the faster of one call and as many calls as the match
makes. The match returns images in memory of its own, the results of the transforms are dropped. About half of the
template's slices have black corners that are found to be frames, so that this row pays for frames too. `_framed` is the
same with a dark frame drawn round each image, as an endoscope's. `ratio/ours_over_numpy_fda` is our images per second
over those of an FDA loop in plain NumPy, one image and one full complex transform at a time.
`rss_mb/N` is the peak memory of a process that fits a prior on N images, which are made when asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from common import (
    Row,
    Timing,
    alternate,
    begin,
    only_set,
    parser,
    ratio_row,
    run_script,
    settings_for,
    spread_row,
    write,
)

from segtrain.compare.prepare import prepare
from synth.core.device import rows_at_a_time
from synth.core.pairs import DataInfo, ImageSet, Item
from synth.core.rng import sample_rng
from synth.core.space import pixels_to_unit
from synth.spectral import Border, FrequencyPrior, MatchSettings, SwapSettings, draw_match, draw_swap, match_amplitude
from synth.spectral.borders import extend, padded_side
from synth.spectral.swap import swap_amplitude

BETA = 0.05
SIZES = (1000, 10000)


def fft_pair(images: torch.Tensor, *, n: int) -> None:
    """Transforms extended images (B, C, h, w) forth and back, `n` at a time."""
    for some in images.split(n):
        torch.fft.irfft2(torch.fft.rfft2(some, norm="ortho"), s=some.shape[-2:], norm="ortho")


def numpy_fda(image: np.ndarray, reference: np.ndarray, *, beta: float) -> np.ndarray:
    """Returns image (C, H, W) with the low amplitudes of `reference` (C, H, W), as one would write it in NumPy.

    Fourier domain adaptation (Yang & Soatto 2020, eq. 2-4).
    """
    own, other = (np.fft.fft2(x, axes=(-2, -1)) for x in (image, reference))
    amplitude, height, width = np.fft.fftshift(np.abs(own), axes=(-2, -1)), *image.shape[-2:]
    theirs, reach = np.fft.fftshift(np.abs(other), axes=(-2, -1)), int(beta * min(height, width))
    rows = slice(height // 2 - reach, height // 2 + reach + 1)
    columns = slice(width // 2 - reach, width // 2 + reach + 1)
    amplitude[..., rows, columns] = theirs[..., rows, columns]
    changed = np.fft.ifftshift(amplitude, axes=(-2, -1)) * np.exp(1j * np.angle(own))
    return np.real(np.fft.ifft2(changed, axes=(-2, -1)))


def albumentations_fda(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, beta: float) -> Callable[[int], object]:
    """Returns a call that gives images (C, H, W) in [0, 1] their references' low amplitudes, by albumentations' FDA."""
    import albumentations

    change = albumentations.Compose([albumentations.FDA(beta_limit=(beta, beta), p=1.0)])
    given = [tuple(np.ascontiguousarray(x.transpose(1, 2, 0), np.float32) for x in pair) for pair in pairs]
    return lambda _: [change(image=own, fda_metadata=[other]) for own, other in given]


def framed(images: torch.Tensor) -> torch.Tensor:
    """Returns unit images (B, C, H, W), black outside an ellipse that touches the borders."""
    y, x = (torch.linspace(-1, 1, side) for side in images.shape[-2:])
    return torch.where(torch.hypot(y[:, None], x[None]) < 1, images, -1.0)


def made_images(n: int, *, size: int) -> ImageSet:
    """Returns n grey images of `size` px, each made from its number when it is read."""
    def reader(i: int) -> Callable[[], tuple[np.ndarray, None]]:
        return lambda: (np.random.default_rng(i).integers(0, 256, (size, size), np.uint8), None)

    items: Iterator[Item] = (Item(str(i), f"g{i % 50}", reader(i)) for i in range(n))
    return ImageSet(list(items), DataInfo(("background", "thing"), 1, 8, (0.0, 255.0)))


def peak_mb(n: int, *, size: int) -> float:
    """Returns the peak memory, MB, of a process that fits a prior on n images."""
    command = [sys.executable, str(Path(__file__).resolve()), "--fit", str(n), "--fit-size", str(size)]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True)
    out, _ = child.communicate()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return float(json.loads(out)["rss_mb"])


def fit_here(n: int, *, size: int) -> None:
    """Fits a prior on n images and prints this process's peak memory as JSON."""
    import resource

    FrequencyPrior.fit(made_images(n, size=size), kind="whole", size=size)
    kilo = 1024 if sys.platform != "darwin" else 1024**2  # kB, on macOS bytes
    print(json.dumps({"rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / kilo}))


def timings(images: torch.Tensor, *, rounds: int) -> dict[str, Timing]:
    """Returns the seconds of each competitor on unit images (B, C, S, S)."""
    n, size = len(images), images.shape[-1]
    prior = _prior(images)
    rngs = [sample_rng(i, "benchmark") for i in range(n)]
    match = draw_match(rngs, MatchSettings(strength=(0.3, 0.3)))
    swap = draw_swap(rngs, SwapSettings(beta=(BETA, BETA)))
    dark, references = framed(images), images.roll(1, 0)
    pairs = [((a + 1) / 2, (b + 1) / 2) for a, b in zip(images.numpy(), references.numpy(), strict=True)]
    side = padded_side(size, Border().pad)
    whole = extend(images, (side, side))
    calls: dict[str, Callable[[int], object]] = {
        "fft_once": lambda _: fft_pair(whole, n=n),
        "fft_parts": lambda _: fft_pair(whole, n=rows_at_a_time(images)),
        "match": lambda _: match_amplitude(images, prior, match),
        "match_framed": lambda _: match_amplitude(dark, prior, match),
        "fda": lambda _: swap_amplitude(images, references, swap),
        "numpy_fda": lambda _: [numpy_fda(a, b, beta=BETA) for a, b in pairs],
    }
    if find_spec("albumentations"):
        calls["albumentations_fda"] = albumentations_fda(pairs, beta=BETA)
    for call in calls.values():
        call(0)
    return alternate(calls, rounds=rounds)


def _prior(images: torch.Tensor) -> FrequencyPrior:
    pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    shown = [p[..., 0] if p.shape[-1] == 1 else p for p in pixels]
    info = DataInfo(("background", "thing"), images.shape[1], 8, (0.0, 255.0))
    items = [Item(str(i), str(i), lambda p=p: (p, None)) for i, p in enumerate(shown)]
    return FrequencyPrior.fit(ImageSet(items, info), kind="whole", size=images.shape[-1])


def rows_of(found: dict[str, Timing], *, n: int) -> list[Row]:
    """Returns the rows of `timings` of n images."""
    bare = min((found["fft_once"], found["fft_parts"]), key=lambda t: t.median)
    others = [name for name in ("numpy_fda", "albumentations_fda") if name in found]
    return [ratio_row("ratio/match_over_fft", found["match"], bare),
            ratio_row("ratio/match_over_fft_framed", found["match_framed"], bare),
            *(ratio_row(f"ratio/ours_over_{name}", found[name], found["fda"]) for name in others),
            *(spread_row(f"images_per_s/{name}", [n / s for s in t.seconds], unit="1/s")
              for name, t in (("fft", bare), *((k, found[k]) for k in ("match", "match_framed", "fda", *others))))]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    arguments = parser(__doc__)
    arguments.add_argument("--fit", type=int, help=argparse.SUPPRESS)
    arguments.add_argument("--fit-size", type=int, help=argparse.SUPPRESS)
    args = begin(arguments, argv)
    if args.fit is not None:
        fit_here(args.fit, size=args.fit_size)
        return
    size, n, rounds = (64, 8, 7) if args.quick else (256, 16, 31)
    pairs = prepare(settings_for(only_set(args), args, [f"size={size}"])).labelled
    some = pairs.select(range(min(n, len(pairs))))
    images = pixels_to_unit(some.arrays(size).images, some.info.intensity_range)
    rows = rows_of(timings(images, rounds=rounds), n=len(images))
    rows += [Row(f"rss_mb/{k}", peak_mb(k, size=32 if args.quick else 128), unit="MB") for k in SIZES]
    write(rows, args, [0])


if __name__ == "__main__":
    run_script(main)

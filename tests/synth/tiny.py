"""Tiny real parts that the tests of the generative engine share: an untrained pipeline, settings, sets, launchers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from synth.core.config import load_config
from synth.core.pairs import DataInfo, PairSet, memory_set
from synth.diffusion.autoencoder import build_autoencoder, encode_statistics, standardise
from synth.diffusion.codec import PixelCodec, latent_channels
from synth.diffusion.denoiser import build_denoiser, build_scheduler
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.settings import AutoencoderSettings, DenoiserSettings, SamplerSettings
from synth.gan.recipe import build_translator
from synth.gan.restyle.looks import N_BANDS
from synth.gan.restyle.network import StyleTranslator
from synth.gan.restyle.pipeline import AppearancePipeline
from synth.gan.settings import TranslateSettings
from synth.gan.translate import TranslatePipeline
from synth.gates import Gates, default_gates

AUTOENCODER = AutoencoderSettings(kind="kl", widths=(8, 16, 16))
DENOISER = DenoiserSettings(widths=(8, 16), attention=(False, True), layers=1)
FIT = {
    "size": 32,
    "autoencoder": {"kind": "kl", "widths": [8, 16, 16], "batch_size": 4, "perceptual_weight": 0,
                    "adversarial_weight": 0,
                    "loop": {"steps": 6, "log_every": 2, "checkpoint_every": 2}},
    "denoiser": {"widths": [8, 16], "attention": [False, True], "layers": 1, "n_views": 2, "batch_size": 4,
                 "loop": {"steps": 6, "log_every": 2, "checkpoint_every": 2}},
    "health": {"max_border_error": 99, "max_gradient_error": 99, "min_latent_std": 0, "max_latent_std": 99},
    "sampler": {"n_steps": 3},
}
"""Settings of a fit that takes a second; nobody could paint with its autoencoder, so its health is not looked at."""


def tiny_pipeline(*, channels: int = 1, size: int = 32, value_range: tuple[float, float] = (0, 255),  # noqa: PLR0913
                  seed: int = 0, sampler: SamplerSettings | None = None, kind: str = "pixels",
                  tells_labels: bool = True) -> InpaintPipeline:
    """Returns an untrained pipeline in pixels (cells of 4 px) or latents (`kind` "kl"), equal for equal arguments."""
    if sampler is None:
        sampler = SamplerSettings(n_steps=4, jump_length=2, jump_repeats=2, margin_cells=(1, 1))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = (PixelCodec(in_channels=channels, sample_size=size, patch=4) if kind == "pixels"
               else build_autoencoder(AUTOENCODER, channels=channels, size=size).eval())
        unet = build_denoiser(DENOISER, latent_channels=latent_channels(vae), latent_size=size // 4, n_classes=3)
        standardise(vae, encode_statistics(vae, torch.rand(8, channels, size, size) * 2 - 1))
    pipeline = InpaintPipeline(vae, unet.eval(), build_scheduler(DENOISER), n_classes=3, tells_labels=tells_labels,
                               unit_low=float(value_range[0]), unit_high=float(value_range[1]), **sampler.model_dump())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


TRANSLATE = {
    "kind": "translate", "size": 32, "batch_size": 4,
    "translator": {"widths": [8, 8, 16], "hidden": 8, "n_code": 4},
    "discriminator": {"width": 4, "widths": [8, 8, 16]},
    "collapse": {"features": "random"},
    "loop": {"steps": 6, "log_every": 2, "checkpoint_every": 2},
}
"""Settings of a translator's fit that takes a second."""


def tiny_translator(model: str, *, channels: int = 1, value_range: tuple[float, float] = (0, 255)) -> TranslatePipeline:
    """Returns an untrained translator to images of 32 px, equal for equal arguments."""
    settings = load_config(TranslateSettings, {**TRANSLATE, "model": model})
    net = build_translator(settings, channels=channels, n_classes=3)
    pipeline = TranslatePipeline(net.eval(), 3, model, unit_low=float(value_range[0]), unit_high=float(value_range[1]))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


APPEARANCE = {
    "kind": "appearance", "size": 32, "batch_size": 4,
    "translator": {"widths": [8, 16], "n_blocks": 1, "n_code": 4},
    "discriminator": {"width": 4}, "coach": {"widths": [8, 16]},
    "health": {"min_moved": -99},
    "loop": {"steps": 6, "log_every": 2, "checkpoint_every": 2},
}
"""Settings of a fit of appearances that takes a second, and whose health is not looked at."""


def tiny_appearance(*, channels: int = 1, value_range: tuple[float, float] = (0, 255), n_styles: int = 3,
                    bit_depth: int | None = None) -> AppearancePipeline:
    """Returns an untrained translator of appearances at 32 px, equal for equal arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = StyleTranslator(channels, 32, n_styles, 8, (8, 16), 1, 0.2)
    n = 2 * channels + N_BANDS
    pipeline = AppearancePipeline(net.eval(), [f"site {k}" for k in range(n_styles)],
                                  [[float(k)] * n for k in range(n_styles)], [1.0] * n,
                                  unit_low=float(value_range[0]), unit_high=float(value_range[1]), bit_depth=bit_depth)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def squares(n: int = 6, *, size: int = 32, n_groups: int = 3, seed: int = 0) -> PairSet:
    """Returns grey pairs: a smooth dark background of its own, and one bright square, which is the foreground."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(n):
        texture = gaussian_filter(rng.standard_normal((size, size)), 3, mode="reflect")
        mask = np.zeros((size, size), np.uint8)
        top, left = rng.integers(6, size - 16, 2)
        mask[top:top + 9, left:left + 9] = 1
        images.append(np.where(mask == 1, 230, np.clip(80 + 20 * texture / texture.std(), 0, 150)).astype(np.uint8))
        masks.append(mask)
    info = DataInfo(("background", "square"), 1, 8, (0.0, 255.0))
    pairs = memory_set(images, masks, info, ids=[f"s{i}" for i in range(n)],
                       groups=[f"g{i % n_groups}" for i in range(n)])
    assert isinstance(pairs, PairSet)
    return pairs


def half_strict(pairs: PairSet) -> Gates:
    """Returns gates that reject about half of what the untrained pipeline draws from `squares`."""
    gates = default_gates(None, pairs, size=32)
    return dataclasses.replace(gates, max_correlation=0.06, identity=f"{gates.identity}-strict")


def brightness_judge(images: torch.Tensor) -> torch.Tensor:
    """Returns probabilities (B, 2, H, W) of unit images (B, C, H, W): what is bright is a square."""
    p = torch.sigmoid(40 * (images.mean(1) - 0.5))
    return torch.stack([1 - p, p], 1)


def blind_judge(images: torch.Tensor) -> torch.Tensor:
    """Returns probabilities (B, 2, H, W) of unit images (B, C, H, W): background everywhere."""
    p = torch.full_like(images[:, 0], 0.01)
    return torch.stack([1 - p, p], 1)


def files_of(folder: Path) -> dict[str, str]:
    """Returns the SHA-256 of every file below `folder` but locks, by relative path."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock"}


@contextmanager
def room_of(n_bytes: int) -> Iterator[None]:
    """Returns a context in which no file of this process can grow beyond `n_bytes`, as if the device were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def launch(words: Sequence[str | Path], *, environment: Mapping[str, str] | None = None,
           n_processes: int = 1) -> subprocess.CompletedProcess:
    """Returns `python WORDS` when it has ended, or, for several processes, the same under accelerate.

    `--multi_gpu` starts them, on a machine without GPUs too; `--cpu` starts one process, whatever number it is given.
    """
    accelerate = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(n_processes),
                  "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
                  "--main_process_port", "0"]
    command = [sys.executable, *(accelerate if n_processes > 1 else []), *map(str, words)]
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    path = os.pathsep.join(map(str, (here, root / "scripts", root)))
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env={
        **os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path, **(environment or {})})


def killed_and_whole(job: str, folder: Path) -> dict:
    """Returns what `killed.py` says of `job`: `folder`/whole ran through, `folder`/killed was killed and resumed.

    Asserts that both ended well, and that a kill did hit.
    """
    done = launch([Path(__file__).parent / "killed.py", job, folder])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["codes"] == [0, 0] and said["hits"] >= 1, (said, done.stderr)
    return said


UNPAIRED = {
    "kind": "unpaired", "size": 32, "batch_size": 4,
    "labeller": {"widths": [8, 8, 16]}, "translator": {"widths": [8, 8, 16], "n_code": 4},
    "shape": {"widths": [8, 16], "n_code": 4}, "discriminator": {"width": 4},
    "layout": {"flip": "none", "shift": 0.05, "recombine": 0.0},
    "health": {"features": "random", "swap_margin": 9, "max_alike": 9},
    "loop": {"steps": 6, "log_every": 2, "checkpoint_every": 2},
}
"""Settings of an unpaired fit that takes a second; it has learnt nothing, so its labels may be alike or inverted."""

"""The sampler's mathematics: its walk, what stays, both halves at one noise level, and the law it converges to."""

from __future__ import annotations

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from tiny import tiny_pipeline
from torch import nn

from synth.core.checks import UserError
from synth.core.rng import sample_rng
from synth.core.space import labels_to_keep
from synth.diffusion.denoiser import build_scheduler
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.samplers import Denoise, Known, n_evaluations, resampling_walk, sample_ddim
from synth.diffusion.settings import SamplerSettings

ALPHAS = build_scheduler().alphas_cumprod
"""Cumulative alphas of all 1000 training levels; the last is exactly 0."""


def alphas_of(n: int) -> torch.Tensor:
    """Returns cumulative alphas of levels 0..n in double precision, (n + 1,), evenly spaced in training time."""
    picked = torch.linspace(0, 999, n + 1)[1:].round().long()
    return torch.cat([torch.ones(1), ALPHAS[picked]]).double()


def gaussian(alphas: torch.Tensor, *, mean: float, std: float) -> Denoise:
    """Returns the exact denoiser of data that are normal, independent, with this mean and std."""
    def denoise(z: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        a = alphas[level]
        clean = mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (z - a.sqrt() * mean)
        return clean, (z - a.sqrt() * clean) / (1 - a).sqrt()

    return denoise


def rngs(n: int, name: str = "noise") -> list[torch.Generator]:
    """Returns n fresh generators."""
    return [sample_rng(i, name) for i in range(n)]


@pytest.mark.parametrize(("n_steps", "length", "repeats", "evaluations"), [
    (250, 10, 10, 2410), (100, 10, 10, 910), (50, 10, 10, 410), (50, 10, 5, 210), (50, 5, 3, 140), (50, 5, 2, 95),
    (25, 5, 2, 45), (50, 10, 1, 50), (7, 3, 1, 7), (1, 5, 4, 1), (3, 5, 4, 3)])
def test_the_walk_makes_as_many_evaluations_as_the_papers(n_steps: int, length: int, repeats: int,
                                                          evaluations: int) -> None:
    walk = resampling_walk(n_steps, jump_length=length, jump_repeats=repeats)
    assert n_evaluations(n_steps, jump_length=length, jump_repeats=repeats) == evaluations
    assert walk[0][0] == n_steps and walk[-1] == (1, 0)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(walk))
    ups = [(a, b) for a, b in walk if b > a]
    assert all(b - a == length for a, b in ups) and all(a - b == 1 for a, b in walk if a > b)
    assert len(walk) == evaluations + len(ups) and len(ups) * length == evaluations - n_steps


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("repeats", [1, 3])
def test_what_is_kept_everywhere_comes_out_exactly(eta: float, repeats: int) -> None:
    alphas, known = alphas_of(8), torch.randn(2, 4, 8, 8, generator=sample_rng(0), dtype=torch.float64)
    keep = torch.ones(2, 1, 8, 8, dtype=torch.bool)
    out = sample_ddim(gaussian(alphas, mean=-3, std=0.2), torch.randn_like(known), alphas, rngs=rngs(2), eta=eta,
                      walk=resampling_walk(8, jump_length=2, jump_repeats=repeats),
                      known=Known(known, keep, rngs(2, "known")))
    assert torch.equal(out, known)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_nothing_to_keep_it_is_the_plain_sampler_bit_for_bit(eta: float) -> None:
    alphas, start = alphas_of(8), torch.randn(2, 4, 8, 8, generator=sample_rng(1), dtype=torch.float64)
    walk = resampling_walk(8, jump_length=2, jump_repeats=2)
    denoise = gaussian(alphas, mean=1, std=0.5)
    known = Known(torch.full_like(start, 9), torch.zeros(2, 1, 8, 8, dtype=torch.bool), rngs(2, "known"))
    plain = sample_ddim(denoise, start, alphas, walk=walk, rngs=rngs(2), eta=eta)
    assert torch.equal(plain, sample_ddim(denoise, start, alphas, walk=walk, rngs=rngs(2), eta=eta, known=known))


@pytest.mark.parametrize(("eta", "repeats"), [(1.0, 1), (0.0, 1), (1.0, 3)])
def test_both_halves_are_at_one_noise_level_before_every_evaluation(eta: float, repeats: int) -> None:
    n, side, kept = 10, 96, 3.0  # far beyond 1: a clamp of the clean latents would show
    alphas = alphas_of(n)
    exact, seen = gaussian(alphas, mean=-1.0, std=0.5), []

    def recording(z: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((level, z.clone()))
        return exact(z, level)

    keep = torch.zeros(1, 1, side, side, dtype=torch.bool)
    keep[..., : side // 2] = True
    latents = torch.full((1, 1, side, side), kept, dtype=torch.float64)
    start = torch.randn(latents.shape, generator=sample_rng(2), dtype=torch.float64)
    out = sample_ddim(recording, start, alphas, walk=resampling_walk(n, jump_length=3, jump_repeats=repeats),
                      rngs=rngs(1), eta=eta, known=Known(latents, keep, rngs(1, "known")))
    assert len(seen) == n_evaluations(n, jump_length=3, jump_repeats=repeats)
    count = side * side // 2
    for level, z in seen[1:]:
        a = float(alphas[level])
        known = z[keep.expand_as(z)]
        assert abs(float(known.mean()) - a**0.5 * kept) < 5 * ((1 - a) / count) ** 0.5
        assert abs(float(known.var()) / (1 - a) - 1) < 5 * (2 / count) ** 0.5
        painted = z[~keep.expand_as(z)]
        assert abs(float(painted.var()) - (a * 0.25 + 1 - a)) < 0.12
    assert torch.equal(out[keep], latents[keep])


def affine_of(n: int, *, mean: float, std: float) -> tuple[float, float]:
    """Returns mean and std of what deterministic DDIM draws in n steps: it is affine in the noise, so two runs tell."""
    alphas = alphas_of(n)
    start = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    out = sample_ddim(gaussian(alphas, mean=mean, std=std), start, alphas, rngs=rngs(2), eta=0.0,
                      walk=resampling_walk(n, jump_length=5, jump_repeats=1)).flatten()
    return float(out[0]), float(out[1] - out[0])


def test_deterministic_sampling_converges_to_the_law_of_the_data() -> None:
    mean, std = 0.7, 0.4
    drawn = [affine_of(n, mean=mean, std=std) for n in (8, 32, 128, 512)]
    errors = [abs(s - std) for _, s in drawn]
    assert all(b < 0.6 * a for a, b in itertools.pairwise(errors)), errors
    assert errors[-1] < 0.02 * std
    means = [abs(m - mean) for m, _ in drawn]
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(means)) and means[-1] < 0.02


@pytest.mark.parametrize("repeats", [1, 2])
def test_ancestral_sampling_converges_to_the_law_of_the_data(repeats: int) -> None:
    mean, std, errors = -0.5, 0.6, []
    start = torch.randn(1, 1, 160, 160, generator=sample_rng(4), dtype=torch.float64)
    for n in (16, 64, 256):
        alphas = alphas_of(n)
        out = sample_ddim(gaussian(alphas, mean=mean, std=std), start, alphas, rngs=rngs(1), eta=1.0,
                          walk=resampling_walk(n, jump_length=8, jump_repeats=repeats))
        assert abs(float(out.mean()) - mean) < 0.03
        errors.append(abs(float(out.std()) / std - 1))
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.05, errors


class Analytic(nn.Module):
    """The exact denoiser of normal data behind a UNet's call: predicts v or epsilon as its scheduler wants it."""

    device = torch.device("cpu")

    def __init__(self, alphas: torch.Tensor, kind: str) -> None:
        super().__init__()
        self.alphas, self.kind = alphas.double(), kind

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> object:
        a = self.alphas[t].view(-1, 1, 1, 1)
        clean = 0.3 + a.sqrt() * 0.25 / (a * 0.25 + 1 - a) * (z - a.sqrt() * 0.3)
        noise = (z - a.sqrt() * clean) / (1 - a).sqrt()
        out = noise if self.kind == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * clean
        return type("Output", (), {"sample": out.to(z.dtype)})


def request() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns two unit images (2, 1, 32, 32) and their labels (2, 32, 32)."""
    mask = torch.zeros(2, 32, 32, dtype=torch.long)
    mask[:, 8:16, 10:22] = 1
    return torch.rand(2, 1, 32, 32, generator=sample_rng(6)) * 1.6 - 0.8, mask


def test_v_and_epsilon_prediction_paint_the_same_image() -> None:
    painted = {}
    for kind in ("v_prediction", "epsilon"):
        pipeline = tiny_pipeline(sampler=SamplerSettings(n_steps=8))
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type=kind,
                                              rescale_betas_zero_snr=False)
        parts = InpaintPipeline(pipeline.vae, pipeline.unet, scheduler, n_steps=8)
        parts.unet = Analytic(scheduler.alphas_cumprod, kind)
        image, mask = request()
        painted[kind] = parts.sample(image, mask, seeds=[1, 2])
    assert torch.allclose(painted["v_prediction"], painted["epsilon"], atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_zero_terminal_signal_is_no_division_by_zero(eta: float) -> None:
    pipeline = tiny_pipeline(sampler=SamplerSettings(n_steps=4, jump_repeats=2, jump_length=2, eta=eta))
    alphas, steps = pipeline.levels(4)
    assert alphas[-1] == 0 and steps[-1] == 999 and alphas[0] == 1 and (alphas.diff() < 0).all()
    image, mask = request()
    assert torch.isfinite(pipeline.sample(image, mask, seeds=[1, 2])).all()


@pytest.mark.parametrize("scheduler", [DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler])
def test_another_scheduler_may_be_swapped_in(scheduler: type) -> None:
    pipeline = tiny_pipeline()
    image, mask = request()
    before, content = pipeline.sample(image, mask, seeds=[1, 2]), pipeline.content_hash()
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    after = pipeline.sample(image, mask, seeds=[1, 2])
    keep = labels_to_keep(mask)[:, None]
    assert torch.isfinite(after).all() and torch.equal(after[keep], image[keep])
    assert (after - before).abs().max() < 0.5, "another schedule altogether"
    assert pipeline.content_hash() != content


def test_a_scheduler_that_predicts_something_else_is_refused() -> None:
    pipeline = tiny_pipeline()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="sample")
    image, mask = request()
    with pytest.raises(UserError, match="prediction_type=sample"):
        pipeline.sample(image, mask, seeds=[1, 2])


def test_without_resampling_the_network_is_called_once_per_level() -> None:
    for repeats, expected in ((1, 6), (2, 10)):
        pipeline = tiny_pipeline(sampler=SamplerSettings(n_steps=6, jump_length=2, jump_repeats=repeats))
        calls = []
        pipeline.unet.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        image, mask = request()
        seen = []
        pipeline.paint(image, labels_to_keep(mask), seeds=[1, 2], callback=lambda i, n, seen=seen: seen.append((i, n)))
        assert len(calls) == expected and seen == [(i + 1, expected) for i in range(expected)]

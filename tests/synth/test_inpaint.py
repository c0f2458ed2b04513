"""The pipeline: the generator's contract, masks on the latent grid, blending, strength, forms of output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract_generator import GeneratorContract, request
from diffusers import AutoencoderTiny, EDMDPMSolverMultistepScheduler
from PIL import Image
from tiny import AUTOENCODER, tiny_pipeline

from synth.core.checks import UserError
from synth.core.rng import sample_rng
from synth.core.space import labels_to_keep
from synth.diffusion.autoencoder import build_autoencoder
from synth.diffusion.codec import PixelCodec, latents_to_unit, load_codec, unit_to_latents
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.regions import blend_alpha, draw_margins, grow_cells, keep_to_latent
from synth.diffusion.settings import SamplerSettings
from synth.generator import kept_pixels


class TestGreyInpaint(GeneratorContract):
    """An 8-bit grey pipeline keeps the contract."""

    @pytest.fixture(scope="class")
    def generator(self) -> InpaintPipeline:
        """Returns it."""
        return tiny_pipeline()


class TestRgbInpaint(GeneratorContract):
    """So does one for RGB."""

    @pytest.fixture(scope="class")
    def generator(self) -> InpaintPipeline:
        """Returns it."""
        return tiny_pipeline(channels=3, seed=1)


class TestDeepGreyInpaint(GeneratorContract):
    """And one for 16-bit grey, whose pixels fill 12 bits."""

    @pytest.fixture(scope="class")
    def generator(self) -> InpaintPipeline:
        """Returns it."""
        return tiny_pipeline(value_range=(0, 4095), seed=2)


class TestLatentInpaint(GeneratorContract):
    """And one on the latents of an autoencoder, which keeps the pixels of its source."""

    @pytest.fixture(scope="class")
    def generator(self) -> InpaintPipeline:
        """Returns it."""
        return tiny_pipeline(kind="kl", seed=3, sampler=SamplerSettings(
            n_steps=4, margin_cells=(1, 1), texture="source"))


def random_masks(n: int, side: int, *, share: float) -> torch.Tensor:
    """Returns random keep masks (n, side, side) bool, single pixels included."""
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(3)) < share


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_no_foreground_pixel_is_lost_on_the_latent_grid(factor: int, share: float) -> None:
    keep = random_masks(20, 32, share=share)
    for margin in (0, 1, 2):
        latent = grow_cells(keep_to_latent(keep, factor=factor), [margin] * 20)
        assert latent.shape == (20, 1, 32 // factor, 32 // factor) and latent.dtype == torch.bool
        back = F.interpolate(latent.float(), scale_factor=factor, mode="nearest")[:, 0] > 0
        assert (back | ~keep).all()


def test_the_keep_mask_grows_by_whole_cells() -> None:
    keep = torch.zeros(1, 32, 32, dtype=torch.bool)
    keep[0, 13, 18] = True
    for margin in (0, 1, 2):
        latent = grow_cells(keep_to_latent(keep, factor=4), [margin])[0, 0]
        rows, columns = latent.nonzero().unbind(1)
        assert latent.sum() == (2 * margin + 1) ** 2
        assert (rows.min(), rows.max()) == (3 - margin, 3 + margin)
        assert (columns.min(), columns.max()) == (4 - margin, 4 + margin)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 8])
def test_the_blend_is_one_on_the_foreground_and_zero_beyond_its_width(width: int) -> None:
    keep = torch.zeros(1, 48, 48, dtype=torch.bool)
    keep[0, 20:27, 18:30] = True
    alpha = blend_alpha(keep, width_px=width)
    assert alpha.shape == (1, 1, 48, 48) and alpha.min() >= 0 and alpha.max() == 1
    assert (alpha[0, 0][keep[0]] == 1).all()
    far = F.max_pool2d(keep[None].float(), 2 * width + 1, stride=1, padding=width)[0, 0] == 0
    assert (alpha[0, 0][far] == 0).all()
    across = alpha[0, 0, 23, 29:].diff()
    assert (across <= 1e-6).all(), "falls off on the way out"
    if width >= 4:
        assert across.abs().max() < 0.75, "a step, not a transition"


@pytest.mark.parametrize("width", [2, 3, 4, 6, 8, 16])
def test_no_foreground_pixel_has_less_than_all_the_weight(width: int) -> None:
    keep = F.max_pool2d(random_masks(20, 48, share=0.02)[:, None].float(), 7, stride=1, padding=3)[:, 0] > 0
    alpha = blend_alpha(keep, width_px=width)[:, 0]
    assert (alpha[keep] == 1).all() and alpha.max() == 1


def test_an_empty_and_a_full_mask_blend_to_nothing_and_to_everything() -> None:
    assert (blend_alpha(torch.zeros(1, 16, 16, dtype=torch.bool), width_px=4) == 0).all()
    assert (blend_alpha(torch.ones(1, 16, 16, dtype=torch.bool), width_px=4) == 1).all()


@pytest.fixture(scope="module")
def pipeline() -> InpaintPipeline:
    """Returns a grey pipeline."""
    return tiny_pipeline()


def test_the_foreground_is_exact_before_any_rounding(pipeline: InpaintPipeline) -> None:
    image, mask = request(pipeline)
    keep = labels_to_keep(mask)[:, None]
    assert torch.equal(pipeline.sample(image, mask, seeds=[1, 2, 3])[keep], image[keep])


def test_all_classes_are_kept_but_ignored_pixels_are_painted(pipeline: InpaintPipeline) -> None:
    image, _ = request(pipeline)
    mask = torch.zeros(3, 32, 32, dtype=torch.long)
    mask[:, :8], mask[:, 8:16], mask[:, 24:] = 1, 2, 255
    painted = pipeline.sample(image, mask, seeds=[1, 2, 3])
    assert torch.equal(painted[:, :, :16], image[:, :, :16])
    assert (painted[:, :, 26:] - image[:, :, 26:]).abs().mean() > 0.01


def test_nothing_of_the_old_surrounding_reaches_an_empty_mask(pipeline: InpaintPipeline) -> None:
    image, _ = request(pipeline)
    mask = torch.zeros(3, 32, 32, dtype=torch.long)
    assert torch.equal(pipeline.sample(image, mask, seeds=[1, 2, 3]),
                       pipeline.sample(-image, mask, seeds=[1, 2, 3]))


def test_less_strength_stays_closer_to_the_source(pipeline: InpaintPipeline) -> None:
    image, mask = request(pipeline)
    keep = labels_to_keep(mask)
    outside = ~keep[:, None]
    far = [float((pipeline.paint(image, keep, seeds=[1, 2, 3], n_steps=20, strength=s) - image)[outside].abs().mean())
           for s in (0.05, 0.4, 1.0)]
    assert far[0] < far[1] < far[2]
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(UserError, match="strength"):
            pipeline.paint(image, keep, seeds=[1, 2, 3], strength=wrong)


@pytest.mark.parametrize("kind", ["pixels", "kl"])
def test_what_is_kept_everywhere_is_the_round_trip(kind: str) -> None:
    pipeline = tiny_pipeline(kind=kind, sampler=SamplerSettings(n_steps=4, texture="codec"))
    image, _ = request(pipeline)
    everything = torch.ones(3, 32, 32, dtype=torch.bool)
    painted = pipeline.paint(image, everything, seeds=[1, 2, 3])
    assert torch.equal(painted, pipeline.transformed(image))
    rebuilt = latents_to_unit(pipeline.vae, unit_to_latents(pipeline.vae, image)).detach()
    assert torch.allclose(pipeline.transformed(image), rebuilt, atol=1e-6)
    if kind == "pixels":
        assert torch.equal(painted, image)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "heun", "dpmpp_2m"])
def test_every_sampler_keeps_the_foreground_and_counts_its_calls(sampler: str) -> None:
    pipeline = tiny_pipeline(sampler=SamplerSettings(sampler=sampler, n_steps=4, eta=0.5))
    image, mask = request(pipeline)
    calls, seen = [], []
    pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    painted = pipeline.paint(image, labels_to_keep(mask), seeds=[1, 2, 3], callback=lambda i, n: seen.append((i, n)))
    keep = labels_to_keep(mask)[:, None]
    assert torch.equal(painted[keep], image[keep]) and torch.isfinite(painted).all()
    expected = pipeline.evaluations()
    assert len(calls) == expected == (7 if sampler == "heun" else 4)
    assert seen == [(i + 1, expected) for i in range(expected)]


def test_guidance_costs_two_evaluations_a_step() -> None:
    pipeline = tiny_pipeline(sampler=SamplerSettings(n_steps=5, guidance=2.0))
    image, mask = request(pipeline)
    calls = []
    pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    pipeline.sample(image, mask, seeds=[1, 2, 3])
    assert len(calls) == pipeline.evaluations() == 10


def test_the_fast_preset_needs_eight_evaluations_and_the_same_networks(pipeline: InpaintPipeline) -> None:
    fast = pipeline.with_sampler("fast")
    assert fast.evaluations() <= 8 and fast.unet is pipeline.unet and fast.intensity_range == pipeline.intensity_range
    assert fast.content_hash() != pipeline.content_hash(), "the sampler is part of what drew a pair"
    assert pipeline.evaluations() == 6, "the pipeline itself is as before"
    with pytest.raises(UserError, match="preset=quick"):
        pipeline.with_sampler("quick")


def test_jobs_that_need_labels_are_refused_without_them() -> None:
    blind = tiny_pipeline(tells_labels=False)
    with pytest.raises(UserError, match="denoiser.labels=true"):
        blind.with_sampler(SamplerSettings(mode="object"))
    image, mask = request(blind)
    assert torch.equal(blind.paint(image, mask > 0, seeds=[1, 2, 3], labels=mask),
                       blind.paint(image, mask > 0, seeds=[1, 2, 3]))


def test_an_object_is_repainted_inside_its_ring_and_nowhere_else(pipeline: InpaintPipeline) -> None:
    image, mask = request(pipeline)
    objects = pipeline.with_sampler(SamplerSettings(n_steps=4, mode="object"))
    painted = objects.sample(image, mask, seeds=[1, 2, 3])
    keep = objects.kept(mask)
    assert torch.equal(painted[keep[:, None]], image[keep[:, None]])
    inside = labels_to_keep(mask)
    assert not (keep & inside).any()
    assert (painted - image)[inside[:, None]].abs().mean() > 0.05
    assert torch.equal(painted[2], image[2]), "an image without foreground has nothing to repaint"


def test_a_drawing_from_labels_depends_on_them_and_on_nothing_else(pipeline: InpaintPipeline) -> None:
    image, mask = request(pipeline)
    layout = pipeline.with_sampler(SamplerSettings(n_steps=4, mode="layout"))
    assert not layout.kept(mask).any()
    drawn = layout.sample(image, mask, seeds=[1, 1, 1])
    assert torch.equal(drawn, layout.sample(-image, mask, seeds=[1, 1, 1]))
    assert not torch.equal(drawn[0], drawn[1]), "one seed, two label maps"


def test_the_frame_is_kept_without_a_margin(pipeline: InpaintPipeline) -> None:
    image, mask = request(pipeline)
    frame = torch.zeros(3, 32, 32, dtype=torch.bool)
    frame[:, :, :4] = True
    painted = pipeline.sample(image, mask, seeds=[1, 2, 3], keep_in=frame)
    assert torch.equal(painted[frame[:, None]], image[frame[:, None]])
    assert (painted[2, :, :, 8:] - image[2, :, :, 8:]).abs().mean() > 0.05


def test_margins_are_drawn_for_each_pair_within_their_bounds() -> None:
    margins = draw_margins(range(300), (1, 3))
    assert set(margins) == {1, 2, 3} and min(margins.count(k) for k in (1, 2, 3)) > 60
    assert draw_margins(range(300), (1, 3)) == margins and set(draw_margins(range(9), (2, 2))) == {2}


def test_kept_pixels_by_job() -> None:
    labels = torch.zeros(1, 9, 9, dtype=torch.long)
    labels[0, 4, 4], labels[0, 0, 0] = 2, 255
    assert kept_pixels(labels, mode="surroundings", ring_px=2).sum() == 1
    assert kept_pixels(labels, mode="layout", ring_px=2).sum() == 0
    around = kept_pixels(labels, mode="object", ring_px=2)
    assert around.sum() == 81 - 25 and not around[0, 2:7, 2:7].any()


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


def test_a_saved_autoencoder_of_diffusers_is_taken_from_its_folder(tmp_path: object) -> None:
    kl = build_autoencoder(AUTOENCODER, channels=1, size=32)
    kl.save_pretrained(tmp_path / "kl")
    small = AutoencoderTiny(in_channels=1, out_channels=1, encoder_block_out_channels=(8, 8, 8),
                            decoder_block_out_channels=(8, 8, 8), num_encoder_blocks=(1, 1, 1),
                            num_decoder_blocks=(1, 1, 1))
    small.save_pretrained(tmp_path / "tiny")
    image = torch.rand(1, 1, 32, 32, generator=sample_rng(0)) * 2 - 1
    for name, codec in (("kl", kl), ("tiny", small)):
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


def test_another_scheduler_may_be_swapped_in(pipeline: InpaintPipeline) -> None:
    image, mask = request(pipeline)
    before = pipeline.sample(image, mask, seeds=[1, 2, 3])
    swapped = tiny_pipeline()
    swapped.scheduler = EDMDPMSolverMultistepScheduler.from_config(swapped.scheduler.config)
    assert torch.allclose(swapped.sample(image, mask, seeds=[1, 2, 3]), before, atol=1e-4), "the same levels"
    assert swapped.content_hash() != pipeline.content_hash()


def test_generators_stand_in_for_seeds(pipeline: InpaintPipeline) -> None:
    image, mask = (x[:2] for x in request(pipeline))

    def draw(generator: torch.Generator | list[torch.Generator]) -> torch.Tensor:
        return pipeline(image, mask, generator=generator, output_type="pt", num_inference_steps=2).images

    def rng(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    both = draw([rng(3), rng(4)])
    assert torch.equal(both, draw([rng(3), rng(4)]))
    assert torch.equal(both[0], draw([rng(3), rng(5)])[0]) and not torch.equal(both[1], draw([rng(3), rng(5)])[1])
    assert torch.equal(draw(rng(3)), draw(rng(3)))
    used = rng(3)
    assert not torch.equal(draw(used), draw(used))  # a generator moves on, as everywhere in torch
    with pytest.raises(UserError, match="give one of them"):
        pipeline(image, mask, seeds=(1, 2), generator=rng(3))


def test_called_like_any_diffusers_pipeline(pipeline: InpaintPipeline) -> None:
    image, mask = request(pipeline)
    pt = pipeline(image, mask, seeds=(1, 2, 3), output_type="pt", num_inference_steps=2).images
    array = pipeline(image, mask, seeds=(1, 2, 3), output_type="np", num_inference_steps=2).images
    pil = pipeline(image, mask, seeds=(1, 2, 3), num_inference_steps=2).images
    assert pt.shape == (3, 1, 32, 32) and array.shape == (3, 32, 32, 1)
    assert np.allclose(array[..., 0], (pt[:, 0].numpy() + 1) / 2, atol=1e-6)
    assert len(pil) == 3 and all(isinstance(p, Image.Image) and p.size == (32, 32) for p in pil)
    assert np.array_equal(np.asarray(pil[1]), np.rint((pt[1, 0].numpy() + 1) * 127.5).clip(0, 255).astype(np.uint8))
    with pytest.raises(UserError, match="output_type=latent"):
        pipeline(image, mask, seeds=(1, 2, 3), output_type="latent")


def test_the_hash_names_the_sampler_too() -> None:
    plain = tiny_pipeline()
    other = tiny_pipeline()
    assert plain.content_hash() == other.content_hash()
    other.register_to_config(eta=0.5)
    assert plain.content_hash() != other.content_hash()
    assert tiny_pipeline(value_range=(0, 200)).content_hash() != plain.content_hash()

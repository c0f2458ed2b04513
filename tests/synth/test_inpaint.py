"""The pipeline: the generator's contract, what is kept, strength, samplers, modes, forms of output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract_generator import GeneratorContract, request
from diffusers import EDMDPMSolverMultistepScheduler
from PIL import Image
from tiny import tiny_pipeline

from synth.core.checks import UserError
from synth.core.rng import randn_each, sample_rng
from synth.core.space import labels_to_keep
from synth.diffusion.codec import latents_to_unit, unit_to_latents
from synth.diffusion.denoiser import Told, guided
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.samplers import SAMPLERS
from synth.diffusion.settings import SamplerSettings


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
    with pytest.raises(UserError, match=r"guidance=2: .*denoiser.labels=true"):
        blind.with_sampler(SamplerSettings(guidance=2))
    image, mask = request(blind)
    assert torch.equal(blind.paint(image, mask > 0, seeds=[1, 2, 3], labels=mask),
                       blind.paint(image, mask > 0, seeds=[1, 2, 3]))
    with pytest.raises(UserError, match="label 7: .*classes 0 to 2"):
        tiny_pipeline().sample(image, torch.where(mask > 0, 7, mask), seeds=[1, 2, 3])


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


def test_with_nothing_kept_it_is_the_plain_sampler_bit_for_bit() -> None:
    pipeline = tiny_pipeline(sampler=SamplerSettings(n_steps=4, eta=1.0))
    image, _ = request(pipeline)
    rngs, sigmas = [sample_rng(s, "paint") for s in (1, 2, 3)], pipeline.levels(4)
    nothing = torch.zeros(3, 16, 8, 8)
    told = Told.of(nothing, torch.zeros(3, 1, 8, 8, dtype=torch.bool), torch.zeros(3, 3, 8, 8))
    with torch.no_grad():
        latents = SAMPLERS["dpmpp_2m"](
            lambda x, sigma: guided(pipeline.unet, told, x, sigma, guidance=1.0), sigmas[-1] * randn_each(
                (16, 8, 8), rngs), sigmas, walk=pipeline.walk(4), rngs=rngs, eta=1.0)
    painted = pipeline.paint(image, torch.zeros(3, 32, 32, dtype=torch.bool), seeds=[1, 2, 3])
    assert torch.equal(painted, latents_to_unit(pipeline.vae, latents))


def test_hardly_any_strength_is_hardly_any_change(pipeline: InpaintPipeline) -> None:
    """One level of sigma 0.01 times the data's deviation: the source, but for noise as small as that."""
    image, _ = request(pipeline)
    painted = pipeline.paint(image, torch.zeros(3, 32, 32, dtype=torch.bool), seeds=[1, 2, 3], n_steps=20,
                             strength=0.05)
    assert 0 < float((painted - image).abs().max()) < 0.1


def test_the_denoiser_is_told_of_the_frame(pipeline: InpaintPipeline) -> None:
    image, _ = request(pipeline)
    frame, nothing = torch.zeros(3, 32, 32, dtype=torch.bool), torch.zeros(3, 32, 32, dtype=torch.bool)
    frame[:, :, :8] = True
    other = torch.where(frame[:, None], -image, image)
    a, b = (pipeline.paint(x, nothing, seeds=[1, 2, 3], keep_in=frame) for x in (image, other))
    assert (a - b)[..., 16:].abs().mean() > 1e-4, "another frame, another picture in it"
    inside = torch.where(frame[:, None], image, -image)
    assert torch.equal(a[..., 16:], pipeline.paint(inside, nothing, seeds=[1, 2, 3], keep_in=frame)[..., 16:])


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


@pytest.mark.parametrize("kind", ["pixels", "kl"])
def test_redrawn_images_keep_frames_alone_and_are_the_nearer_the_lower_the_level(kind: str) -> None:
    plain = tiny_pipeline(kind=kind, sampler=SamplerSettings(n_steps=3, texture="codec"))
    image, mask = request(plain)
    frame = torch.zeros_like(mask, dtype=torch.bool)
    frame[:, :5] = True
    painted, off = plain.sample(image, mask, seeds=[1, 2, 3], keep_in=frame), []
    for sigma in (0.001, 0.1, 1.0):
        redrawn = plain.with_sampler(SamplerSettings(n_steps=3, texture="redrawn", redraw_sigma=sigma))
        made = redrawn.sample(image, mask, seeds=[1, 2, 3], keep_in=frame)
        assert torch.equal(made[:, :, :5], image[:, :, :5]) and torch.isfinite(made).all()
        alone = redrawn.sample(image[1:2], mask[1:2], seeds=[2], keep_in=frame[1:2])
        assert torch.allclose(made[1:2], alone, atol=1e-5)
        off.append(float((made - painted)[labels_to_keep(mask)[:, None].expand_as(made)].abs().mean()))
    assert off[0] < off[1] < off[2]
    if kind == "pixels":  # a decoder of latents shows a cell by its surroundings too
        assert off[0] < 0.01
    assert redrawn.keeps == "nothing" and torch.equal(redrawn.kept(mask, frame), frame & ~labels_to_keep(mask))


def test_redrawing_costs_four_evaluations() -> None:
    pipeline = tiny_pipeline(sampler=SamplerSettings(n_steps=5, texture="redrawn"))
    image, mask = request(pipeline)
    calls, seen = [], []
    pipeline.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    pipeline.paint(image, pipeline.around(mask), seeds=[1, 2, 3], callback=lambda *done: seen.append(done))
    assert len(calls) == pipeline.evaluations() == 9 and seen[-1] == (9, 9)


def test_nothing_of_the_source_shows_in_the_redrawn_surroundings() -> None:
    pipeline = tiny_pipeline(sampler=SamplerSettings(n_steps=3, texture="redrawn", margin_cells=(0, 0)))
    image, mask = request(pipeline)
    near = F.max_pool2d(labels_to_keep(mask)[:, None].float(), 2 * pipeline.factor + 1, 1, pipeline.factor) > 0
    other = torch.where(near, image, -image)  # a cell that is partly kept is known whole
    assert torch.equal(*(pipeline.sample(x, mask, seeds=[1, 2, 3]) for x in (image, other)))

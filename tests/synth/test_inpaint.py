"""The pipeline: the generator's contract, masks on the latent grid, blending, strength, forms of output."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from contract_generator import GeneratorContract, request
from PIL import Image
from tiny import tiny_pipeline

from synth.core.checks import UserError
from synth.core.space import labels_to_keep
from synth.diffusion.inpaint import InpaintPipeline, blend_alpha, keep_to_latent


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


def random_masks(n: int, side: int, *, share: float) -> torch.Tensor:
    """Returns random keep masks (n, side, side) bool, single pixels included."""
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(3)) < share


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("share", [0.002, 0.05, 0.5])
def test_no_foreground_pixel_is_lost_on_the_latent_grid(factor: int, share: float) -> None:
    keep = random_masks(20, 32, share=share)
    for margin in (0, 1, 2):
        latent = keep_to_latent(keep, factor=factor, margin_cells=margin)
        assert latent.shape == (20, 1, 32 // factor, 32 // factor) and latent.dtype == torch.bool
        back = F.interpolate(latent.float(), scale_factor=factor, mode="nearest")[:, 0] > 0
        assert (back | ~keep).all()


def test_the_keep_mask_grows_by_whole_cells() -> None:
    keep = torch.zeros(1, 32, 32, dtype=torch.bool)
    keep[0, 13, 18] = True
    for margin in (0, 1, 2):
        latent = keep_to_latent(keep, factor=4, margin_cells=margin)[0, 0]
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
    with torch.no_grad():
        rebuilt = pipeline.vae.decode(pipeline.vae.encode(image).latent_dist.mean).sample.clamp(-1, 1)
    outside = ~keep[:, None]
    far = [float((pipeline.paint(image, keep, seeds=[1, 2, 3], n_steps=20, strength=s) - rebuilt)[outside].abs().mean())
           for s in (0.05, 0.4, 1.0)]
    assert far[0] < far[1] < far[2]
    for wrong in (0.0, -0.5, 1.5):
        with pytest.raises(UserError, match="strength"):
            pipeline.paint(image, keep, seeds=[1, 2, 3], strength=wrong)


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

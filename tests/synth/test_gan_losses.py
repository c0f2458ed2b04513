"""Closed forms of the translators' losses, DiffAugment, and what each model's discriminator may look at."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import TRANSLATE

from synth.core.adversarial import fooling_loss
from synth.core.checks import IGNORE
from synth.core.config import load_config
from synth.gan.augment import (
    Alteration,
    alter_colour,
    alter_geometry,
    alter_images,
    alter_labels,
    draw_alteration,
)
from synth.gan.discriminators import PatchDiscriminator, SegmenterDiscriminator
from synth.gan.losses import (
    balanced_segmentation,
    draw_labelmix,
    drawn_segmentation,
    labelmix,
    labelmix_consistency,
    noise_response,
    real_segmentation,
    realness,
)
from synth.gan.networks import CodeNorm, MapNorm
from synth.gan.recipe import TranslateRecipe, build_discriminator, build_translator
from synth.gan.settings import TranslateSettings


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    labels[0, 0, 0] = 1
    uniform = torch.zeros(2, 3, 8, 8)
    assert float(balanced_segmentation(uniform, labels)) == pytest.approx(2 * math.log(3), rel=1e-6)
    sure = uniform.clone()
    sure[:, 0] = 30.0
    sure[0, :, 0, 0] = torch.tensor([0.0, 0.0, 0.0])
    # The one pixel of class 1 is undecided, all others are right.
    assert float(balanced_segmentation(sure, labels)) == pytest.approx(math.log(3), rel=1e-5)
    # The paper's form: weights n_pixels / n_pixels of the class, mean over all pixels.
    logits = some(2, 3, 8, 8)
    weight = torch.where(labels == 1, 128 / 1, 128 / 127)
    expected = (weight * torch.nn.functional.cross_entropy(logits, labels, reduction="none")).mean()
    assert float(balanced_segmentation(logits, labels)) == pytest.approx(float(expected), rel=1e-5)


def test_unknown_pixels_count_nowhere() -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 2:] = IGNORE
    logits = some(1, 3, 4, 4)
    changed = logits.clone()
    changed[:, :, 2:] += some(1, 3, 2, 4, seed=1)
    assert torch.equal(balanced_segmentation(logits, labels), balanced_segmentation(changed, labels))
    assert float(balanced_segmentation(logits, torch.full_like(labels, IGNORE))) == 0


def test_drawn_is_the_last_class_and_realness_its_odds() -> None:
    assert float(drawn_segmentation(torch.zeros(1, 4, 2, 2))) == pytest.approx(math.log(4))
    logits = some(2, 4, 3, 3)
    p = logits.softmax(1)[:, -1:]
    assert torch.allclose(realness(logits), torch.log((1 - p) / p), atol=1e-5)
    assert float(fooling_loss(torch.tensor([1.0, 3.0]))) == -2


def test_labelmix_is_consistent_where_the_judge_looks_at_single_pixels() -> None:
    labels = (some(4, 8, 8) > 0).long()
    torch.manual_seed(0)
    mask = draw_labelmix(labels)
    for image, chosen in zip(labels, mask[:, 0], strict=True):
        assert all(len(chosen[image == k].unique()) == 1 for k in (0, 1)), "a class comes from one image, whole"
    assert 0 < mask.float().mean() < 1
    real, fake = some(4, 3, 8, 8, seed=1), some(4, 3, 8, 8, seed=2)
    mixed = labelmix(real, fake, mask)
    per_pixel = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)
    wide = torch.nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
    for net, near_zero in ((per_pixel, True), (wide, False)):
        loss = float(labelmix_consistency(net(mixed), net(real), net(fake), mask))
        assert (loss < 1e-12) == near_zero
    every = torch.ones_like(mask)
    assert torch.equal(labelmix(real, fake, every), real)
    assert float(labelmix_consistency(wide(real), wide(real), wide(fake), every)) == 0


def test_the_answer_to_noise_is_a_ratio_with_a_bound() -> None:
    one, codes = torch.zeros(2, 1, 4, 4), (torch.zeros(2, 3), torch.full((2, 3), 2.0))
    assert float(noise_response(one, one + 0.5, codes, bound=9)) == pytest.approx(0.25, rel=1e-4)
    assert float(noise_response(one, one + 0.5, codes, bound=0.1)) == pytest.approx(0.1)
    assert float(noise_response(one, one, codes, bound=9)) == 0


def test_no_strength_alters_nothing() -> None:
    images, labels = some(3, 2, 16, 16), (some(3, 16, 16, seed=1) > 0).long()
    how = draw_alteration(3, (16, 16), strength=0.0)
    assert torch.allclose(alter_images(images, how), images, atol=1e-6)
    assert torch.equal(alter_labels(labels, how, fill=IGNORE), labels)
    assert not torch.allclose(alter_images(images, draw_alteration(3, (16, 16), strength=1.0)), images, atol=0.1)


def test_one_alteration_is_the_same_for_real_and_drawn_and_moves_labels_along() -> None:
    torch.manual_seed(3)
    how = draw_alteration(4, (16, 16), strength=1.0)
    images = some(4, 1, 16, 16)
    twice = alter_images(torch.cat([images, images]), how.repeat(2))
    assert torch.equal(*twice.chunk(2))
    labels = torch.arange(256).view(1, 16, 16).repeat(4, 1, 1) % 250
    moved = alter_geometry(labels[:, None].float(), how, fill=-1.0)[:, 0]
    told = alter_labels(labels, how, fill=IGNORE)
    assert torch.equal(torch.where(moved < 0, IGNORE, moved.long()), told)
    assert (told == IGNORE).any() and (told != IGNORE).any()


def test_each_alteration_does_what_it_says() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    still = {"shift": torch.zeros(1, 2, dtype=torch.long), "hole": torch.zeros(1, 4, dtype=torch.long)}
    image = some(1, 3, 8, 8)
    assert torch.allclose(alter_colour(image, Alteration(0.3 * one, one, one, **still)), image + 0.3)
    grey = alter_colour(image, Alteration(zero, zero, one, **still))
    assert torch.allclose(grey, image.mean(1, keepdim=True).expand_as(image), atol=1e-6)
    flat = alter_colour(image, Alteration(zero, one, zero, **still))
    assert torch.allclose(flat, image.mean().expand_as(image), atol=1e-6)
    moved = alter_geometry(image, Alteration(zero, one, one, torch.tensor([[2, -1]]), still["hole"]))
    assert torch.equal(moved[:, :, 2:, :-1], image[:, :, :-2, 1:])
    assert not moved[:, :, :2].any() and not moved[..., -1:].any()
    cut = alter_geometry(image, Alteration(zero, one, one, still["shift"], torch.tensor([[2, 3, 5, 6]])))
    assert not cut[:, :, 2:5, 3:6].any() and torch.equal(cut[:, :, 5:], image[:, :, 5:])


def test_alterations_let_the_gradient_through() -> None:
    image = some(2, 3, 16, 16).requires_grad_(True)
    torch.manual_seed(0)
    alter_images(image, draw_alteration(2, (16, 16), strength=1.0)).square().sum().backward()
    assert torch.isfinite(image.grad).all() and (image.grad != 0).float().mean() > 0.3


def test_a_patch_is_70_px() -> None:
    net = PatchDiscriminator(1, width=2).eval()
    # Norms mix the whole image; without them what one logit depends on is the receptive field.
    net.layers = torch.nn.Sequential(*[m for m in net.layers if not isinstance(m, torch.nn.InstanceNorm2d)])
    x = torch.zeros(1, 1, 160, 160, requires_grad=True)
    out = net(x + 0.1)
    out[0, 0, out.shape[2] // 2, out.shape[3] // 2].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70


def test_a_segmenter_has_a_class_more_for_every_pixel() -> None:
    net = SegmenterDiscriminator(3, 4, widths=(8, 8, 16))
    assert net(some(2, 3, 16, 24)).shape == (2, 5, 16, 24)


def test_codes_survive_instance_norm_and_no_row_depends_on_another() -> None:
    x, code, told = some(3, 4, 8, 8), some(3, 5, seed=1), some(3, 5, 8, 8, seed=2)
    for norm, given in ((CodeNorm(4, 5), code), (MapNorm(4, 5, hidden=6), told)):
        whole = norm(x, given)
        assert torch.allclose(norm(x[1:2], given[1:2]), whole[1:2], atol=1e-6)
        assert (norm(x, given + 1) - whole).abs().mean() > 1e-2


@pytest.mark.parametrize("model", ["pix2pix", "spade", "oasis"])
def test_what_each_discriminator_looks_at(model: str) -> None:
    settings = load_config(TranslateSettings, {**TRANSLATE, "model": model})
    recipe = TranslateRecipe(build_translator(settings, channels=1, n_classes=2),
                             build_discriminator(settings, channels=1, n_classes=2), settings)
    images, told = some(2, 1, 32, 32), some(2, 4, 32, 32, seed=1)
    alike = torch.allclose(recipe.judge(images, told), recipe.judge(images, told + 1), atol=1e-4)
    assert alike == (model == "oasis"), "OASIS has to find the classes in the image"
    before = {k: v.clone() for k, v in recipe.nets["discriminator"].state_dict().items()}
    recipe.judge(images, told)
    assert all(torch.equal(v, before[k]) for k, v in recipe.nets["discriminator"].state_dict().items())


def test_a_pixel_without_a_label_may_be_of_any_class_but_drawn() -> None:
    logits = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = -(1 - logits.softmax(1)[:, -1]).log().mean()
    assert float(real_segmentation(logits)) == pytest.approx(float(expected), rel=1e-5)
    sure = torch.zeros(1, 3, 2, 2)
    sure[:, 0] = 20.0  # which of the real classes is no matter
    assert float(real_segmentation(sure)) == pytest.approx(float(real_segmentation(sure.roll(1, 1))), abs=1e-6)
    assert float(real_segmentation(sure.roll(2, 1))) > 19

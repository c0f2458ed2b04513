"""A codec's health: what counts as border, closed forms on codecs with known errors, and messages that help."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torchvision.transforms.v2.functional import gaussian_blur

from synth.core.checks import IGNORE, UserError
from synth.diffusion.health import (
    Health,
    HealthSettings,
    enforce_health,
    gradient_borders,
    label_borders,
    measure_health,
)


def same(x: torch.Tensor) -> torch.Tensor:
    """Returns x (B, C, H, W)."""
    return x


def blur(x: torch.Tensor) -> torch.Tensor:
    """Returns x (B, C, H, W), blurred."""
    return gaussian_blur(x, [13, 13], [3.0, 3.0])


def discs(n: int = 6, *, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns images (n, channels, 32, 32) of mean about 0 and std 1 in two levels, and labels (n, 32, 32)."""
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    labels = torch.stack([((x - 12 - i) ** 2 + (y - 16) ** 2 < 150).long() for i in range(n)])
    return (2.0 * labels - 1)[:, None].repeat(1, channels, 1, 1), labels


def healthy() -> Health:
    """Returns a health that passes."""
    return Health(border_error=0.05, plain_error=0.05, border_ratio=1.0, latent_std=1.0, latent_mean=0.0, image_std=0.5)


@pytest.mark.parametrize("px", [1, 2, 3])
def test_a_straight_border_is_px_wide_on_either_side(px: int) -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = 1
    border = label_borders(labels, border_px=px)
    assert border[0].any(0).nonzero().flatten().tolist() == list(range(8 - px, 8 + px))
    assert torch.equal(border.any(1), border.all(1)), "the edge of the image is no border"


def test_ignored_pixels_make_no_border() -> None:
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = IGNORE
    assert not label_borders(labels, border_px=2).any()
    labels[:, :, 12:] = 3
    assert not label_borders(labels, border_px=2).any(), "classes that an ignored band parts do not touch"
    assert label_borders(labels, border_px=4)[0, 0].nonzero().flatten().tolist() == []
    labels[:, :, 10:] = 3
    assert label_borders(labels, border_px=4)[0, 0].nonzero().flatten().tolist() == [6, 7, 10, 11]


def test_without_labels_the_steepest_tenth_is_the_border() -> None:
    rng = torch.Generator().manual_seed(0)
    border = gradient_borders(torch.randn(3, 2, 20, 20, generator=rng))
    assert border.flatten(1).sum(1).tolist() == [40, 40, 40]
    step = -torch.ones(1, 1, 40, 40)
    step[..., 20:] = 1
    assert gradient_borders(step)[0].any(0).nonzero().flatten().tolist() == [19, 20]
    assert not gradient_borders(torch.zeros(1, 1, 8, 8)).any()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_perfect_codec_passes(channels: int, labelled: bool) -> None:  # noqa: FBT001 - a parameter of the test
    images, labels = discs(channels=channels)
    health = measure_health(same, same, images, labels if labelled else None, batch_size=4)
    assert health.border_error == health.plain_error == 0 and health.border_ratio == 1
    assert health.latent_std == pytest.approx(float(images.std()), rel=1e-3)
    assert health.image_std == pytest.approx(float(images.std()), rel=1e-3)
    enforce_health(health, HealthSettings())


def test_errors_have_their_closed_form_whatever_the_batch_size() -> None:
    images, labels = discs()
    border = label_borders(labels, border_px=2)[:, None]
    for batch_size in (1, 4, 6):
        chunks = iter(border.split(batch_size))
        health = measure_health(same, lambda z, c=chunks: z + torch.where(next(c), 0.3, -0.1), images, labels,
                                batch_size=batch_size)
        assert health.border_error == pytest.approx(0.3, rel=1e-4)
        assert health.plain_error == pytest.approx(0.1, rel=1e-4)
        assert health.border_ratio == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_blurring_codec_fails_and_the_message_helps(labelled: bool) -> None:  # noqa: FBT001
    images, labels = discs()
    health = measure_health(same, blur, images, labels if labelled else None)
    assert health.border_ratio > 2
    with pytest.raises(UserError, match=r"border_error=0\.\d+.*max_(border|gradient)_error=0\.\d+.*Repair: into "
                       r"another out=, train the autoencoder longer.*smaller factor.*autoencoder\.kind=pixels"):
        enforce_health(health, HealthSettings())
    enforce_health(health, HealthSettings(max_border_error=10, max_gradient_error=10))
    one = {"max_gradient_error": 10} if labelled else {"max_border_error": 10}
    with pytest.raises(UserError, match="max_border_error" if labelled else "max_gradient_error"):
        enforce_health(health, HealthSettings(**one))  # the limit of the other kind of border does not count


@pytest.mark.parametrize("std", [0.5, 1.5, math.nan])
def test_latents_that_are_not_standardised_fail(std: float) -> None:
    enforce_health(healthy(), HealthSettings())
    with pytest.raises(UserError, match=r"latent_std=.*from 0\.7 to 1\.3.*Repair: .*autoencoder\.kind=pixels"):
        enforce_health(dataclasses.replace(healthy(), latent_std=std), HealthSettings())


def test_an_error_that_is_no_number_fails() -> None:
    with pytest.raises(UserError, match="border_error=nan"):
        enforce_health(dataclasses.replace(healthy(), border_error=math.nan), HealthSettings())


def test_a_set_without_borders_is_refused() -> None:
    images, labels = discs()
    with pytest.raises(UserError, match="the 6 labels.*give images with foreground"):
        measure_health(same, same, images, torch.zeros_like(labels))
    with pytest.raises(UserError, match="the 6 images.*not constant"):
        measure_health(same, same, torch.zeros_like(images), None)

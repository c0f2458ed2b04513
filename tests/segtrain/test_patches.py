"""Training on squares of images at their own size, and predicting them tile by tile."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scenes import PAIRS, SETTINGS, native_pairs, random_images

from segtrain.models import build_model
from segtrain.segmenter import Segmenter, SegmenterConfig
from segtrain.settings import ModelSettings
from segtrain.streams import Streams, patches
from segtrain.streams.patches import FOREGROUND_SHARE, draw_corner, importance, predict_tiles, tile_starts
from synth.core.checks import IGNORE, UserError
from synth.core.rng import sample_rng
from synth.core.space import pixels_to_unit


@pytest.mark.parametrize(("length", "side"), [(16, 16), (17, 16), (40, 16), (64, 16), (65, 32)])
def test_tiles_cover_everything_and_overlap_by_half_or_more(length: int, side: int) -> None:
    starts = tile_starts(length, side)
    assert starts[0] == 0 and starts[-1] == length - side
    assert all(0 < b - a <= side / 2 for a, b in zip(starts, starts[1:], strict=False))


def test_the_importance_is_a_gaussian() -> None:
    weight = importance(16)
    assert (weight > 0).all() and weight.max() == 1 and torch.equal(weight, weight.T.flip(0, 1))
    # One standard deviation, an eighth of 16 px, from the middle of four pixels out to the next ones: 0.5 -> 2.5 px.
    assert float(weight[7, 10] / weight[7, 8]) == pytest.approx(math.exp(-0.5 * (2.5**2 - 0.5**2) / 4), rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 56), (16, 16), (33, 16)])
def test_tiles_of_a_pixelwise_rule_are_the_rule(shape: tuple[int, int]) -> None:
    x = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seen = []

    def rule(tiles: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(tiles.shape))
        return torch.cat([tiles, -tiles], 1).softmax(1)

    found = predict_tiles(rule, x, side=16, chunk=5)
    assert torch.allclose(found, torch.cat([x, -x], 1).softmax(1), atol=1e-6)
    assert max(s[0] for s in seen) <= 5 and {s[1:] for s in seen} == {(1, 16, 16)}


@pytest.mark.slow  # monai takes seconds to import
def test_tiles_agree_with_monais_sliding_window(monkeypatch: pytest.MonkeyPatch) -> None:
    inferers, data = pytest.importorskip("monai.inferers.utils"), pytest.importorskip("monai.data.utils")
    net = build_model("tiny", 1, 2, ModelSettings(name="tiny", channels=(8, 16))).eval()
    x = torch.rand(1, 1, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def predict(tiles: torch.Tensor) -> torch.Tensor:
        return net(tiles).softmax(1)

    # Theirs lets no weight fall below a floor; above that it is ours.
    theirs = data.compute_importance_map((16, 16), mode="gaussian", sigma_scale=0.125).float()
    above = theirs > theirs.min()
    assert above.any() and torch.allclose(theirs[above] / theirs.max(), importance(16)[above], rtol=1e-5)
    monkeypatch.setattr(patches, "importance", lambda side: theirs)
    with torch.no_grad():
        found = predict_tiles(predict, x, side=16, chunk=8)
        expected = inferers.sliding_window_inference(x, (16, 16), 8, predict, overlap=0.5, mode="gaussian")
    assert torch.allclose(found, expected, atol=1e-6)


def test_an_image_smaller_than_a_tile_goes_there_and_back() -> None:
    x = torch.linspace(-1, 1, 12).expand(1, 1, 10, 12)
    found = predict_tiles(lambda t: torch.cat([t, -t], 1), x, side=16, chunk=4)
    assert found.shape == (1, 2, 10, 12) and (found[:, 0] - x[:, 0]).abs().max() < 0.08


def test_a_third_of_the_squares_lie_around_foreground() -> None:
    mask = np.zeros((200, 200), np.uint8)
    mask[90:92, 120], mask[0, 0], mask[5, 5] = 1, 2, IGNORE
    n, hits = 3000, {1: 0, 2: 0}
    assert FOREGROUND_SHARE == 1 / 3
    for i in range(n):
        top, left = draw_corner(sample_rng(0, i), mask.shape, 16, mask)
        assert 0 <= top <= 184 and 0 <= left <= 184
        centred = abs(top + 8 - 90.5) <= 0.5 and left + 8 == 120
        hits[1] += centred
        hits[2] += (top, left) == (0, 0)
    assert hits[1] / n == pytest.approx(FOREGROUND_SHARE / 2, abs=0.03), "each class as often"
    assert hits[2] / n == pytest.approx(FOREGROUND_SHARE / 2, abs=0.03)
    corners = [draw_corner(sample_rng(0, i), (200, 200), 16, np.zeros((200, 200), np.uint8)) for i in range(300)]
    assert len(set(corners)) > 250


PATCHED = SETTINGS.model_copy(update={"patch": 16, "batch_size": 6})


def test_squares_are_cut_from_image_label_and_form_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from segtrain.streams import inputs
    from segtrain.streams.extras import Extras

    monkeypatch.setitem(inputs.INPUTS, "negative", lambda pixels: 255 - pixels)
    pairs = native_pairs()
    streams = Streams.read(PATCHED, pairs, unlabelled=pairs, extras=Extras(inputs=("negative",)))
    n_foreground = 0
    for step in range(8):
        batch = streams.batches(step, 0, 1)
        assert batch["images"].shape == (6, 1, 16, 16) and batch["labels"].shape == (6, 16, 16)
        small = batch["rows"] == 2  # the one that is enlarged, hence blended
        bright = batch["images"][:, 0] >= pixels_to_unit(np.array([100.0]), (0.0, 255.0))
        assert torch.equal(bright[~small], (batch["labels"] == 1)[~small])
        assert torch.allclose(batch["unlabelled"], -batch["input_negative"], atol=1e-6)
        n_foreground += int((batch["labels"] == 1).any(-1).any(-1).sum())
    assert n_foreground >= 48 * FOREGROUND_SHARE * 0.6, "12 pixels in a corner of thousands would hardly be met"
    again = Streams.read(PATCHED, pairs, unlabelled=pairs).batches(5, 0, 1)
    assert all(torch.equal(v, streams.batches(5, 0, 1)[k]) for k, v in again.items())
    halves = [streams.batches(5, rank, 2)["images"] for rank in (0, 1)]
    assert torch.equal(torch.stack(halves, 1).flatten(0, 1), again["images"])


def test_methods_that_keep_whole_images_refuse_patches() -> None:
    from segtrain.streams.extras import Extras

    with pytest.raises(UserError, match="whole images"):
        Streams.read(PATCHED, native_pairs(), extras=Extras(stack=2))


BASELINE = ("patch=16", "normalise=fingerprint", "flip_averaging=true", "model.channels=[8,16,16]",
            "model.deep_supervision=true", "augment.intensity.p_invert=0.5", "optim.name=sgd", "optim.nesterov=true",
            "optim.clip=1.0")


def test_a_segmenter_of_patches_sees_no_resized_image() -> None:
    net = build_model("tiny", 1, 2, ModelSettings(name="tiny", channels=(8, 16)))
    config = SegmenterConfig(model=ModelSettings(name="tiny", channels=(8, 16)), info=PAIRS.info, size=16, tiles=True)
    x = random_images(1, size=48)
    tiled, whole = Segmenter(net, config), Segmenter(net, config.model_copy(update={"tiles": False}))
    assert (tiled.predict(x) - whole.predict(x)).abs().max() > 1e-3
    assert torch.allclose(tiled.predict(x[..., :16, :16]), whole.predict(x[..., :16, :16]), atol=1e-6)

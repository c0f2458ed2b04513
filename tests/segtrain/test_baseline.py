"""The supervised baseline: augmentation, deep supervision, the fingerprint, patches and tiles, batches ahead."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scenes import PAIRS, SETTINGS, run, weights
from torch import nn

import segtrain
from segtrain import patches
from segtrain.ahead import Ahead
from segtrain.data import Streams
from segtrain.fingerprint import Fingerprint, Standardise, measure, percentile
from segtrain.geometry import draw_geometry
from segtrain.intensity import apply_intensity, draw_intensity
from segtrain.losses.deep import level_weights, loss_of_rows, supervise_levels
from segtrain.losses.supervised import DiceCe
from segtrain.models import Seen, build_model
from segtrain.models.weights import save_encoder
from segtrain.patches import FOREGROUND_SHARE, draw_corner, importance, predict_tiles, tile_starts
from segtrain.segmenter import Segmenter, SegmenterConfig
from segtrain.settings import AugmentSettings, GeometrySettings, IntensitySettings, ModelSettings, SegmentSettings
from segtrain.views import augment_pairs, weak
from synth.core.checks import IGNORE, UserError
from synth.core.config import load_config
from synth.core.pairs import DataInfo, PairSet, memory_set
from synth.core.rng import sample_rng
from synth.core.space import pixels_to_unit

ROOT = Path(__file__).parents[2]
DEEP = ModelSettings(name="tiny", channels=(8, 16, 16), deep_supervision=True)
CONFIG = {"size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "loop": {"steps": 4, "checkpoint_every": 3},
          "model": {"name": "tiny", "channels": [8, 16]}}


def rngs(n: int, name: str = "t") -> list[torch.Generator]:
    """Returns one generator for each of n rows."""
    return [sample_rng(7, name, i) for i in range(n)]


def smooth(n: int = 3, channels: int = 1, size: int = 16) -> torch.Tensor:
    """Returns random unit images (B, C, S, S)."""
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(6)) * 1.8 - 0.9


def native_pairs(shapes: tuple[tuple[int, int], ...] = ((50, 40), (36, 64), (20, 30)), channels: int = 1) -> PairSet:
    """Returns pairs of various sizes; the pixels of the object, a corner of 3 x 4 px, are brighter, and vary."""
    rng, images, masks = np.random.default_rng(0), [], []
    for height, width in shapes:
        mask = np.zeros((height, width), np.uint8)
        mask[-3:, -4:] = 1
        image = rng.integers(0, 100, (height, width, channels)).astype(np.uint8) + 100 * mask[..., None]
        images.append(image[..., 0] if channels == 1 else image)
        masks.append(mask)
    info = DataInfo(("background", "object"), channels, 8, (0.0, 255.0))
    names = [f"n{i}" for i in range(len(shapes))]
    return memory_set(images, masks, info, ids=names, groups=names)


# Augmentation ---------------------------------------------------------------------------------------------------------

def test_each_kind_has_a_share_of_its_own() -> None:
    n, base = 4000, {"p_colour": 0.0, "p_blur": 0, "p_noise": 0, "p_low_res": 0}
    drawn = draw_intensity(rngs(n), IntensitySettings(**base, p_brightness=0.15, p_contrast=0.3, p_gamma=0.45,
                                                      p_invert=0.6))
    hits = torch.stack([drawn.gain != 1, drawn.contrast != 1, drawn.gamma != 1, drawn.inverted != 1]).double()
    assert torch.allclose(hits.mean(1), torch.tensor([0.15, 0.3, 0.45, 0.6], dtype=torch.float64), atol=0.03)
    assert torch.corrcoef(hits).fill_diagonal_(0).abs().max() < 0.06, "each is drawn by itself"
    moved = draw_geometry(rngs(n), GeometrySettings(flip_horizontal=False, p=0, p_rotate=0.2, p_zoom=0.4, p_shift=0.6,
                                                    elastic_px=1.0, p_elastic=0.3))
    scale = moved.theta[:, :, :2].det().abs().sqrt()
    hits = torch.stack([moved.theta[:, 0, 1] != 0, (scale - 1).abs() > 1e-6, moved.theta[:, 0, 2] != 0,
                        moved.displacement.abs().sum((1, 2, 3)) > 0]).double()
    assert torch.allclose(hits.mean(1), torch.tensor([0.2, 0.4, 0.6, 0.3], dtype=torch.float64), atol=0.03)
    assert torch.corrcoef(hits).fill_diagonal_(0).abs().max() < 0.06


def test_shares_left_out_draw_what_was_always_drawn() -> None:
    one, other = (draw_geometry(rngs(5), s) for s in (GeometrySettings(), GeometrySettings(p_elastic=0.5)))
    assert torch.equal(one.theta, other.theta)
    own = draw_geometry(rngs(5), GeometrySettings(p_zoom=0.0))
    still = (own.theta[:, :, :2].det().abs() - 1).abs() < 1e-6
    assert still.all() and torch.equal(own.theta[:, 0, 2], one.theta[:, 0, 2])


def only(**changes: object) -> IntensitySettings:
    """Returns settings that change nothing but what `changes` says."""
    return IntensitySettings(**{"p_colour": 0.0, "p_blur": 0, "p_noise": 0, "p_low_res": 0, **changes})


def test_an_inverted_curve_is_a_curve_of_the_inverted_image() -> None:
    x, drawn = smooth(), draw_intensity(rngs(3), only(p_invert=1.0, gamma=0.5))
    assert (drawn.inverted != 1).all() and (drawn.gamma == 1).all()
    unit = (x + 1) / 2
    expected = 1 - (1 - unit) ** drawn.inverted.float()[:, None, None, None]
    assert torch.allclose(apply_intensity(x, drawn), expected * 2 - 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["p_gamma", "p_invert"])
def test_curves_may_leave_mean_and_deviation_as_they_were(kind: str) -> None:
    x = smooth(channels=3) * 0.5
    for retain in (True, False):
        changed = apply_intensity(x, draw_intensity(rngs(3), only(**{kind: 1.0}, gamma=1.0, retain_stats=retain)))
        assert (changed - x).abs().max() > 0.02
        alike = [torch.allclose(f(changed, dim=(2, 3)), f(x, dim=(2, 3)), atol=1e-3) for f in (torch.mean, torch.std)]
        assert all(alike) == retain


def test_rows_with_and_without_a_curve_do_not_depend_on_each_other() -> None:
    x, settings = smooth(8), only(p_gamma=0.5, p_invert=0.5, retain_stats=True)
    drawn = draw_intensity(rngs(8), settings)
    assert 0 < int((drawn.inverted != 1).sum()) < 8
    whole = apply_intensity(x, drawn)
    for i in range(8):
        assert torch.equal(whole[i:i + 1], apply_intensity(x[i:i + 1], draw_intensity(rngs(8)[i:i + 1], settings)))


def test_no_augmentation_is_the_identity_bit_for_bit() -> None:
    still = AugmentSettings(geometry=GeometrySettings(flip_horizontal=False, p=0), intensity=only())
    assert still.geometry.is_still and still.intensity.is_still
    x, labels = smooth(), torch.randint(0, 2, (3, 16, 16))
    assert all(torch.equal(a, b) for a, b in zip(augment_pairs(x, labels, rngs(3), still), (x, labels), strict=True))
    assert torch.equal(weak(x, rngs(3), still.geometry)[0], x)
    for change in ({"p_rotate": 0.1}, {"flip_vertical": True}, {"elastic_px": 1.0}, {"p": 0.5}):
        assert not GeometrySettings(**{"flip_horizontal": False, "p": 0, **change}).is_still
    assert GeometrySettings(flip_horizontal=False, p=0.7, p_rotate=0, p_zoom=0, p_shift=0).is_still
    assert not any(only(**{name: 0.1}).is_still for name in ("p_colour", "p_gamma", "p_invert", "p_blur", "p_noise"))


# Deep supervision -----------------------------------------------------------------------------------------------------

def test_weights_of_levels_halve_and_sum_to_one() -> None:
    assert level_weights(1) == [1.0]
    assert level_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_levels_are_taught_by_labels_of_their_own_size() -> None:
    labels = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [IGNORE] * 4, [IGNORE] * 4]])
    coarse = torch.tensor([[[0, 1], [IGNORE, IGNORE]]])
    rng, loss = torch.Generator().manual_seed(0), DiceCe()
    levels = [torch.randn(1, 2, n, n, generator=rng) for n in (4, 2)]
    expected = 2 / 3 * loss(levels[0], labels, None) + 1 / 3 * loss(levels[1], coarse, None)
    assert torch.allclose(supervise_levels(loss, levels, labels, None), expected)
    weight = torch.ones(1, 4, 4)
    middle = supervise_levels(lambda _, own, __: own.sum().float(), [levels[0][..., :3, :3], levels[0][..., :1, :1]],
                              torch.arange(9).reshape(1, 3, 3), None)
    assert torch.allclose(middle, torch.tensor((2 * 36 + 4) / 3)), "the middle of nine pixels stands for them"
    assert torch.allclose(supervise_levels(loss, levels, labels, weight), expected)
    assert torch.equal(supervise_levels(loss, levels[:1], labels, None), loss(levels[0], labels, None))


def test_rows_of_one_kind_are_taught_alone() -> None:
    rng, loss = torch.Generator().manual_seed(0), DiceCe()
    logits, deep = torch.randn(3, 2, 4, 4, generator=rng), torch.randn(3, 2, 2, 2, generator=rng)
    labels, rows = torch.randint(0, 2, (3, 4, 4), generator=rng), torch.tensor([True, False, True])
    found = loss_of_rows(loss, Seen(logits, logits, logits, (deep,)), labels, None, rows)
    alone = Seen(logits[rows], logits[rows], logits[rows], (deep[rows],))
    assert torch.equal(found, loss_of_rows(loss, alone, labels[rows], None, torch.tensor([True, True])))
    assert loss_of_rows(loss, Seen(logits, logits, logits), labels, None, ~(rows | True)) == 0


@pytest.mark.parametrize("method", ["supervised", "fixmatch_ema"])
def test_deep_heads_learn_and_are_gone_from_the_predictor(method: str) -> None:
    settings = SETTINGS.model_copy(update={"model": DEEP})
    fresh = build_model("tiny", 1, 2, DEEP, seed=settings.loop.seed)
    recipe, logs = run(method, 2, unlabelled=method != "supervised", settings=settings)
    before, after = fresh.deep[0][0].weight, next(iter(recipe.nets.values())).deep[0][0].weight
    assert not torch.equal(before, after) and all(torch.isfinite(line["loss"]) for line in logs)
    plain, others = run(method, 2, unlabelled=method != "supervised", settings=SETTINGS.model_copy(
        update={"model": DEEP.model_copy(update={"deep_supervision": False})}))
    assert not torch.equal(weights(plain)[0], weights(recipe)[0]) and logs[0]["loss"] != others[0]["loss"]
    assert set(recipe.predictor().state_dict()) == set(plain.predictor().state_dict())


def test_deep_supervision_goes_with_several_decoders_and_networks() -> None:
    from scenes import changed

    settings = SETTINGS.model_copy(update={"model": DEEP})
    for topology in ({"multi_decoder": {"n": 2}}, "dual"):
        method = changed("supervised", topology=topology, predictor="mean" if topology == "dual" else "student")
        recipe, _ = run(method, 1, unlabelled=False, settings=settings)
        grads = [p.grad for net in recipe.nets.values() for p in net.deep.parameters()]
        assert grads and all(g is not None and g.abs().sum() > 0 for g in grads)


# Fingerprint ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0, 0.5, 37, 99.5, 100])
def test_percentiles_of_counts_are_those_of_the_values(share: float) -> None:
    values = np.random.default_rng(0).integers(0, 40, 1001)
    assert percentile(np.bincount(values, minlength=64), share) == pytest.approx(np.percentile(values, share))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_fingerprint_is_that_of_the_foreground(channels: int) -> None:
    arrays = native_pairs(channels=channels).native(16)
    found = measure(arrays)
    pixels = [arrays.images[i][:, arrays.masks[i] == 1] for i in range(len(arrays))]
    unit = pixels_to_unit(np.concatenate(pixels, 1), (0.0, 255.0)).double()
    assert found.mean == pytest.approx(unit.mean(1).tolist(), abs=1e-6)
    assert found.sd == pytest.approx(unit.std(1, correction=0).tolist(), abs=1e-6)
    assert found.low == pytest.approx(np.percentile(unit, 0.5, axis=1), abs=1e-6)
    assert found.high == pytest.approx(np.percentile(unit, 99.5, axis=1), abs=1e-6)


def test_the_door_clips_and_standardises_and_nothing_else() -> None:
    mark = Fingerprint(low=(-0.5,), high=(0.5,), mean=(0.1,), sd=(0.2,))
    assert Standardise(mark)(torch.tensor([-1, 0.3, 1.0]).reshape(3, 1, 1, 1)).flatten().tolist() == pytest.approx(
        [-3, 1, 2])
    model = ModelSettings(name="tiny", channels=(8, 16))
    plain, own = build_model("tiny", 1, 2, model), build_model("tiny", 1, 2, model, fingerprint=mark)
    x = smooth()
    assert torch.equal(own(x), plain((x.clamp(-0.5, 0.5) - 0.1) / 0.2)) and not torch.equal(own(x), plain(x))
    assert set(own.state_dict()) == set(plain.state_dict())


def test_the_fingerprint_knows_labelled_training_images_alone(tmp_path: Path) -> None:
    def mark(labelled: PairSet, name: str, **others: object) -> Fingerprint:
        return segtrain.fit({**CONFIG, "normalise": "fingerprint", "loop": {"steps": 1}}, labelled,
                            out=tmp_path / name, **others).config.fingerprint

    pairs = native_pairs(((32, 32),) * 3)
    alone = mark(pairs, "alone")
    bright = memory_set([np.full((32, 32), 250, np.uint8)] * 3, None, pairs.info, ids=list("abc"), groups=list("abc"))
    assert mark(pairs, "pile", method="fixmatch_ema", unlabelled=bright) == alone
    assert mark(pairs, "made", synthetic=native_pairs(((32, 32),) * 4)) == alone
    other = memory_set([np.where(p.mask == 0, 7, p.image) for p in pairs], [p.mask for p in pairs], pairs.info,
                       ids=pairs.ids, groups=pairs.groups)
    assert mark(other, "background") == alone
    assert mark(pairs.select([0, 1]), "fewer") != alone


def test_a_foreground_of_one_grey_value_is_refused() -> None:
    pairs = native_pairs()
    flat = memory_set([np.full(p.mask.shape, 9, np.uint8) for p in pairs], [p.mask for p in pairs], pairs.info,
                      ids=pairs.ids, groups=pairs.groups)
    with pytest.raises(UserError, match="one grey value"):
        measure(flat.native(16))


# Patches --------------------------------------------------------------------------------------------------------------

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
    from segtrain import inputs
    from segtrain.extras import Extras

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
    from segtrain.extras import Extras

    with pytest.raises(UserError, match="whole images"):
        Streams.read(PATCHED, native_pairs(), extras=Extras(stack=2))


BASELINE = ("patch=16", "normalise=fingerprint", "flip_averaging=true", "model.channels=[8,16,16]",
            "model.deep_supervision=true", "augment.intensity.p_invert=0.5", "optim.name=sgd", "optim.nesterov=true",
            "optim.clip=1.0")


@pytest.mark.parametrize("method", ["supervised", "fixmatch_ema"])
def test_the_whole_baseline_is_saved_and_predicts_the_same(method: str, tmp_path: Path) -> None:
    pairs = native_pairs()
    pile = memory_set([p.image for p in pairs], None, pairs.info, ids=list("abc"), groups=list("abc"))
    found = segtrain.fit(CONFIG, pairs, out=tmp_path, overrides=BASELINE, method=method,
                         unlabelled=pile if method == "fixmatch_ema" else None)
    again = Segmenter.load(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["tiles"] and config["size"] == 16 and config["fingerprint"]["mean"]
    for pair in pairs:
        x = pixels_to_unit(pair.image[None, None], (0.0, 255.0))
        prob = again.predict(x)
        assert prob.shape == (1, 2, *pair.image.shape) and torch.allclose(prob.sum(1), torch.ones(()), atol=1e-5)
        assert torch.allclose(prob, found.predict(x), atol=1e-5)
        assert torch.allclose(again.predict(x.flip(3)).flip(3), prob, atol=1e-5), "mirrored averaging"
    assert again.content_hash() == found.content_hash()
    paths = segtrain.predict(tmp_path, pile, out=tmp_path / "masks")
    native = again.predict_labels(pixels_to_unit(pairs[1].image[None, None], (0.0, 255.0)))
    from PIL import Image

    assert np.array_equal(np.asarray(Image.open(paths[1])), native[0].numpy())


def test_a_segmenter_of_patches_sees_no_resized_image() -> None:
    net = build_model("tiny", 1, 2, ModelSettings(name="tiny", channels=(8, 16)))
    config = SegmenterConfig(model=ModelSettings(name="tiny", channels=(8, 16)), info=PAIRS.info, size=16, tiles=True)
    x = smooth(1, size=48)
    tiled, whole = Segmenter(net, config), Segmenter(net, config.model_copy(update={"tiles": False}))
    assert (tiled.predict(x) - whole.predict(x)).abs().max() > 1e-3
    assert torch.allclose(tiled.predict(x[..., :16, :16]), whole.predict(x[..., :16, :16]), atol=1e-6)


def test_a_clipped_gradient_is_no_longer_than_asked() -> None:
    lengths = {}
    for clip in (None, 1e-3):
        optim = SETTINGS.optim.model_copy(update={"clip": clip})
        recipe, _ = run("supervised", 1, unlabelled=False, settings=SETTINGS.model_copy(update={"optim": optim}))
        lengths[clip] = float(nn.utils.get_total_norm([p.grad for p in weights(recipe)]))
    assert lengths[1e-3] <= 1.01e-3 < lengths[None]


def test_given_weights_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    model = ModelSettings(name="tiny", channels=(8, 16))
    for name, seed in (("a", 0), ("b", 1)):
        save_encoder(build_model("tiny", 1, 2, model, seed=seed), tmp_path / name)

    def fit(name: str) -> Segmenter:
        return segtrain.fit(CONFIG, PAIRS, out=tmp_path / "run", overrides=[f"model.weights={tmp_path / name}"])

    first = fit("a")
    assert first.config.model.weights.startswith("sha256:")
    (tmp_path / "a").rename(tmp_path / "moved")
    assert fit("moved").content_hash() == first.content_hash()
    with pytest.raises(UserError, match="another segment run"):
        fit("b")


def test_the_baselines_settings_are_settings_that_train() -> None:
    settings = load_config(SegmentSettings, ROOT / "configs" / "baseline.yaml", [
        "patch=32", "model.channels=[8,16,16]", "batch_size=2", "loop.steps=2"])
    from segtrain.method import load_method
    from segtrain.recipe import SegmentRecipe

    streams = Streams.read(settings, native_pairs())
    recipe = SegmentRecipe(settings, load_method("supervised"), info=native_pairs().info, has_synthetic=False,
                           fingerprint=measure(streams.labelled))
    assert torch.isfinite(recipe.step(streams.batches(0, 0, 1), 0.0)["loss"])


# Ahead ----------------------------------------------------------------------------------------------------------------

def test_batches_made_ahead_are_the_same_and_made_in_another_thread() -> None:
    streams, makers = Streams.read(SETTINGS, PAIRS, unlabelled=PAIRS), []

    def batches(step: int, rank: int, n_ranks: int) -> dict[str, torch.Tensor]:
        makers.append((step, threading.current_thread().name.startswith("batches")))
        return streams.batches(step, rank, n_ranks)

    with Ahead(batches, 5) as ahead:
        for step in (0, 1, 2, 4):  # 3 is skipped: what was foreseen is not what was asked for
            found = ahead(step, 0, 1)
            assert all(torch.equal(v, found[k]) for k, v in streams.batches(step, 0, 1).items())
    # 3 may have been called off before its turn came.
    assert set(makers) - {(3, True)} == {(0, False), (1, True), (2, True), (4, False)}
    assert not any(thread.name.startswith("batches") for thread in threading.enumerate())


def test_a_mistake_in_a_batch_made_ahead_is_raised_where_it_is_asked_for() -> None:
    def batches(step: int, rank: int, n_ranks: int) -> dict[str, torch.Tensor]:
        if step == 1:
            raise UserError("batch", rule="it is bad", repair="none")
        return {}

    with Ahead(batches, 5) as ahead:
        assert ahead(0, 0, 1) == {}
        with pytest.raises(UserError, match="it is bad"):
            ahead(1, 0, 1)

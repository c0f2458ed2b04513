"""Images larger than the generator: tiles, windows, crops at their own resolution, pairs of every size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, maximum_filter
from tiny import FIT, files_of, tiny_pipeline

import synth
from synth.core.checks import IGNORE, UserError
from synth.core.pairs import DataInfo, PairSet, Rows, memory_set
from synth.core.rng import sample_rng
from synth.core.space import pixels_to_unit, to_channels
from synth.diffusion import fit as fitting
from synth.diffusion.batches import cut_crops, draw_crop
from synth.diffusion.denoiser import Told, guided, n_condition_channels
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.plan import median_thickness
from synth.diffusion.settings import DenoiserSettings, SamplerSettings
from synth.diffusion.tiles import corners, pad_to_multiple, paint_box, tile_weight, tiled
from synth.draw.sources import Window, transform_pairs
from synth.formats import read_shards
from synth.gates import GateSettings, default_gates
from synth.layouts import LayoutSettings, apply_layout, apply_mask, layout_from_json

SHAPES = ((40, 56), (64, 64), (64, 64), (49, 90), (24, 30))
PIPELINE = tiny_pipeline(sampler=SamplerSettings(n_steps=3, margin_cells=(1, 1)))
SEED = 8
CONFIG = {"shard_size": 2, "batch_size": 3, "max_tries": 9, "layout": {"shift": 0.1, "recombine": 0.5}}


def mixed(shapes: tuple[tuple[int, int], ...] = SHAPES, *, bit_depth: int = 8) -> PairSet:
    """Returns grey pairs of mixed sizes: a smooth background without a frame, and one bright square in each."""
    rng, top = np.random.default_rng(0), 2**bit_depth - 1
    images, masks = [], []
    for height, width in shapes:
        texture = gaussian_filter(rng.standard_normal((height, width)), 2)
        mask = np.zeros((height, width), np.uint8)
        y, x = int(rng.integers(6, height - 14)), int(rng.integers(6, width - 14))
        mask[y:y + 8, x:x + 8] = 1
        unit = np.where(mask == 1, 0.9, np.clip(0.4 + 0.1 * texture / texture.std(), 0.05, 0.7))
        images.append(np.round(unit * top).astype(np.uint8 if bit_depth == 8 else np.uint16))
        masks.append(mask)
    info = DataInfo(("background", "square"), 1, bit_depth, (0.0, float(top)))
    return memory_set(images, masks, info, ids=[f"m{i}" for i in range(len(shapes))],
                      groups=[f"g{i}" for i in range(len(shapes))])


def native(*, bit_depth: int = 8, sampler: SamplerSettings | None = None) -> InpaintPipeline:
    """Returns an untrained pipeline that says it was fitted at native scale."""
    pipeline = tiny_pipeline(value_range=(0, 2**bit_depth - 1), sampler=sampler or SamplerSettings(
        n_steps=2, margin_cells=(1, 1)))
    pipeline.register_to_config(scale="native")
    return pipeline


def told(shape: tuple[int, int], *, n: int = 1, seed: int = 0) -> tuple[Told, torch.Tensor, torch.Tensor]:
    """Returns a random condition of n canvases, latents (n, c, h, w), and what is kept: the left half."""
    channels, rng = PIPELINE.unet.config.out_channels, torch.Generator().manual_seed(seed)
    keep = torch.zeros(n, 1, *shape, dtype=torch.bool)
    keep[..., :shape[1] // 2] = True
    clean = torch.randn(n, channels, *shape, generator=rng)
    coverage = torch.rand(n, 3, *shape, generator=rng)
    assert n_condition_channels(latent_channels=channels, n_classes=3) == channels + 4
    return Told.of(clean, keep, coverage), torch.randn(n, channels, *shape, generator=rng), keep


class Constant(torch.nn.Module):
    """A network that answers so that the clean estimate is 0.7 wherever; it counts its calls and images."""

    def __init__(self, tile: int) -> None:
        super().__init__()
        self.config = dataclasses.make_dataclass("Config", ["sample_size"])(tile)
        self.calls: list[int] = []

    def forward(self, values: torch.Tensor, times: torch.Tensor) -> object:
        """Returns the output F for inputs (B, c + d, h, w), by inverting the preconditioning (Karras et al. 2022)."""
        self.calls.append(len(values))
        sigma = (times / 250).exp().view(-1, 1, 1, 1)
        noisy = values[:, :2] * (sigma**2 + 1).sqrt()
        out = (0.7 - noisy / (sigma**2 + 1)) * (sigma**2 + 1).sqrt() / sigma
        return dataclasses.make_dataclass("Output", ["sample"])(out)


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_one_tile_is_the_network_bit_for_bit(guidance: float) -> None:
    condition, latents, keep = told((8, 8), n=2)
    expected = guided(PIPELINE.unet, condition, latents, 3.0, guidance=guidance)
    found = tiled(PIPELINE.unet, condition, keep, guidance=guidance, tile_batch=1)(latents, 3.0)
    assert torch.equal(found, expected)


@torch.no_grad()
def test_at_its_own_size_the_pipeline_paints_as_it_did_without_tiles() -> None:
    image, keep = torch.rand(2, 1, 32, 32) * 2 - 1, torch.zeros(2, 32, 32, dtype=torch.bool)
    one, many = (tiny_pipeline(sampler=SamplerSettings(n_steps=3, tile_batch=k)) for k in (1, 16))
    assert torch.equal(one.paint(image, keep, seeds=[1, 2]), many.paint(image, keep, seeds=[1, 2]))


@torch.no_grad()
@pytest.mark.parametrize(("shape", "tile_batch"), [((8, 8), 4), ((12, 20), 4), ((31, 9), 1), ((17, 17), 100)])
def test_a_constant_estimate_shows_no_tile(shape: tuple[int, int], tile_batch: int) -> None:
    condition = Told(torch.zeros(1, 2, *shape), torch.zeros(1, 2, *shape))
    keep = torch.zeros(1, 1, *shape, dtype=torch.bool)
    estimate = tiled(Constant(8), condition, keep, guidance=1, tile_batch=tile_batch)(torch.randn(1, 2, *shape), 2.0)
    assert torch.allclose(estimate, torch.full_like(estimate, 0.7), atol=1e-5)


@torch.no_grad()
def test_tiles_that_are_wholly_known_are_skipped_and_what_they_hold_is_known() -> None:
    condition = Told(torch.full((1, 2, 32, 32), 0.25), torch.full((1, 2, 32, 32), 0.25))
    keep = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    keep[..., 2:5, 2:5] = False
    net = Constant(8)
    estimate = tiled(net, condition, keep, guidance=1, tile_batch=16)(torch.randn(1, 2, 32, 32), 2.0)
    assert net.calls == [4], "of 49 tiles, the four that touch the hole"
    assert torch.allclose(estimate[..., :12, :12], torch.tensor(0.7), atol=1e-5)
    assert torch.equal(estimate[..., 12:, :], torch.full((1, 2, 20, 32), 0.25))
    net = Constant(8)
    tiled(net, condition, keep, guidance=1, tile_batch=3)(torch.randn(1, 2, 32, 32), 2.0)
    assert net.calls == [3, 1]


@pytest.mark.parametrize("length", [8, 9, 12, 13, 31, 200])
def test_tiles_cover_a_side_evenly_and_overlap_by_half(length: int) -> None:
    places = corners(length, 8)
    assert places[0] == 0 and places[-1] == length - 8 and places == sorted(set(places))
    assert all(b - a <= 4 for a, b in zip(places, places[1:], strict=False))
    assert tile_weight(8).min() > 0 and torch.allclose(tile_weight(8), tile_weight(8).flip(0, 1).T)


def test_padding_mirrors_and_leaves_multiples_alone() -> None:
    values = torch.arange(6).view(1, 2, 3)
    assert pad_to_multiple(values, 4).tolist() == [[[0, 1, 2, 1], [3, 4, 5, 4], [0, 1, 2, 1], [3, 4, 5, 4]]]
    assert torch.equal(pad_to_multiple(values, 1), values)


def test_the_part_that_is_painted_lies_within_the_canvas_and_is_a_tile_at_least() -> None:
    free = torch.zeros(96, 160, dtype=torch.bool)
    assert paint_box(free, tile_px=32, factor=4) is None
    free[90:95, 70:72] = True
    rows, columns = paint_box(free, tile_px=32, factor=4)
    assert (rows.start, rows.stop) == (64, 96) and columns.stop - columns.start == 32
    assert columns.start <= 70 - 8 and columns.stop >= 72 + 8 and columns.start % 4 == 0
    assert paint_box(~torch.zeros(96, 160, dtype=torch.bool), tile_px=32, factor=4) == (slice(0, 96), slice(0, 160))


def canvas(shape: tuple[int, int] = (48, 80), n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns n random unit images and keep masks: one disc each."""
    rng = torch.Generator().manual_seed(1)
    y, x = torch.meshgrid(*(torch.arange(s) for s in shape), indexing="ij")
    keep = torch.stack([(y - 20 - 2 * i).square() + (x - 30 - 9 * i).square() < 60 for i in range(n)])
    return torch.rand(n, 1, *shape, generator=rng) * 2 - 1, keep


@pytest.mark.parametrize("shape", [(48, 80), (45, 79), (32, 33)])
@pytest.mark.parametrize("kind", ["pixels", "kl"])
def test_a_larger_image_keeps_its_shape_and_its_kept_pixels(shape: tuple[int, int], kind: str) -> None:
    pipeline = tiny_pipeline(kind=kind, sampler=SamplerSettings(n_steps=2, margin_cells=(1, 1)))
    image, keep = canvas(shape)
    painted = pipeline.paint(image, keep, seeds=[3, 4])
    assert painted.shape == image.shape and torch.isfinite(painted).all() and painted.abs().max() <= 1
    assert torch.equal(painted[keep[:, None]], image[keep[:, None]])
    assert (painted != image)[~keep[:, None]].float().mean() > 0.7
    assert torch.equal(painted, pipeline.paint(image, keep, seeds=[3, 4])), "the same seeds, the same pixels"
    alone = torch.cat([pipeline.paint(image[i:i + 1], keep[i:i + 1], seeds=[3 + i]) for i in range(2)])
    assert torch.equal(painted, alone), "an image is the same alone and in a batch"
    assert pipeline.roundtrip(image).shape == image.shape


@pytest.mark.parametrize("mode", ["surroundings", "object", "layout"])
def test_every_mode_paints_larger_images_and_keeps_what_it_shall(mode: str) -> None:
    pipeline = PIPELINE.with_sampler(SamplerSettings(n_steps=2, mode=mode, margin_cells=(1, 1)))
    image, labels = canvas((45, 79))
    keep_in = torch.ones_like(labels)
    keep_in[:, 5:40, 8:60] = False
    painted = pipeline.sample(image, labels.long(), seeds=[1, 2], keep_in=keep_in)
    kept = pipeline.kept(labels.long(), keep_in)[:, None]
    assert pipeline.any_size and torch.equal(painted[kept], image[kept]) and (painted != image)[~kept].any()


def test_a_larger_image_is_redrawn_as_a_whole_but_for_its_frame() -> None:
    pipeline = PIPELINE.with_sampler(SamplerSettings(n_steps=2, texture="redrawn"))
    image, keep = canvas((45, 79))
    keep_in = torch.zeros_like(keep)
    keep_in[:, :8] = True
    painted = pipeline.paint(image, ~keep_in, seeds=[1, 2], keep_in=keep_in)  # nothing to paint: all is to be redrawn
    assert torch.equal(painted[:, :, :8], image[:, :, :8])
    assert ((painted - image)[:, :, 12:].abs() > 1e-3).float().mean() > 0.9


def test_a_window_costs_its_own_tiles_and_everything_kept_costs_none() -> None:
    image, keep_in = torch.zeros(1, 1, 256, 256), torch.ones(1, 256, 256, dtype=torch.bool)
    keep = torch.zeros_like(keep_in)
    calls, done = [], []
    hook = PIPELINE.unet.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape))
    try:
        assert torch.equal(PIPELINE.paint(image, keep, seeds=[1], keep_in=keep_in), image) and not calls
        keep_in[:, 100:116, 120:136] = False
        PIPELINE.paint(image, keep, seeds=[1], keep_in=keep_in, callback=lambda i, n: done.append((i, n)))
    finally:
        hook.remove()
    assert {tuple(shape[-2:]) for shape in calls} == {(8, 8)} and sum(shape[0] for shape in calls) == 3
    n = PIPELINE.evaluations()
    assert done == [(i + 1, n) for i in range(n)], "one evaluation a level, whatever number of tiles"


def test_smaller_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least 32 px a side"):
        PIPELINE.paint(torch.zeros(1, 1, 31, 64), torch.zeros(1, 31, 64, dtype=torch.bool), seeds=[1])


def test_native_arrays_are_read_row_by_row_and_small_images_enlarged() -> None:
    pairs, reads = mixed(), []
    items = [dataclasses.replace(item, read=lambda item=item: reads.append(item.id) or item.read())
             for item in pairs.items]
    arrays = PairSet(items, pairs.info).native(32)
    assert isinstance(arrays.images, Rows) and arrays.is_native and reads == []
    assert arrays.images[1].shape == (1, 64, 64) and np.array_equal(arrays.masks[1], pairs[1].mask)
    assert reads == ["m1"], "image and mask are read once"
    assert arrays.shapes == ((40, 56), (64, 64), (64, 64), (49, 90), (32, 40))
    assert set(np.unique(arrays.masks[4])) == {0, 1} and arrays.masks[4].shape == (32, 40)
    assert arrays.fingerprint() == mixed().native(32).fingerprint() != mixed().native(40).fingerprint()
    assert arrays.select([3, 0]).shapes == ((49, 90), (40, 56)) and arrays.select([3, 0]).ids == ("m3", "m0")


def test_crops_keep_image_and_labels_aligned_and_often_show_the_object() -> None:
    settings = DenoiserSettings(n_views=12)
    views = cut_crops(mixed().native(32), size=32, settings=settings)
    images, masks = np.concatenate([v.images for v in views]), np.concatenate([v.masks for v in views])
    assert images.shape == (60, 1, 32, 32) and images.dtype == np.uint8 and len(views) == 12
    exact = np.arange(60) % 5 != 4  # the last image was enlarged, bilinear
    assert (masks == 1).any((1, 2)).mean() > 0.5 and np.array_equal(masks[exact] == 1, images[exact, 0] > 200)
    assert len({v.fingerprint() for v in views}) == 12 and views[0].ids == mixed().ids
    again = cut_crops(mixed().native(32).select([3]), size=32, settings=settings)
    assert np.array_equal(again[5].images[0], views[5].images[3]), "a crop depends on its own image alone"
    blind = cut_crops(mixed().native(32).without_masks(), size=32, settings=settings)
    assert (blind[0].masks == IGNORE).all()


def test_a_crop_lies_within_the_image() -> None:
    mask = np.zeros((40, 33), np.uint8)
    mask[0, 32] = 1
    for i in range(50):
        rows, columns = draw_crop(sample_rng(i), mask, size=32)
        assert 0 <= rows.start <= 8 and rows.stop - rows.start == 32 and columns.start in (0, 1)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[InpaintPipeline, Path]:
    """Returns a pipeline fitted at native scale on labelled and unlabelled images of mixed sizes, and its folder."""
    out = tmp_path_factory.mktemp("native") / "painter"
    return synth.fit({**FIT, "scale": "native"}, mixed(), pile(), out=out), out


def pile() -> synth.core.pairs.ImageSet:
    """Returns unlabelled images of other sizes."""
    pairs = mixed(((70, 33), (33, 48)))
    return memory_set([p.image for p in pairs], None, pairs.info, ids=["u0", "u1"], groups=["u", "u"])


def test_fit_at_native_scale_says_so_and_resumes(fitted: tuple[InpaintPipeline, Path], tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, out = fitted
    assert pipeline.scale == "native" == synth.load_generator(out).scale and pipeline.size == 32
    assert json.loads((out / "model_index.json").read_text())["scale"] == "native"
    train = fitting.train

    def stop_before_the_denoiser(recipe: object, batches: object, *args: object, label: str) -> None:
        if label == "denoiser":
            raise KeyboardInterrupt
        train(recipe, batches, *args, label=label)

    monkeypatch.setattr(fitting, "train", stop_before_the_denoiser)
    with pytest.raises(KeyboardInterrupt):
        synth.fit({**FIT, "scale": "native"}, mixed(), pile(), out=tmp_path / "cut")
    monkeypatch.undo()
    resumed = synth.fit({**FIT, "scale": "native"}, mixed(), pile(), out=tmp_path / "cut")
    assert resumed.content_hash() == pipeline.content_hash()
    with pytest.raises(UserError, match="another inpaint run"):
        synth.fit(FIT, mixed(), pile(), out=out)


def test_thickness_is_measured_at_native_size() -> None:
    assert median_thickness(mixed(((64, 64), (200, 300))).native(32).masks) == 8.0


def test_the_window_holds_every_object_and_a_tile_at_least() -> None:
    there = np.zeros((100, 200), bool)
    there[0:4, 0:4] = there[60:90, 150:170] = True
    painted = Window(grow_px=16, least_px=32).around(there)
    assert painted[:32, :32].all() and painted[44:100, 134:186].all()
    assert painted.sum() == 32 * 32 + (100 - 44) * (186 - 134) and Window(16, 8).around(there)[:20, :20].all()
    assert Window(grow_px=0, least_px=300).around(there).all()


def test_sources_are_kept_outside_the_window_and_unknown_where_the_frame_moved_in() -> None:
    pairs = mixed(((200, 300),)).native(32)
    sources = transform_pairs(pairs, ["a"], rows=[0], seed=3, layout=LayoutSettings(shift=0.2, recombine=0),
                              window=Window(16, 32))
    edit = layout_from_json(sources.layouts[0])
    placed = apply_layout(pairs.images[0], pairs.masks[0], edit)
    window = ~sources.keep_in[0]
    assert edit.affine.rotate_deg != 0
    assert np.array_equal(sources.pixels[0], placed.pixels) and window[sources.labels[0] == 1].all()
    assert window.any() and window.mean() < 0.05
    moved_in = apply_mask(np.ones((200, 300), np.uint8), edit.affine) == 0
    assert moved_in.any() and np.array_equal(sources.labels[0] == IGNORE, moved_in & ~window)
    assert np.array_equal(sources.labels[0][~moved_in], placed.labels[~moved_in])


def draw(out: Path, *, bit_depth: int = 8, **changes: object) -> PairSet:
    """Returns four pairs drawn at native size into `out`."""
    made = synth.draw(native(bit_depth=bit_depth), mixed(bit_depth=bit_depth), n=4, seed=SEED, out=out,
                      config={**CONFIG, **changes})
    assert made is not None
    return made


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_pairs_are_drawn_at_their_own_sizes_and_only_within_the_window(bit_depth: int, tmp_path: Path) -> None:
    pairs = mixed(bit_depth=bit_depth)
    arrays, shapes = pairs.native(32), set()
    for pair in draw(tmp_path / "made", bit_depth=bit_depth):
        row, edit = pairs.ids.index(pair.made.parents[0]), layout_from_json(pair.made.layout)
        second = pairs.ids.index(edit.recombined.other) if edit.recombined else None
        placed = apply_layout(arrays.images[row], arrays.masks[row], edit,
                              other=None if second is None else (arrays.images[second], arrays.masks[second]))
        assert pair.image.shape == arrays.shapes[row] == pair.mask.shape and pair.image.dtype == pairs.info.dtype
        there = placed.labels == 1
        taken = apply_mask(arrays.masks[row], edit.affine) == 1
        noted = Window(*json.loads(pair.made.layout)["window"])
        assert noted == Window(16, 32)
        window = noted.around(there | taken if edit.recombined else there)
        kept = there | ~window
        assert there.any() and np.array_equal(pair.image[kept], placed.pixels[0][kept])
        assert (pair.image[~kept] != placed.pixels[0][~kept]).mean() > 0.5
        assert np.array_equal(pair.mask == 1, there) and set(np.unique(pair.mask)) <= {0, 1, IGNORE}
        shapes.add(pair.image.shape)
    assert len(shapes) > 1


def test_spectra_that_nobody_compares_reject_nothing_so_it_is_refused(tmp_path: Path) -> None:
    pairs = mixed()
    gates = default_gates(None, pairs, size=32, settings=GateSettings(spectrum="reject"))
    with pytest.raises(UserError, match=r"spectrum=reject: frequencies can be compared at one working size only"):
        synth.draw(native(), pairs, n=1, gates=gates, out=tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_drawing_at_native_size_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    draw(tmp_path / "whole")
    draw(tmp_path / "cut")
    (tmp_path / "cut" / "ledger" / "00001.json").unlink()
    (tmp_path / "cut" / "data" / "train-00001-of-00002.parquet").unlink()
    draw(tmp_path / "cut")
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "cut")
    with pytest.raises(UserError, match="another draw run"):
        draw(tmp_path / "cut", window="all")


def test_a_window_of_all_paints_the_whole_image(tmp_path: Path) -> None:
    for pair in draw(tmp_path / "all", window="all", layout={"keep_in": "none", "recombine": 0}):
        source = layout_from_json(pair.made.layout)
        row = mixed().ids.index(pair.made.parents[0])
        placed = apply_layout(mixed().native(32).images[row], mixed().native(32).masks[row], source)
        assert (pair.image != placed.pixels[0])[pair.mask == 0].mean() > 0.6


def test_gates_judge_pairs_of_mixed_sizes(tmp_path: Path) -> None:
    pairs, seen = mixed(), []

    def judge(images: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(images.shape[-2:]))
        p = torch.sigmoid(40 * (images.mean(1) - 0.5))
        return torch.stack([1 - p, p], 1)

    gates = dataclasses.replace(default_gates(judge, pairs, size=32), max_correlation=1.0, min_faithfulness=0.0)
    made = synth.draw(native(), pairs, n=3, seed=1, gates=gates, out=tmp_path / "made", config=CONFIG)
    assert made is not None and len(set(seen) - {(32, 32)}) > 1
    assert all(set(i.made.scores) == {"correlation", "faithfulness", "false_foreground"} for i in made.items)
    assert len(read_shards(tmp_path / "made")) == 3


def test_what_lies_outside_the_window_is_not_judged(tmp_path: Path) -> None:
    pairs, left = mixed(((64, 200), (64, 200))), np.arange(200)[None] < 100

    def judge(images: torch.Tensor) -> torch.Tensor:
        """Returns probabilities (B, 2, 64, 200): foreground in all of the left half."""
        p = torch.from_numpy(left).float().expand(len(images), 64, 200)
        return torch.stack([1 - p, p], 1)

    gates = default_gates(None, pairs, size=32)
    gates = dataclasses.replace(gates, predict=judge, max_correlation=1.0, settings=gates.settings.model_copy(
        update={"max_false_foreground": 1.0}))
    still = {"shift": 0, "scale": [1, 1], "rotate_deg": 0, "elastic": 0, "recombine": 0}
    made = synth.draw(native(), pairs, n=3, seed=1, gates=gates, out=tmp_path / "made",
                      config={**CONFIG, "layout": still})
    assert made is not None
    for pair in made:
        window, ignored = Window(16, 32).around(pair.mask == 1), pair.mask == IGNORE
        clear = maximum_filter(pair.mask == 1, 2 * gates.settings.clear_px + 1)
        assert not ignored[~window].any() and np.array_equal(ignored[window], (window & left & ~clear)[window])


def test_the_control_through_the_codec_is_drawn_at_native_size_too(tmp_path: Path) -> None:
    made = synth.draw_roundtrip(native(), mixed(), n=2, out=tmp_path / "made", config=CONFIG)
    assert {p.image.shape for p in made} <= {(40, 56), (64, 64), (49, 90), (32, 40)}


def test_other_generators_draw_at_their_size_as_before(tmp_path: Path) -> None:
    made = synth.draw(PIPELINE, mixed(), n=2, out=tmp_path / "made", config=CONFIG)
    assert {p.image.shape for p in made} == {(32, 32)}
    unit = pixels_to_unit(np.stack([to_channels(p.image) for p in made]), (0, 255))
    assert unit.shape == (2, 1, 32, 32)

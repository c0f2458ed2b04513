"""The shape model: what it draws, what it finds plausible, saved and loaded, and as a gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import squares, tiny_pipeline

import synth
from synth.core.checks import UserError
from synth.core.pairs import DataInfo, PairSet, memory_set
from synth.diffusion.settings import SamplerSettings
from synth.gates import default_gates, run_gates
from synth.layouts import LayoutSettings, ShapeModel, Shapes, layout_from_json, place
from synth.layouts.shape.fit import MoveSettings, ShapeSettings, fit_shape, held_aside
from synth.layouts.shape.net import divergence

Y, X = np.mgrid[:32, :32]
SETTINGS = ShapeSettings(size=32, widths=(16, 32, 32), latents=8, n_moves=8, batch_size=8,
                         move=MoveSettings(rotate_deg=10, shift=0.08, elastic=0.01),
                         loop={"steps": 250, "checkpoint_every": 250, "log_every": 50})


def ring(i: int) -> np.ndarray:
    """Returns labels (32, 32): class 2 in a ring of class 1, where and how large depends on i."""
    r = np.hypot(X - 15 - i % 3, Y - 14 - i % 4)
    return np.where(r < 5 + i % 2, 2, r < 9 + i % 2).astype(np.uint8)


def rings(n: int = 12) -> PairSet:
    """Returns n pairs of rings, each its own group."""
    masks = [ring(i) for i in range(n)]
    info = DataInfo(("bg", "wall", "room"), 1, 8, (0.0, 255.0))
    names = [f"r{i}" for i in range(n)]
    made = memory_set([m * 100 for m in masks], masks, info, ids=names, groups=names)
    assert isinstance(made, PairSet)
    return made


PAIRS = rings()


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShapeModel, Path]:
    """Returns a model of rings, and its folder."""
    out = tmp_path_factory.mktemp("shape") / "run"
    return fit_shape(SETTINGS, PAIRS, None, out), out


def as_tensor(*masks: np.ndarray) -> torch.Tensor:
    """Returns masks as labels (B, 32, 32)."""
    return torch.from_numpy(np.stack(masks).astype(np.int64))


def test_the_divergence_of_the_prior_is_0_and_of_a_shift_its_half_square() -> None:
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0, 0]
    assert divergence(torch.full((1, 4), 2.0), torch.zeros(1, 4)).item() == pytest.approx(8)


def test_real_maps_are_told_from_broken_ones(fitted: tuple[ShapeModel, Path]) -> None:
    model = fitted[0]
    real = [np.roll(ring(i), (1, -1), (0, 1)) for i in range(12)]
    torn = [np.concatenate([m[:14], np.roll(m[14:], 6, 1)]) for m in real]
    inside_out = [np.array([0, 2, 1], np.uint8)[m] for m in real]
    misplaced = [np.where(np.roll(m == 2, 10, 1), 2, np.where(m == 2, 0, m)) for m in real]
    e = model.energy(as_tensor(*real)).numpy()
    for broken in (torn, inside_out, misplaced):
        auc = (model.energy(as_tensor(*broken)).numpy()[:, None] > e[None]).mean()
        assert auc > 0.95, auc


def test_percentiles_are_those_of_the_calibration(fitted: tuple[ShapeModel, Path]) -> None:
    model = fitted[0]
    held = held_aside(PAIRS.groups, SETTINGS)
    assert model.held_aside == held.sum() == 2 and len(model.calibration) == 16
    assert list(model.calibration) == sorted(model.calibration)
    noise = np.random.default_rng(0).integers(0, 3, (32, 32)).astype(np.uint8)
    assert model.percentile(as_tensor(noise)).item() == 1 > model.percentile(as_tensor(ring(0))).item()
    unknown = ring(0).copy()
    unknown[:2] = 255
    assert torch.isfinite(model.energy(as_tensor(unknown))).all()


def test_what_was_saved_is_what_was_fitted(fitted: tuple[ShapeModel, Path], tmp_path: Path) -> None:
    model, out = fitted
    again = ShapeModel.load(out, size=32, n_classes=3)
    assert again.content_hash() == model.content_hash() == fit_shape(SETTINGS, PAIRS, None, out).content_hash()
    assert torch.equal(again.energy(as_tensor(ring(3))), model.energy(as_tensor(ring(3))))
    for words in ({"size": 64}, {"n_classes": 2}):
        with pytest.raises(UserError, match="asked for"):
            ShapeModel.load(out, **words)
    with pytest.raises(UserError, match="no shape model here"):
        ShapeModel.load(tmp_path)
    with pytest.raises(UserError, match="another shape run"):
        fit_shape(SETTINGS.model_copy(update={"latents": 4}), PAIRS, None, out)
    with pytest.raises(UserError, match="32 px"):
        model.energy(torch.zeros(1, 64, 64, dtype=torch.long))


def test_whole_groups_are_held_aside_and_none_of_few() -> None:
    held = held_aside(("a", "a", "b", "b", "c", "d", "e"), SETTINGS)
    assert held.any() and held[0] == held[1] and held[2] == held[3]
    assert not held_aside(("a", "b", "c"), SETTINGS).any()


def test_layouts_are_new_sound_and_told_in_full(fitted: tuple[ShapeModel, Path], tmp_path: Path) -> None:
    model = fitted[0]
    config = {"layout": {"source": "shape", "shape": {"temperature": 0.5, "max_percentile": 1.0}}}
    made = synth.draw_layouts(PAIRS, n=12, size=32, out=tmp_path / "made", config=config, shape=model)
    arrays = PAIRS.arrays(32)
    shapes, seen = Shapes.of(model, arrays), 0
    for pair in made:
        layout = layout_from_json(pair.made.layout)
        if layout.shape is None:
            continue
        seen += 1
        row = arrays.ids.index(pair.made.parents[0])
        assert np.array_equal(place(arrays, row, layout, shapes=shapes).labels, pair.mask)
        assert not any(np.array_equal(pair.mask, mask) for mask in arrays.masks)
        assert len(pair.made.parents) == 1 + bool(layout.shape.other) and layout.shape.model == model.content_hash()
    assert seen > 8
    parents = {len(item.made.parents) for item in made.items}
    assert parents == {1, 2}, "some between two maps, some anywhere"


def test_without_a_plausible_code_a_pair_is_moved_and_that_is_said(
        fitted: tuple[ShapeModel, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = {"layout": {"source": "shape", "rules": {"learn": False, "apart": [[1, 2]]}}}
    made = synth.draw_layouts(PAIRS, n=3, size=32, out=tmp_path / "made", config=config, shape=fitted[0])
    assert all(layout_from_json(item.made.layout).shape is None for item in made.items)
    assert "3 of 3 layouts are labelled maps, moved" in capsys.readouterr().out
    assert "layouts 3 of 3 are labelled maps that were moved" in (tmp_path / "made" / "README.md").read_text()
    synth.draw_layouts(PAIRS, n=3, size=32, out=tmp_path / "moved", config={"layout": {"grow_px": 1}})
    assert "layouts are" not in capsys.readouterr().out, "where no model was to draw them there is nothing to say"


@pytest.mark.parametrize("name", ["grow_px", "bend_px"])
def test_what_a_shape_model_draws_is_not_grown_or_bent_as_well(fitted: tuple[ShapeModel, Path], tmp_path: Path,
                                                               name: str) -> None:
    with pytest.raises(UserError, match=f"layout.{name}=2.*a model says"):
        synth.draw_layouts(PAIRS, n=3, size=32, out=tmp_path / "made", shape=fitted[0],
                           config={"layout": {"source": "shape", name: 2.0}})


def test_the_gate_rejects_what_no_real_map_resembles(fitted: tuple[ShapeModel, Path]) -> None:
    gates = default_gates(None, PAIRS, size=32, shape=fitted[0])
    noise = np.random.default_rng(0).integers(0, 3, (32, 32)).astype(np.uint8)
    labels = as_tensor(ring(1), noise)
    images = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    good, bad = run_gates(images, labels, gates)[1]
    assert "plausibility" not in good.reason and good.scores["plausibility"] > 0.02
    assert bad.scores["plausibility"] == 0 and "plausibility 0.000 < 0.020" in bad.reason
    plain = default_gates(None, PAIRS, size=32)
    assert plain.identity != gates.identity and "plausibility" not in run_gates(images, labels, plain)[1][0].scores


def test_a_generator_that_keeps_nothing_draws_them(fitted: tuple[ShapeModel, Path], tmp_path: Path) -> None:
    free = tiny_pipeline(sampler=SamplerSettings(n_steps=2, mode="layout"))
    made = synth.draw(free, PAIRS, n=3, out=tmp_path / "made", config={"layout": {"source": "shape"}}, shape=fitted[0])
    assert len(made) == 3
    with pytest.raises(UserError, match="no shape model"):
        synth.draw(free, PAIRS, n=3, out=tmp_path / "none", config={"layout": {"source": "shape"}})
    with pytest.raises(UserError, match="layout.source=transform"):
        synth.draw(free, PAIRS, n=3, out=tmp_path / "unused", shape=fitted[0])
    with pytest.raises(UserError, match="classes"):
        synth.draw(free, squares(4), n=3, out=tmp_path / "other", config={"layout": {"source": "shape"}},
                   shape=fitted[0])
    assert LayoutSettings().is_free is False


def test_images_without_masks_teach_no_shape(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="masks alone"):
        synth.fit(SETTINGS, PAIRS, PAIRS, out=tmp_path / "run")

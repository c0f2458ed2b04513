"""Masks beside a set, images kept apart, and stacks: what the streams offer to the methods that want it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom
from PIL import Image
from scenes import PAIRS, SETTINGS, make_scene

import segtrain
from segtrain.streams import Streams
from segtrain.streams.extras import Extras
from segtrain.streams.stacks import hold_out, windows
from segtrain.streams.stored import read_observers, read_stored
from segtrain.targets.store import Store
from segtrain.transforms.geometry import sample_nearest
from segtrain.transforms.warps import GridWarp, Stay
from synth.core.checks import IGNORE, UserError
from synth.core.pairs import ImageSet, memory_set
from synth.formats.info import write_info

CONFIG = {"size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "model": {"name": "tiny", "channels": [8, 16]},
          "loop": {"steps": 2, "log_every": 1, "checkpoint_every": 2}}


def write(folder: Path, values: dict[str, np.ndarray]) -> None:
    """Writes arrays (H, W) uint8 as NAME.png into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        Image.fromarray(value.astype(np.uint8)).save(folder / f"{name}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Returns a folder with a mask and a confidence for every phantom image."""
    write(tmp_path / "masks", {p.id: p.mask for p in PAIRS})
    write(tmp_path / "confidence", {p.id: np.full(p.mask.shape, 51 * i) for i, p in enumerate(PAIRS)})
    return tmp_path


def pile() -> ImageSet:
    """Returns the phantom's images without masks."""
    return memory_set([p.image for p in PAIRS], None, PAIRS.info, ids=PAIRS.ids, groups=PAIRS.groups)


def test_what_is_stored_is_read_in_the_order_of_the_set(root: Path) -> None:
    stored = read_stored(root, pile().select([3, 1]), 32, 2)
    assert np.array_equal(stored.labels[0], PAIRS[3].mask) and (stored.confidence[0] == 153).all()
    assert (stored.confidence[1] == 51).all()
    shutil.rmtree(root / "confidence")
    assert (read_stored(root, pile(), 32, 2).confidence == 255).all()
    assert read_stored(root, pile(), 16, 2).labels.shape == (6, 16, 16)


@pytest.mark.parametrize(("folder", "value", "match"), [
    ("masks", None, "masks.*no such file"), ("confidence", None, "confidence.*no such file"),
    ("masks", np.ones((16, 32)), "masks.*16x32 but its image is 32x32"),
    ("confidence", np.ones((8, 8)), "confidence.*8x8"),
    ("masks", np.full((32, 32), 2), "masks.*outside the classes 0..1"),
])
def test_what_is_wrong_with_a_stored_file_is_named(root: Path, folder: str, value: np.ndarray | None,
                                                   match: str) -> None:
    name = PAIRS.ids[2]
    (root / folder / f"{name}.png").unlink()
    if value is not None:
        write(root / folder, {name: value})
    with pytest.raises(UserError, match=match) as error:
        read_stored(root, pile(), 32, 2)
    assert f"{name}.png" in str(error.value)


def test_masks_of_0_and_255_alone_say_no_foreground_and_are_refused(root: Path) -> None:
    write(root / "masks", {p.id: np.where(p.mask > 0, 255, 0) for p in PAIRS})
    with pytest.raises(UserError, match="no file says any foreground"):
        read_stored(root, pile(), 32, 2)


def test_a_batch_brings_what_is_stored_for_its_own_images(root: Path) -> None:
    streams = Streams.read(SETTINGS, PAIRS, unlabelled=pile(), extras=Extras(stored=root))
    batch = streams.batches(1, 0, 1)
    for row, labels, confidence in zip(batch["unlabelled_rows"].tolist(), batch["stored_labels"],
                                       batch["stored_confidence"], strict=True):
        assert np.array_equal(labels.numpy(), PAIRS[row].mask)
        assert torch.allclose(confidence, torch.tensor(0.2 * row))
    before = streams.fingerprints()
    write(root / "confidence", {PAIRS.ids[0]: np.full((32, 32), 7)})
    after = Streams.read(SETTINGS, PAIRS, unlabelled=pile(), extras=Extras(stored=root)).fingerprints()
    assert {key for key in before if before[key] != after[key]} == {"stored"}


def test_the_source_moves_what_is_stored_with_the_weak_view_and_255_is_not_background() -> None:
    scene = make_scene(2)
    labels = torch.zeros(2, 16, 16, dtype=torch.long)
    labels[:, :, 8:] = 1
    labels[:, :2] = IGNORE
    confidence = torch.linspace(0, 1, 16).expand(2, 16, 16).contiguous()
    scene.batch |= {"stored_labels": labels, "stored_confidence": confidence}
    theta = torch.tensor([[[-1.0, 0, 0.25], [0, 1, 0]]]).expand(2, 2, 3)  # mirrored and shifted
    grid = torch.nn.functional.affine_grid(theta, [2, 1, 16, 16], align_corners=False)
    scene.warp = GridWarp(grid)
    target = Store()(scene, "student")
    inside = (grid.abs() <= 1).all(-1)
    moved = sample_nearest(labels, grid)
    assert torch.equal(target.valid, inside & (moved != IGNORE)) and not inside.all()
    assert torch.equal(target.hard[target.valid], moved[target.valid])
    assert torch.equal(target.weight[target.valid], sample_nearest(confidence, grid)[target.valid])
    scene.warp = Stay()
    kept = Store(tau=0.5)(scene, "student")
    assert torch.equal(kept.valid, (labels != IGNORE) & (confidence >= 0.5)) and "kept" in kept.stats
    with pytest.raises(UserError, match="stored="):
        Store()(make_scene(), "student")


def test_a_run_learns_from_a_folder_and_is_known_by_what_is_in_it(root: Path, tmp_path: Path) -> None:
    more = {"unlabelled": pile(), "method": "external", "out": tmp_path / "run"}
    segtrain.fit(CONFIG, PAIRS, stored=root, **more)
    write(root / "masks", {PAIRS.ids[0]: 1 - PAIRS[0].mask})
    with pytest.raises(UserError, match="run"):
        segtrain.fit(CONFIG, PAIRS, stored=root, **more)
    with pytest.raises(UserError, match="stored="):
        segtrain.fit(CONFIG, PAIRS, unlabelled=pile(), method="external", out=tmp_path / "other")
    with pytest.raises(UserError, match="does not use the pseudo-labels"):
        segtrain.fit(CONFIG, PAIRS, method="supervised", stored=root, out=tmp_path / "other")


def test_observers_are_read_beside_the_sets_own_mask(root: Path) -> None:
    second = root / "second"
    write(second / "masks", {p.id: np.zeros_like(p.mask) for p in PAIRS})
    assert read_observers([root, second], PAIRS, 32).shape == (2, 6, 32, 32)
    streams = Streams.read(SETTINGS, PAIRS, synthetic=make_phantom(2, size=32, seed=4),
                           extras=Extras(observers=(root, second)))
    batch = streams.batches(0, 0, 1)
    own = batch["labels"]
    assert batch["synthetic"].any() and batch["observers"].shape == (4, 3, 32, 32)
    assert torch.equal(batch["observers"][:, 0], own) and torch.equal(batch["observers"][:, 1], own)
    assert torch.equal(batch["observers"][:, 2], own * batch["synthetic"][:, None, None])
    assert "observers" in streams.fingerprints()
    apart = Streams.read(SETTINGS, PAIRS, extras=Extras(observers=(root,), held_out_share=0.05)).batches(0, 0, 1)
    assert torch.equal(apart["observers"][:, 1], apart["labels"]), "rows are those of what is left to train on"
    write(second / "masks", {PAIRS.ids[1]: PAIRS[1].mask * 255})
    with pytest.raises(UserError, match="mask_map='0:0,255:1'"):
        read_observers([second], PAIRS, 32)
    write_info(second, PAIRS.info)  # a set that says what its values mean
    assert (read_observers([second], PAIRS, 32)[0, 1] == PAIRS[1].mask * 255).all()
    write(second / "masks", {PAIRS.ids[1]: np.full((32, 32), 7)})
    with pytest.raises(UserError, match=rf"{PAIRS.ids[1]}.png.*outside the classes"):
        read_observers([second], PAIRS, 32)


def test_a_run_of_several_observers_wants_their_folders(root: Path, tmp_path: Path) -> None:
    assert segtrain.fit(CONFIG, PAIRS, method="observers", observers=[root], out=tmp_path / "run").result.steps == 2
    with pytest.raises(UserError, match="observers="):
        segtrain.fit(CONFIG, PAIRS, method="observers", out=tmp_path / "other")


def test_held_out_images_are_whole_groups_that_never_teach() -> None:
    whole = Streams.read(SETTINGS, PAIRS)
    streams = Streams.read(SETTINGS, PAIRS, extras=Extras(held_out_share=0.05))
    assert len(streams.calibration) == 2 and len(set(streams.calibration.groups)) == 1
    assert not set(streams.calibration.groups) & set(streams.labelled.groups)
    for step in range(6):
        batch = streams.batches(step, 0, 1)
        taught = {streams.labelled.ids[row] for row in batch["rows"].tolist()}
        assert not taught & set(streams.calibration.ids)
        assert len(batch["images"]) == len(whole.batches(step, 0, 1)["images"]), "the budget is the same number"
        assert batch["calibration_images"].shape == (1, 1, 32, 32)
        assert batch["calibration_labels"].shape == (1, 32, 32)
    assert torch.equal(streams.batches(2, 1, 2)["calibration_images"], streams.batches(2, 0, 2)["calibration_images"])
    assert not any(key.startswith("calibration") for key in whole.batches(0, 0, 1))


def test_hold_out_takes_groups_until_the_share_and_leaves_one() -> None:
    groups = [f"g{i // 2}" for i in range(20)]
    train, apart = hold_out(groups, 0.25, seed=3)
    assert sorted(train + apart) == list(range(20)) and len(apart) == 6
    assert not {groups[i] for i in train} & {groups[i] for i in apart}
    assert hold_out(groups, 0.25, seed=3)[1] == apart != hold_out(groups, 0.25, seed=4)[1]
    assert hold_out(["a", "b"], 0.99, seed=0)[0] and hold_out(groups, 0.0, seed=0)[1] == []
    with pytest.raises(UserError, match="second group"):
        hold_out(["a", "a"], 0.05, seed=0)


def test_stacks_are_runs_of_neighbours_that_cover_every_slice() -> None:
    ids = [f"v{v}_s{s}" for s in (0, 1, 10, 2, 3, 4) for v in (0, 1)]  # slice 10 comes last
    groups = [name[:2] for name in ids]
    runs = windows(ids, groups, 4)
    named = [[ids[row] for row in run] for run in runs]
    assert named[0] == ["v0_s0", "v0_s1", "v0_s2", "v0_s3"] and named[1] == ["v0_s2", "v0_s3", "v0_s4", "v0_s10"]
    assert {row for run in runs for row in run} == set(range(12))
    assert windows(["a0", "a1", "a2"], ["a"] * 3, 5) == ((0, 1, 2, 1, 0),), "a short volume: there and back"


def test_a_batch_of_stacks_holds_neighbours_augmented_alike() -> None:
    pairs = make_phantom(12, size=32, n_groups=3)
    streams = Streams.read(SETTINGS, pairs, extras=Extras(stack=2))
    batch = streams.batches(1, 0, 1)
    assert batch["stacks"].tolist() == [2, 2, 3, 3]
    for first, second in (batch["rows"][:2].tolist(), batch["rows"][2:].tolist()):
        assert pairs.groups[first] == pairs.groups[second] and second - first == 3  # groups take turns in the phantom
    assert batch["seeds"][0] == batch["seeds"][1] != batch["seeds"][2]
    seen = [row for step in range(6) for row in streams.batches(step, 0, 1)["rows"].tolist()]
    assert sorted(seen[:12]) == list(range(12)), "every slice once an epoch"
    parts = [streams.batches(1, rank, 2)["stacks"].tolist() for rank in range(2)]
    assert parts == [[2, 2], [3, 3]], "a stack stays on one process"
    mixed = Streams.read(SETTINGS, pairs, synthetic=make_phantom(4, size=32, seed=7), extras=Extras(stack=2))
    batch = mixed.batches(0, 0, 1)
    assert (batch["stacks"] < 0).tolist() == batch["synthetic"].tolist()


def test_the_settings_of_streams_without_extras_change_nothing() -> None:
    plain, streams = Streams.read(SETTINGS, PAIRS), Streams.read(SETTINGS, PAIRS, extras=Extras())
    assert set(plain.fingerprints()) == {"labelled", "synthetic", "unlabelled"}
    assert dataclasses.replace(Extras()) == Extras() and plain.fingerprints() == streams.fingerprints()
    assert set(plain.batches(0, 0, 1)) == {"images", "labels", "seeds", "synthetic", "rows"}

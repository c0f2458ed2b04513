"""The data contract: spaces there and back, fingerprints, recall by group, settings, whole-or-absent files."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny import room_of

from synth.core.checks import IGNORE, UserError
from synth.core.config import Settings, load_config, save_config
from synth.core.files import RUN_FILE, claim_folder, hash_json, replace_file, replace_through, write_text
from synth.core.pairs import PairSet, Provenance, memory_set
from synth.core.rng import derive_seed, randn_each, sample_rng
from synth.core.space import (
    from_channels,
    labels_to_keep,
    labels_to_onehot,
    pixels_to_unit,
    resize_image,
    resize_mask,
    to_channels,
    top_class,
    unit_to_pixels,
)

WEIGHTS = {"weight": torch.zeros(10_000)}


@pytest.mark.parametrize(
    "dtype, span", [(np.uint8, (0.0, 255.0)), (np.uint16, (0.0, 65535.0)), (np.uint16, (0.0, 4095.0))])
def test_pixels_unit_pixels_is_exact(dtype: type, span: tuple[float, float]) -> None:
    levels = np.arange(int(span[1]) + 1, dtype=dtype).reshape(1, 1, 1, -1)
    unit = pixels_to_unit(levels, span)
    assert (unit.min(), unit.max()) == (-1, 1)
    np.testing.assert_array_equal(unit_to_pixels(unit, span, np.dtype(dtype)), levels)


def test_pixels_outside_the_range_are_clamped() -> None:
    unit = pixels_to_unit(np.array([[[[0, 100, 150, 200, 255]]]], np.uint8), (100.0, 200.0))
    assert unit.flatten().tolist() == [-1, -1, 0, 1, 1]


def test_channels_there_and_back() -> None:
    for shape in ((5, 7), (5, 7, 3)):
        pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
        assert to_channels(pixels).shape == (1 if len(shape) == 2 else 3, 5, 7)
        np.testing.assert_array_equal(from_channels(to_channels(pixels)), pixels)


def test_onehot_and_keep_leave_ignored_pixels_out() -> None:
    labels = torch.tensor([[[0, 1], [2, IGNORE]]])
    onehot = labels_to_onehot(labels, 3)
    assert onehot.shape == (1, 3, 2, 2)
    assert onehot.sum(1).tolist() == [[[1, 1], [1, 0]]]
    assert onehot.argmax(1)[0, 1, 0] == 2
    assert labels_to_keep(labels).tolist() == [[[False, True], [True, False]]]


def test_the_top_class_is_the_first_of_the_highest() -> None:
    scores = torch.tensor([[[0.2, 0.5], [0.1, 3.0]], [[0.7, 0.5], [0.1, 4.0]], [[0.1, 0.0], [0.8, 4.0]]])[None]
    assert top_class(scores).tolist() == [[[1, 0], [2, 1]]]
    assert torch.equal(top_class(scores), scores.argmax(dim=1))


def test_resizing_keeps_means_and_classes() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 64, 64)).astype(np.uint8)
    assert resize_image(image, 64) is image
    small = resize_image(image, 16)
    assert small.dtype == np.uint8 and small.shape == (1, 16, 16)
    assert abs(small.mean() - image.mean()) < 1
    assert small.std() < image.std() / 2  # antialiased: noise averages out
    wide = np.full((3, 40, 24), 65535, np.uint16)
    assert (resize_image(wide, 32) == 65535).all()
    mask = np.kron(np.array([[0, 3], [IGNORE, 1]], np.uint8), np.ones((16, 16), np.uint8))
    for shape in ((8, 8), (50, 20)):
        assert set(np.unique(resize_mask(mask, shape))) == {0, 1, 3, IGNORE}
    np.testing.assert_array_equal(resize_mask(resize_mask(mask, (64, 64)), (32, 32)), mask)


def test_fingerprint_sees_every_part(phantom_pairs: PairSet) -> None:
    arrays = phantom_pairs.arrays(16)
    assert arrays.fingerprint() == phantom_pairs.arrays(16).fingerprint()
    images, masks = arrays.images.copy(), arrays.masks.copy()
    images[3, 0, 2, 2] ^= 1
    masks[3, 2, 2] ^= 1
    others = [dataclasses.replace(arrays, images=images), dataclasses.replace(arrays, masks=masks),
              dataclasses.replace(arrays, ids=arrays.ids[::-1]), dataclasses.replace(arrays, groups=arrays.ids),
              dataclasses.replace(arrays, info=dataclasses.replace(arrays.info, name="x")), arrays.without_masks(),
              arrays.select(range(11)), phantom_pairs.arrays(24)]
    prints = {a.fingerprint() for a in (arrays, *others)}
    assert len(prints) == 1 + len(others)


def test_select_and_arrays_agree(phantom_pairs: PairSet) -> None:
    rows = [5, 0, 7]
    left, right = phantom_pairs.select(rows).arrays(20), phantom_pairs.arrays(20).select(rows)
    assert left.fingerprint() == right.fingerprint()
    assert isinstance(phantom_pairs.select(rows), PairSet)


def test_without_group_recalls_children(phantom_pairs: PairSet) -> None:
    parent, stranger = phantom_pairs.items[0], phantom_pairs.items[1]
    assert parent.group != stranger.group

    def child(name: str, *groups: str) -> object:
        made = Provenance(("p",), groups, 0, "g", "{}", "{}")
        return dataclasses.replace(stranger, id=name, made=made, origin="synthetic")

    items = [parent, stranger, child("both", stranger.group, parent.group), child("other", stranger.group)]
    left = PairSet(items, phantom_pairs.info).without_group(parent.group)
    assert left.ids == (stranger.id, "other")


def test_sets_refuse_repeated_ids_and_nothing(phantom_pairs: PairSet) -> None:
    image = [np.zeros((8, 8), np.uint8)] * 2
    with pytest.raises(UserError, match="share this name"):
        memory_set(image, None, phantom_pairs.info, ids=["a", "a"], groups=["g", "g"])
    with pytest.raises(UserError, match="no images found"):
        PairSet([], phantom_pairs.info)


def test_one_generator_per_sample() -> None:
    batch = randn_each((2, 3), [sample_rng(1, "a"), sample_rng(1, "b")])
    assert torch.equal(batch[1:], randn_each((2, 3), [sample_rng(1, "b")]))
    seeds = {derive_seed(s, n) for s in range(20) for n in ("a", "b", "1", "11")}
    assert len(seeds) == 80 and all(0 <= s < 2**63 for s in seeds)


class _Optimiser(Settings):
    rate: float = 0.1
    steps: int = 3


class _Whole(Settings):
    seed: int = 0
    optimiser: _Optimiser = _Optimiser()


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimiser\.stepz.*did you mean optimiser\.steps"):
        load_config(_Whole, None, ["optimiser.stepz=4"])
    write_text(tmp_path / "c.yaml", "sede: 1\n")
    with pytest.raises(UserError, match=r"c\.yaml: sede.*did you mean seed"):
        load_config(_Whole, tmp_path / "c.yaml")
    with pytest.raises(UserError, match="key=value"):
        load_config(_Whole, None, ["seed"])
    with pytest.raises(UserError, match="optimiser.steps"):
        load_config(_Whole, None, ["optimiser.steps=many"])


def test_settings_there_and_back(tmp_path: Path) -> None:
    settings = load_config(_Whole, {"seed": 4}, ["optimiser.rate=1e-3", "optimiser.steps=9"])
    assert (settings.seed, settings.optimiser.rate, settings.optimiser.steps) == (4, 1e-3, 9)
    save_config(settings, tmp_path / "c.yaml")
    assert load_config(_Whole, tmp_path / "c.yaml") == settings


class _Named(Settings):
    out: str = ""
    mask_map: str | None = None


@pytest.mark.parametrize(("override", "out", "mask_map"), [
    ("out=2024", "2024", None), ("mask_map=1:1", "", "1:1"), ("mask_map=0:0,255:1", "", "0:0,255:1")])
def test_text_that_looks_like_a_number_stays_text(override: str, out: str, mask_map: str | None) -> None:
    assert load_config(_Named, None, [override]) == _Named(out=out, mask_map=mask_map)


def test_a_folder_holds_one_run(tmp_path: Path) -> None:
    out = claim_folder(tmp_path / "run", kind="fit", identity={"seed": 1, "data": ["a"]})
    deep = {"settings": {"loop": {"steps": 4, "seed": 0}, "kind": "kl", "hash": "0123456789abcdef"}}
    claim_folder(tmp_path / "deep", kind="fit", identity=deep)
    other = {"settings": {"loop": {"steps": 6, "seed": 0}, "kind": "pixels", "hash": "fedcba9876543210"}}
    with pytest.raises(UserError, match=r"differs in: settings\.loop\.steps, 4 there and 6 now; settings\.kind, "
                                        r"'kl' there and 'pixels' now; settings\.hash\)"):
        claim_folder(tmp_path / "deep", kind="fit", identity=other)
    (out / "weights").write_text("w")
    assert claim_folder(out, kind="fit", identity={"data": ["a"], "seed": 1}) == out
    with pytest.raises(UserError, match=r"another fit run \(differs in: seed, 1 there and 2 now\)"):
        claim_folder(out, kind="fit", identity={"seed": 2, "data": ["a"]})
    with pytest.raises(UserError, match=r"another fit run \(differs in: data\)"):
        claim_folder(out, kind="fit", identity={"seed": 1})
    with pytest.raises(UserError, match=r"another fit run \(differs in: prior\)"):
        claim_folder(out, kind="fit", identity={"seed": 1, "data": ["a"], "prior": None})
    with pytest.raises(UserError, match=r"another fit run \(differs in: kind\)"):
        claim_folder(out, kind="draw", identity={"seed": 1, "data": ["a"]})
    for text in ("[]", "{", "{\"kind\": 1}"):
        write_text(tmp_path / "theirs" / RUN_FILE, text)
        with pytest.raises(UserError, match="holds no run of ours"):
            claim_folder(tmp_path / "theirs", kind="fit", identity={"seed": 1})
    (out / RUN_FILE).unlink()
    with pytest.raises(UserError, match="holds no run of ours"):
        claim_folder(out, kind="fit", identity={"seed": 1})


def test_a_full_device_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fails(code: int) -> object:
        def write(temporary: Path) -> None:
            temporary.write_bytes(b"half")
            raise OSError(code, "failed")
        return write

    with pytest.raises(UserError, match=r"file\.bin: no space left"):
        replace_file(path, fails(errno.ENOSPC))
    with pytest.raises(PermissionError):
        replace_file(path, fails(errno.EACCES))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_really_is_full(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"new")

    with pytest.raises(UserError, match="no space left"):
        replace_file(path, write)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("replace", [
    lambda path: replace_file(path, lambda p: p.write_bytes(bytes(40_000))),
    lambda path: replace_file(path, lambda p: save_file(WEIGHTS, p)),
    lambda path: replace_through(path, lambda handle: torch.save(WEIGHTS, handle)),
], ids=["bytes", "safetensors", "torch"])
@pytest.mark.parametrize("room", [100, 10_000, 39_990])
def test_whichever_library_meets_a_full_device_it_is_one_line(
        replace: Callable[[Path], None], room: int, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with room_of(room), pytest.raises(UserError, match=r"weights: no space left.*run the same command again"):
        replace(path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]
    replace(path)
    assert path.stat().st_size >= 40_000


def test_what_a_library_says_of_anything_else_is_no_full_device(tmp_path: Path) -> None:
    def wrong(_: Path) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        replace_file(tmp_path / "weights", wrong)
    with pytest.raises(SafetensorError, match="No such file"):
        replace_file(tmp_path / "weights", lambda p: save_file(WEIGHTS, p / "missing" / "file"))
    with pytest.raises(AttributeError, match="pickle"):
        replace_through(tmp_path / "weights", lambda handle: torch.save(lambda: None, handle))
    assert list(tmp_path.iterdir()) == []


def test_hash_json_ignores_key_order() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1}) != hash_json({"a": 1, "b": [2, 1]})

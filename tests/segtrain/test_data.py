"""Streams: pure in (step, rank, n_ranks), fair to every image, closed to held-out groups."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from segtrain.settings import SegmentSettings
from segtrain.streams import Streams, check_alike, check_kept, check_leak
from synth.core.checks import UserError
from synth.core.pairs import DataInfo, Item, PairSet, Provenance, memory_set

SETTINGS = SegmentSettings(size=16, batch_size=4, unlabelled_batch_size=6, synthetic_share=0.3)


def flat_pairs(n: int, first: int = 0, channels: int = 1) -> PairSet:
    """Returns n pairs of constant images: grey value first + i tells which it is."""
    info = DataInfo(("background", "object"), channels, 8, (0.0, 255.0))
    shape = (16, 16) if channels == 1 else (16, 16, 3)
    images = [np.full(shape, first + i, np.uint8) for i in range(n)]
    masks = [np.pad(np.ones((4, 4), np.uint8), 6) for _ in range(n)]
    return memory_set(images, masks, info, ids=[f"p{i}" for i in range(n)], groups=[f"g{i // 2}" for i in range(n)])


def made_pairs(verdict: str = "kept") -> PairSet:
    """Returns two synthetic pairs whose parents belong to g0 and g9."""
    source = flat_pairs(2, first=200)
    made = [Provenance(("p0",), (group,), 0, "hash", "", "", verdict=verdict, reason="seam") for group in ("g0", "g9")]
    items = [Item(f"s{i}", f"own{i}", source.items[i].read, "synthetic", made[i]) for i in range(2)]
    return PairSet(items, source.info)


def streams(unlabelled: bool = True) -> Streams:  # noqa: FBT001, FBT002 - a test's switch
    """Returns streams of 5 labelled, 2 synthetic and 7 unlabelled images, told apart by grey value."""
    return Streams.read(SETTINGS, flat_pairs(5), synthetic=made_pairs(),
                        unlabelled=flat_pairs(7, first=100) if unlabelled else None)


def levels(images: torch.Tensor) -> list[int]:
    """Returns the grey value of each image (B, C, S, S)."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_a_batch_is_a_pure_function_of_its_step() -> None:
    first, second = streams(), streams()
    second.batches(0, 0, 1)
    for key, value in first.batches(3, 0, 1).items():
        assert torch.equal(value, second.batches(3, 0, 1)[key])


@pytest.mark.parametrize("n_ranks", [2])
def test_ranks_share_out_the_same_global_batch(n_ranks: int) -> None:
    whole = streams().batches(5, 0, 1)
    parts = [streams().batches(5, rank, n_ranks) for rank in range(n_ranks)]
    for key in ("seeds", "unlabelled_seeds"):
        dealt = torch.cat([part[key] for part in parts]).tolist()
        assert sorted(dealt) == sorted(whole[key].tolist())
    assert {len(part["images"]) for part in parts} == {2}


def test_every_image_is_seen_equally_often_and_the_share_is_exact() -> None:
    seen, made, unlabelled = Counter(), 0, Counter()
    source = streams()
    for step in range(50):
        batch = source.batches(step, 0, 1)
        seen.update(levels(batch["images"]))
        made += int(batch["synthetic"].sum())
        unlabelled.update(levels(batch["unlabelled"]))
        assert [level >= 200 for level in levels(batch["images"])] == batch["synthetic"].tolist()
    assert made == 60  # 0.3 of 200
    assert all(n == 28 for level, n in seen.items() if level < 200) and len(seen) == 7
    assert max(unlabelled.values()) - min(unlabelled.values()) <= 1 and len(unlabelled) == 7


def test_each_draw_has_its_own_augmentation() -> None:
    seeds = [s for step in range(20) for s in streams().batches(step, 0, 1)["seeds"].tolist()]
    assert len(set(seeds)) == len(seeds)


def test_sixteen_bit_pixels_become_unit_by_their_own_range() -> None:
    info = DataInfo(("background", "object"), 1, 16, (1000.0, 3000.0))
    image, mask = np.full((16, 16), 2000, np.uint16), np.pad(np.ones((4, 4), np.uint8), 6)
    batch = Streams.read(SETTINGS, memory_set([image], [mask], info, ids=["a"], groups=["a"])).batches(0, 0, 1)
    assert batch["images"].shape == (4, 1, 16, 16) and not batch["images"].any()


def test_batches_that_ranks_cannot_share_are_refused() -> None:
    with pytest.raises(UserError, match="batch_size 4.*take 6"):
        streams().batches(0, 0, 3)


def test_leaks_are_refused_and_named() -> None:
    with pytest.raises(UserError, match="labelled p2.*group g1"):
        check_leak(flat_pairs(4), {"g1"}, "labelled")
    with pytest.raises(UserError, match="synthetic s1.*group g9"):
        check_leak(made_pairs(), {"g9"}, "synthetic")
    check_leak(flat_pairs(4), {"g7"}, "labelled")
    check_leak(None, {"g7"}, "synthetic")


def test_rejected_pairs_are_refused() -> None:
    check_kept(made_pairs())
    with pytest.raises(UserError, match="s0.*seam"):
        check_kept(made_pairs("rejected"))


def test_sets_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match="3 channels"):
        Streams.read(SETTINGS, flat_pairs(4), unlabelled=flat_pairs(4, channels=3))
    info = flat_pairs(1).info
    with pytest.raises(UserError, match="classes"):
        check_alike(dataclasses.replace(info, classes=("background", "a", "b")), info, "synthetic pairs", classes=True)
    two = dataclasses.replace(info, classes=("background", "a", "b"))
    with pytest.raises(UserError, match="classes"):
        check_alike(dataclasses.replace(two, classes=("background", "b", "a")), two, "synthetic pairs", classes=True)
    deep = dataclasses.replace(info, bit_depth=16, intensity_range=(0.0, 4095.0))
    with pytest.raises(UserError, match="bit depth is 8, the labelled ones' 16"):
        check_alike(info, deep, "unlabelled images", classes=False)
    with pytest.raises(UserError, match="intensity range .*2000.*like=labelled.info"):
        check_alike(dataclasses.replace(deep, intensity_range=(0.0, 2000.0)), deep, "unlabelled images", classes=False)


def test_no_foreground_anywhere_is_refused() -> None:
    info = flat_pairs(1).info
    empty = memory_set([np.zeros((16, 16), np.uint8)], [np.zeros((16, 16), np.uint8)], info, ids=["a"], groups=["a"])
    with pytest.raises(UserError, match="foreground"):
        Streams.read(SETTINGS, empty)

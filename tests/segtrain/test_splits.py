"""Splits: whole groups, from seeds and names alone; label draws nested, never blank; leaks named."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from phantom import make_phantom

from segtrain.compare.data import fingerprint, hide, shrink
from segtrain.compare.prepare import prepare
from segtrain.compare.settings import CompareData, CompareSettings, SplitSettings
from segtrain.compare.splits import Member, check_disjoint, draw_labels, split_test
from synth.core.checks import UserError
from synth.core.pairs import DataInfo, ImageSet, Item, PairSet, Provenance, memory_set
from synth.formats import write_folder


def members(n_groups: int = 10, per_group: int = 4) -> list[Member]:
    """Returns members of `n_groups` groups."""
    return [Member(f"g{g}_{i}", f"g{g}") for g in range(n_groups) for i in range(per_group)]


def groups_of(ids: tuple[str, ...]) -> set[str]:
    """Returns the groups of `members` by id."""
    return {name.split("_")[0] for name in ids}


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.95])
def test_groups_are_never_torn(share: float) -> None:
    split = split_test(members(), seed=0, share=share)
    assert not groups_of(split.training) & groups_of(split.test)
    assert len(split.training) + len(split.test) == 40 and not split.unused
    assert split.training and len(split.test) >= min(40 * share, 36)


def test_split_depends_on_names_and_seed_not_on_order() -> None:
    assert split_test(members()[::-1], seed=0, share=0.3) == split_test(members(), seed=0, share=0.3)
    assert len({split_test(members(), seed=s, share=0.3).test for s in range(5)}) > 1


def test_a_cap_leaves_the_rest_of_a_test_group_unused() -> None:
    split = split_test(members(), seed=0, share=0.5, cap=6)
    assert len(split.test) == 6 and len(split.unused) == 2
    assert not groups_of(split.training) & groups_of(split.test + split.unused)


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(UserError, match="all images are of one group"):
        split_test(members(1), seed=0, share=0.3)


def test_draws_are_nested_and_differ() -> None:
    draws = {b: draw_labels(members(), seed=0, draw=0, budget=b) for b in (1, 3, 7, 14, 40)}
    for small, large in ((1, 3), (3, 7), (7, 14), (14, 40)):
        assert set(draws[small].labelled) < set(draws[large].labelled)
    for budget, draw in draws.items():
        assert len(draw.labelled) == budget and not set(draw.labelled) & set(draw.hidden)
        assert len(draw.labelled) + len(draw.hidden) == 40
        assert len(groups_of(draw.labelled)) == -(-budget // 4)  # whole groups, the last one trimmed
    assert draw_labels(members(), seed=0, draw=1, budget=7).labelled != draws[7].labelled
    assert draw_labels(members()[::-1], seed=0, draw=0, budget=7) == draws[7]


def test_labels_by_group_are_whole_groups_and_nested() -> None:
    groups = {m.id: m.group for m in members()}
    two, three = (draw_labels(members(), seed=0, draw=0, budget=40, n_groups=n) for n in (2, 3))
    assert len({groups[i] for i in two.labelled}) == 2 and set(two.labelled) < set(three.labelled)
    assert not {groups[i] for i in two.labelled} & {groups[i] for i in two.hidden}
    with pytest.raises(UserError, match="n_groups=99.*groups"):
        draw_labels(members(), seed=0, draw=0, budget=1, n_groups=99)


def test_a_draw_without_foreground_is_drawn_again_and_says_so() -> None:
    mostly_blank = [Member(m.id, m.group, foreground=m.group == "g3") for m in members()]
    draws = [draw_labels(mostly_blank, seed=0, draw=k, budget=4) for k in range(8)]
    assert all("g3" in groups_of(draw.labelled) for draw in draws)
    assert any(draw.redrawn and "no foreground" in draw.redrawn[0] for draw in draws)


def test_no_foreground_anywhere_is_refused() -> None:
    with pytest.raises(UserError, match="no foreground"):
        draw_labels([Member(m.id, m.group, foreground=False) for m in members()], seed=0, draw=0, budget=4)


def test_more_labels_than_images_are_refused() -> None:
    with pytest.raises(UserError, match="holds only 40"):
        draw_labels(members(), seed=0, draw=0, budget=41)


def test_a_leak_names_group_and_pair() -> None:
    pairs = make_phantom(6, size=16, n_groups=3)
    with pytest.raises(UserError, match="phantom_0001.*patient_01"):
        check_disjoint(pairs.select([0, 1]), pairs.select([4]))
    check_disjoint(pairs.select([0, 3]), pairs.select([4]))


def test_a_child_of_a_test_group_is_a_leak() -> None:
    pairs = make_phantom(6, size=16, n_groups=3)
    made = Provenance(("phantom_0001",), ("patient_01",), 0, "g", "", "")
    child = PairSet([Item("child", "made", pairs.items[1].read, "synthetic", made)], pairs.info)
    with pytest.raises(UserError, match="child.*patient_01"):
        check_disjoint(child, pairs.select([4]))


def settings(n_labelled: int = 3, *, draws: int = 3, data: CompareData | None = None,
             split: SplitSettings | None = None) -> CompareSettings:
    """Returns settings of a small split."""
    return CompareSettings(size=16, n_labelled=n_labelled, draws=draws, data=data or CompareData(),
                           split=split or SplitSettings())


def test_parts_of_one_labelled_set() -> None:
    parts = prepare(settings(), make_phantom(18, size=24, n_groups=6))
    assert not set(parts.test.groups) & set(parts.training().groups)
    for draw in parts.draws:
        labelled, unlabelled = parts.labelled_of(draw), parts.unlabelled_of(draw)
        assert set(labelled.ids) | set(unlabelled.ids) == set(parts.training().ids)
        assert all(pair.mask is None for pair in unlabelled) and all(pair.mask is not None for pair in labelled)
        assert all(pair.image.shape == (16, 16) for pair in labelled)
    assert len({draw.labelled for draw in parts.draws}) == 3


def test_the_test_part_is_the_same_for_every_budget() -> None:
    pairs = make_phantom(18, size=24, n_groups=6)
    assert prepare(settings(), pairs).test.ids == prepare(settings(n_labelled=5, draws=1), pairs).test.ids


def test_hidden_masks_are_out_of_reach() -> None:
    assert all(item.read()[1] is None for item in hide(make_phantom(3, size=16, n_groups=3)).items)


def test_given_sets_with_a_shared_group_are_refused() -> None:
    pairs = make_phantom(12, size=16, n_groups=4)
    labelled, test = pairs.select([0, 4, 1]), pairs.select([2, 3])
    with pytest.raises(UserError, match="phantom_0003.*patient_03"):
        prepare(settings(), pairs.select([0, 3]), test=test)
    with pytest.raises(UserError, match="phantom_0006.*patient_02"):
        prepare(settings(), labelled, hide(pairs.select([6])), test=test)


def test_the_same_image_under_another_name_is_refused() -> None:
    pairs = make_phantom(6, size=16, n_groups=6)
    copy = PairSet([Item("copy", "elsewhere", pairs.items[0].read)], pairs.info)
    with pytest.raises(UserError, match="copy.*same image as phantom_0000"):
        prepare(settings(n_labelled=1), copy, test=pairs.select([0, 1]))


def test_unlabelled_images_of_test_groups_are_left_out_of_a_split_of_our_own() -> None:
    pairs = make_phantom(24, size=16, n_groups=6)
    parts = prepare(settings(), pairs.select(range(12)), hide(pairs.select(range(12, 24))))
    assert not set(parts.test.groups) & set(parts.training().groups)
    assert any("Left out of training" in note for note in parts.notes)


def test_all_labels_in_every_draw_is_said() -> None:
    pairs = make_phantom(8, size=16, n_groups=4)
    parts = prepare(settings(n_labelled=20), pairs.select([0, 1, 4, 5]), test=pairs.select([2, 3]))
    assert {draw.labelled for draw in parts.draws} == {("phantom_0000", "phantom_0001", "phantom_0004", "phantom_0005")}
    assert any("random numbers of training alone" in n for n in parts.notes)
    assert any("all of them are used" in n for n in parts.notes)


def test_two_images_of_one_name_are_refused() -> None:
    pairs = make_phantom(8, size=16, n_groups=4)
    other = ImageSet([Item("phantom_0000", "patient_00", pairs.items[4].read)], pairs.info)
    with pytest.raises(UserError, match="has this name"):
        prepare(settings(n_labelled=1), pairs.select([0, 1]), other, test=pairs.select([2]))


def test_a_mask_ignored_everywhere_is_refused() -> None:
    info = DataInfo(("background", "object"), 1, 8, (0.0, 255.0))
    pairs = memory_set([np.arange(256, dtype=np.uint8).reshape(16, 16)], [np.full((16, 16), 255, np.uint8)], info,
                       ids=["a"], groups=["a"])
    with pytest.raises(UserError, match="ignored"):
        shrink(pairs, 16)


def test_fingerprint_sees_pixels_masks_and_names() -> None:
    pairs = make_phantom(4, size=16, n_groups=2)
    assert fingerprint(pairs) == fingerprint(make_phantom(4, size=16, n_groups=2))
    others = [make_phantom(4, size=16, n_groups=2, seed=1), hide(pairs), pairs.select([0, 1, 2]),
              make_phantom(4, size=16, n_groups=4)]
    assert len({fingerprint(s) for s in (pairs, *others)}) == 5


def test_folders_and_their_notes(tmp_path) -> None:
    write_folder(make_phantom(12, size=16, n_groups=4), tmp_path / "set")
    path = tmp_path / "set" / "dataset.json"
    path.write_text(path.read_text().replace("{", '{"notes": ["One averaged head."],', 1))
    parts = prepare(settings(data=CompareData(root=str(tmp_path / "set")), split=SplitSettings(test_share=0.25)))
    assert parts.notes[0] == "One averaged head." and len(set(parts.test.groups)) == 1


def test_root_and_folders_exclude_each_other(tmp_path) -> None:
    with pytest.raises(UserError, match="data.root alone"):
        prepare(settings(data=CompareData(root="a", test="b")))
    with pytest.raises(UserError, match="no labelled images"):
        prepare(settings())


def test_spacing_follows_the_images_to_the_working_resolution() -> None:
    pairs = make_phantom(6, size=32, n_groups=3)
    spaced = memory_set([p.image for p in pairs], [p.mask for p in pairs], pairs.info, ids=pairs.ids,
                        groups=pairs.groups, spacings=[(0.5, 0.25)] * 6)
    assert {item.spacing for item in shrink(spaced, 16).items} == {(1.0, 0.5)}
    assert {item.spacing for item in shrink(pairs, 16).items} == {None}


def test_weights_of_pairs_follow_them_into_training() -> None:
    pairs = make_phantom(18, size=24, n_groups=6)
    weighted = PairSet([dataclasses.replace(item, weight=0.5) for item in pairs.items], pairs.info)
    parts, plain = prepare(settings(), weighted), prepare(settings(), pairs)
    assert parts.labelled_of(parts.draws[0]).weights == (0.5,) * 3 and not plain.labelled.weights
    assert parts.source != plain.source
    assert fingerprint(parts.labelled_of(parts.draws[0])) != fingerprint(plain.labelled_of(plain.draws[0]))


def test_unlabelled_pairs_come_without_their_masks() -> None:
    pairs = make_phantom(18, size=24, n_groups=6)
    pile = PairSet([dataclasses.replace(item, id=f"u_{item.id}", group=f"u_{item.group}")
                    for item in make_phantom(4, size=24, n_groups=2, seed=3).items], pairs.info)
    parts = prepare(settings(), pairs, pile)
    assert all(pair.mask is None for s in (parts.unlabelled_of(parts.draws[0]), parts.training()) for pair in s)
    assert sum(name.startswith("u_") for name in parts.training().ids) == 4


def test_a_copy_of_an_image_past_the_cap_is_left_out() -> None:
    """The images of a test group that are not tested are of a test group all the same."""
    pairs = make_phantom(18, size=16, n_groups=6)
    pile = hide(PairSet([dataclasses.replace(item, id=f"u{i}", group=f"u{i}") for i, item in enumerate(pairs.items)],
                        pairs.info))
    capped = settings(split=SplitSettings(test_share=0.5, max_test=4))
    parts = prepare(capped, pairs, pile)
    held_out = {g for g in pairs.groups if g not in parts.labelled.groups}
    copies = {f"u{i}" for i, group in enumerate(pairs.groups) if group in held_out}
    assert len(parts.test) == 4 and len(copies) == 6
    assert not copies & set(parts.training().ids)


def deep_pairs() -> PairSet:
    """Returns 16-bit pairs of 6 groups, each of which is brighter than the one before."""
    pairs = make_phantom(18, size=16, n_groups=6)
    images = [p.image.astype(np.uint16) + 1000 * (1 + int(p.group[-2:])) for p in pairs]
    info = dataclasses.replace(pairs.info, bit_depth=16)
    return memory_set(images, [p.mask for p in pairs], info, ids=pairs.ids, groups=pairs.groups)


def test_test_images_do_not_decide_the_intensity_range(tmp_path) -> None:
    write_folder(deep_pairs(), tmp_path / "set")
    path = tmp_path / "set" / "dataset.json"
    declared = json.loads(path.read_text())
    path.write_text(json.dumps({**declared, "intensity_range": None}))
    brightest = settings(data=CompareData(root=str(tmp_path / "set")), split=SplitSettings(seed=2))
    parts = prepare(brightest)
    assert "patient_05" in parts.test.groups
    pixels = np.concatenate([p.image.ravel() for p in deep_pairs() if p.id in parts.labelled.ids])
    low, high = parts.labelled.info.intensity_range
    assert pixels.min() <= low < high <= pixels.max(), "the training images' own"
    assert parts.test.info == parts.labelled.info == parts.training().info
    path.write_text(json.dumps({**declared, "intensity_range": [0, 9000]}))
    assert prepare(brightest).labelled.info.intensity_range == (0, 9000), "a declared one stays"


def test_objects_too_small_for_the_working_resolution_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    def speck(side: int) -> np.ndarray:
        mask = np.zeros((64, 64), np.uint8)
        mask[1:1 + side, 1:1 + side], mask[40:60, 40:60] = 2, 1
        return mask

    info = DataInfo(("background", "organ", "speck"), 1, 8, (0.0, 255.0))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (64, 64), np.uint8) for _ in range(8)]
    pairs = memory_set(images, [speck(1 if i < 3 else 8) for i in range(8)], info, ids=[f"p{i}" for i in range(8)],
                       groups=[f"g{i}" for i in range(8)])
    said = "memory: 3 of 8 masks lose a class at 16 px (p0: speck)"
    parts = prepare(CompareSettings(size=16, n_labelled=3, draws=1), pairs)
    assert any(said in note for note in parts.notes) and caplog.text.count(said) == 1
    assert not any("lose a class" in note for note in prepare(CompareSettings(size=64, n_labelled=3), pairs).notes)
    caplog.clear()
    for _ in range(2):
        pairs.select(range(4)).arrays(8)
    assert caplog.text.count("memory: 3 of 4 masks lose a class at 8 px (p0: speck)") == 1, "once for a set"

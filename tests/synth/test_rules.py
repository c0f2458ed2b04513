"""Rules of anatomy, changes of shape that keep them, and draws with class balance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny import squares, tiny_appearance, tiny_pipeline

import synth
from synth.core.checks import UserError
from synth.core.pairs import Arrays, DataInfo
from synth.core.rng import sample_rng
from synth.diffusion.settings import SamplerSettings
from synth.draw.sources import transform_pairs
from synth.layouts import (
    LayoutSettings,
    Morph,
    Rules,
    RuleSettings,
    apply_morph,
    bounded,
    class_chances,
    draw_morph,
    layout_from_json,
    layout_to_json,
    learn_anatomy,
    learn_rules,
    place,
)
from synth.layouts.morph import signed_distance

Y, X = np.mgrid[:64, :64]


def heart(x: float = 30, y: float = 32, *, wall: float = 4) -> np.ndarray:
    """Returns labels (64, 64): class 3 in a ring of class 2, class 1 beside the ring, class 4 apart from all."""
    mask = np.zeros((64, 64), np.uint8)
    mask[np.hypot(X - x + 14, Y - y) < 9] = 1
    mask[np.hypot(X - x, Y - y) < 9 + wall] = 2
    mask[np.hypot(X - x, Y - y) < 9] = 3
    mask[np.hypot(X - x - 22, Y - y) < 4] = 4
    return mask


HEARTS = np.stack([heart(28 + i, 30 + i) for i in range(6)])
RULES = learn_rules(HEARTS, RuleSettings(), n_classes=5)
LABELLED = Arrays(np.repeat(HEARTS[:, None] * 40, 1, 1), HEARTS, tuple("abcdef"), tuple("abcdef"),
                  DataInfo(("bg", "rv", "myo", "lv", "node"), 1, 8, (0.0, 255.0)))


def test_rules_are_those_that_the_maps_keep() -> None:
    assert set(RULES.inside) == {(3, 2)} and RULES.inside[3, 2] == pytest.approx(0.9)
    assert RULES.touching == {(1, 2), (2, 3)} and RULES.apart == {(1, 3), (1, 4), (2, 4), (3, 4)}
    assert not any(RULES.broken(m) for m in HEARTS)


def test_what_breaks_a_rule_is_named() -> None:
    spilt = HEARTS[0].copy()
    spilt[(spilt == 2) & (X > 26)] = 0
    assert {"3 inside 2"} <= RULES.broken(spilt)
    near = HEARTS[0].copy()
    near[(np.abs(Y - 30) < 3) & (X > 40) & (X < 50)] = 4
    assert "2 apart from 4" in RULES.broken(near)
    assert RULES.broken(np.where(HEARTS[0] == 1, 0, HEARTS[0])) == frozenset(), "what is not there breaks nothing"


def test_rules_can_be_given_and_name_classes_that_there_are() -> None:
    given = learn_rules([], RuleSettings(learn=False, inside=((3, 2),), apart=((1, 4),)), n_classes=5)
    assert set(given.inside) == {(3, 2)} and given.apart == {(1, 4)}
    with pytest.raises(UserError, match="inside"):
        learn_rules([], RuleSettings(inside=((3, 9),)), n_classes=5)


def test_too_few_maps_teach_nothing() -> None:
    assert learn_rules(HEARTS[:3], RuleSettings(), n_classes=5).is_empty


def test_a_disc_grows_by_the_pixels_that_were_drawn() -> None:
    disc = (np.hypot(X - 32, Y - 32) < 12).astype(np.uint8)
    for grow in (-4.0, 3.0, 6.0):
        radius = np.sqrt((apply_morph(disc, Morph((grow,))) == 1).sum() / np.pi)
        assert radius == pytest.approx(np.sqrt(disc.sum() / np.pi) + grow, abs=0.35)
    assert np.array_equal(apply_morph(disc, Morph((0.0,))), disc)
    assert np.array_equal(apply_morph(disc, Morph((0.0,), (0.0,) * 36)), disc), "the outline, not the shortcut"


def test_the_signed_distance_of_a_half_plane_counts_from_its_outline() -> None:
    distance = signed_distance(X < 20)
    assert np.array_equal(distance[5], np.arange(64) - 19.5)


@pytest.mark.parametrize("wall", [2.0, 4.0, 7.0])
def test_no_growth_breaks_the_ring(wall: float) -> None:
    mask = heart(wall=wall)
    settings = LayoutSettings(grow_px=12, bend_px=0)
    changed = spilt = 0
    for seed in range(60):
        wild = draw_morph(sample_rng(seed), settings, n_classes=5)
        moved = apply_morph(mask, bounded(wild, mask, RULES))
        spilt += "3 inside 2" in RULES.broken(moved) or not (moved == 2).any()
        changed += not np.array_equal(moved, mask)
    assert changed > 50 and spilt <= 6, "uneven walls may spill, and are then drawn again"
    broken = sum("3 inside 2" in RULES.broken(apply_morph(mask, draw_morph(sample_rng(s), settings, n_classes=5)))
                 for s in range(60))
    assert broken > max(10, 3 * spilt), "without the bound some rings break, or this test tests nothing"


def test_neighbours_that_shrink_leave_no_gap_between_them() -> None:
    moved = apply_morph(heart(), Morph((-2.0, -2.0, 0.0, 0.0)))
    assert not {"1 touching 2", "2 touching 3"} & RULES.broken(moved)


def drawn(settings: LayoutSettings, n: int = 40, labelled: Arrays = LABELLED) -> list[np.ndarray]:
    """Returns the labels of n transformed sources, each checked against the provenance."""
    sources = transform_pairs(labelled, [f"k{i}" for i in range(n)], rows=range(len(labelled)), seed=0, layout=settings)
    for row, text, labels in zip(sources.rows, sources.layouts, sources.labels, strict=True):
        layout = layout_from_json(text)
        assert layout_to_json(layout) == text
        assert np.array_equal(place(labelled, row, layout).labels, labels), "not what the provenance draws"
    return list(sources.labels)


def test_layouts_keep_the_rules_that_their_parents_keep() -> None:
    free = LayoutSettings(grow_px=5, bend_px=3, elastic=0.04, recombine=0.5)
    assert not any(RULES.broken(labels) for labels in drawn(free))
    lawless = free.model_copy(update={"rules": RuleSettings(learn=False)})
    assert any(RULES.broken(labels) for labels in drawn(lawless)), "no rule was ever at stake"


def test_without_any_rule_at_stake_layouts_are_what_they_were() -> None:
    pairs = squares(6, size=48).arrays(48)
    plain = LayoutSettings(rules=RuleSettings(learn=False))
    for a, b in zip(drawn(plain, 12, pairs), drawn(LayoutSettings(), 12, pairs), strict=True):
        assert np.array_equal(a, b)
    assert '"morph"' not in layout_to_json(layout_from_json(transform_pairs(
        pairs, ["k"], rows=range(6), seed=0, layout=plain).layouts[0]))


def test_balance_draws_rare_classes_more_often() -> None:
    masks = HEARTS.copy()
    masks[1:][masks[1:] == 4] = 0
    labelled = dataclasses.replace(LABELLED, masks=masks)
    assert learn_anatomy(labelled, LayoutSettings()).chances is None
    chances = class_chances(masks, 1.0)
    assert chances.tolist() == pytest.approx([6 / 11] + [1 / 11] * 5)
    rows = [transform_pairs(labelled, [f"k{i}" for i in range(200)], rows=range(6), seed=0,
                            layout=LayoutSettings(balance=b)).rows.count(0) for b in (0.0, 1.0)]
    assert 20 <= rows[0] <= 50 and 85 <= rows[1] <= 135


def test_shapes_change_only_where_nothing_is_kept(tmp_path) -> None:  # noqa: ANN001
    pairs = squares(6)
    redrawn = [tiny_pipeline(sampler=SamplerSettings(n_steps=2, texture="redrawn", mode=mode))
               for mode in ("surroundings", "object")]
    for generator in (None, tiny_pipeline(), tiny_appearance(), *redrawn):
        with pytest.raises(UserError, match="keeps nothing"):
            synth.draw(generator, pairs, n=2, size=32, out=tmp_path / "no", config={"layout": {"grow_px": 2}})
    free = tiny_pipeline(sampler=SamplerSettings(n_steps=2, mode="layout"))
    made = synth.draw(free, pairs, n=4, out=tmp_path / "made", config={"layout": {"grow_px": 4}, "batch_size": 4})
    areas = {int((pair.mask == 1).sum()) for pair in made}
    assert len(areas) > 1 and all('"morph"' in item.made.layout for item in made.items)
    shown = synth.draw_layouts(pairs, n=4, size=32, out=tmp_path / "shown", config={"layout": {"grow_px": 4}})
    assert all(np.array_equal(pair.image > 127, pair.mask == 1) for pair in shown), "an image of the labels alone"
    assert all(item.made.kept_sha256 == "" for item in shown.items) and synth.verify_shards(tmp_path / "shown") == []


def test_no_rules_are_none() -> None:
    assert Rules().is_empty and Rules().words() == [] and len(RULES.words()) == 7

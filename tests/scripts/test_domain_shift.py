"""The benchmark of domain shifts: equal budgets, paired cases, cached runs, nothing of the test side in training."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
from phantom import make_phantom

from segtrain.settings import ModelSettings, SegmentSettings
from segtrain.summary import Judging
from synth.core.checks import UserError
from synth.core.loop import LoopSettings
from synth.core.pairs import PairSet, memory_set
from synth.formats import write_folder

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "benchmarks"))

import domain_shift  # noqa: E402

SETTINGS = SegmentSettings(size=32, batch_size=4, unlabelled_batch_size=4, loop=LoopSettings(steps=2),
                           model=ModelSettings(name="tiny", channels=(8, 16)))


def pairs_of(prefix: str, n: int, seed: int) -> PairSet:
    """Returns phantoms of patients that no other prefix has."""
    made = make_phantom(n, size=32, n_groups=3, seed=seed)
    return memory_set([p.image for p in made], [p.mask for p in made], made.info,
                      ids=[f"{prefix}{i}" for i in range(n)], groups=[f"{prefix}_{g}" for g in made.groups])


def test_arms_share_draws_and_budgets_and_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = domain_shift.Part(pairs_of("a", 8, 0), pairs_of("b", 4, 1), 32)
    bench = domain_shift.Runs(part, SETTINGS, Namespace(labels=4, out=tmp_path), seed=0)
    arms = ("none", "ratio", "fda", "fda_target", "align", "blur_sharpen")
    runs = {arm: [bench.result(arm, draw) for draw in range(2)] for arm in arms}
    rows = {row.name: row for row in domain_shift.rows_of("a-b", runs, Judging(0, 99))}
    assert set(rows) == {*(f"dice/a-b/{a}" for a in arms), *(f"dice_diff/a-b/{a}-none" for a in arms if a != "none")}
    assert rows["dice_diff/a-b/ratio-none"].lo is not None
    assert len(list((tmp_path / "domain_shift/cache").iterdir())) == 2 * 5, "align is none's model"
    for arm in ("ratio", "fda"):
        labelled, pile = bench._given(arm, 0)
        assert set(labelled.ids) <= set(part.training.ids) and len(labelled) == 4
        assert pile is None or (set(pile.ids) == set(part.training.ids) - set(labelled.ids) and pile[0].mask is None)
    pile = bench._given("fda_target", 0)[1]
    assert set(pile.ids) == set(part.test.ids) and all(pair.mask is None for pair in pile)
    monkeypatch.setattr(domain_shift, "fit", None)
    assert [bench.result("ratio", draw) for draw in range(2)] == runs["ratio"], "found, not trained again"


def test_a_shift_whose_sides_share_a_patient_is_refused(tmp_path: Path) -> None:
    write_folder(make_phantom(4, size=32, n_groups=2), tmp_path / "one")
    write_folder(make_phantom(4, size=32, n_groups=2, seed=1), tmp_path / "two")
    shift = domain_shift.Shift(domain_shift.Side("one"), domain_shift.Side("two"))
    with pytest.raises(UserError, match="both sides"):
        domain_shift.read_part(tmp_path, shift, size=32, seed=0, cap=None)
    alone = domain_shift.Shift(domain_shift.Side("one"), None)
    inside = domain_shift.read_part(tmp_path, alone, size=32, seed=0, cap=None)
    assert not set(inside.training.groups) & set(inside.test.groups)


def test_one_side_may_be_the_images_of_one_shape(tmp_path: Path) -> None:
    small, large = make_phantom(3, size=32, n_groups=3), make_phantom(2, size=48, n_groups=2, seed=1)
    both = memory_set([p.image for p in (*small, *large)], [p.mask for p in (*small, *large)], small.info,
                      ids=[*small.ids, *(f"large{i}" for i in range(2))], groups=["a", "b", "c", "d", "e"])
    write_folder(both, tmp_path / "both")
    shift = domain_shift.Shift(domain_shift.Side("both", shape=(32, 32)), domain_shift.Side("both", shape=(48, 48)))
    part = domain_shift.read_part(tmp_path, shift, size=32, seed=0, cap=None)
    assert set(part.training.ids) == set(small.ids) and set(part.test.ids) == {"large0", "large1"}

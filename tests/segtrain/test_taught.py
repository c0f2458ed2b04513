"""A generator that was fitted on test patients: what it drew is refused in training, or its segmenter in scoring."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from phantom import make_phantom

import segtrain
import synth
from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.core.taught import FILE
from synth.formats import load_pairs

PAINTER = {
    "size": 32,
    "autoencoder": {"kind": "kl", "widths": [8, 16, 16], "batch_size": 4, "perceptual_weight": 0,
                    "adversarial_weight": 0, "loop": {"steps": 2}},
    "denoiser": {"widths": [8, 16], "attention": [False, True], "layers": 1, "n_views": 1, "batch_size": 4,
                 "loop": {"steps": 2}},
    "health": {"max_border_error": 99, "max_gradient_error": 99, "min_latent_std": 0, "max_latent_std": 99},
    "sampler": {"n_steps": 1},
}
SEGMENT = {"size": 16, "batch_size": 2, "method": "supervised", "loop": {"steps": 2},
           "model": {"name": "tiny", "channels": [8, 16], "weights": ""}}


def of_groups(pairs: PairSet, prefix: str) -> PairSet:
    """Returns the same pairs, ids and groups beginning with `prefix`."""
    items = [dataclasses.replace(i, id=f"{prefix}{i.id}", group=f"{prefix}{i.group}") for i in pairs.items]
    return PairSet(items, pairs.info, where=prefix)


KNOWN = of_groups(make_phantom(6, size=48, n_groups=3, seed=1), "known_")
OTHER = of_groups(make_phantom(6, size=48, n_groups=3, seed=2), "other_")
NEW = of_groups(make_phantom(4, size=48, n_groups=2, seed=3), "new_")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a set that a painter fitted on KNOWN made of OTHER."""
    out = tmp_path_factory.mktemp("taught")
    synth.fit(PAINTER, KNOWN, out=out / "painter")
    assert (out / "painter" / FILE).is_file()
    synth.draw(synth.load_generator(out / "painter"), OTHER, n=4, out=out / "made")
    return out / "made"


def test_pairs_of_a_generator_that_knew_a_held_out_patient_are_refused(made: Path, tmp_path: Path) -> None:
    pairs = load_pairs(made)
    assert not {g for i in pairs.items for g in i.made.parent_groups} & set(KNOWN.groups)
    for some in (pairs, pairs.select([0, 1])):
        with pytest.raises(UserError, match=f"synthetic .*fitted on group {KNOWN.groups[0]}, which is held out"):
            segtrain.fit(SEGMENT, OTHER, synthetic=some, held_out=KNOWN.groups, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    segtrain.fit(SEGMENT, OTHER, synthetic=pairs, held_out=NEW.groups, out=tmp_path / "run")


def test_a_segmenter_is_not_scored_on_what_its_generator_knew(made: Path, tmp_path: Path) -> None:
    segtrain.fit(SEGMENT, OTHER, synthetic=load_pairs(made), out=tmp_path / "run")
    items = [dataclasses.replace(i, group=KNOWN.groups[0]) for i in NEW.items]
    with pytest.raises(UserError, match=f"images of group {KNOWN.groups[0]}, .*through a generator"):
        segtrain.score(tmp_path / "run", PairSet(items, NEW.info))
    with pytest.raises(UserError, match="trained with this image, .*through a generator"):
        segtrain.score(tmp_path / "run", of_groups(KNOWN, "elsewhere_"))  # seen at 32 px there, at 16 px here
    assert len(segtrain.score(tmp_path / "run", NEW).cases) == len(NEW)


def test_sets_of_before_are_taken_as_they_were(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "old")
    (tmp_path / "old" / FILE).unlink()
    old = load_pairs(tmp_path / "old")
    assert old.taught is None
    segtrain.fit(SEGMENT, OTHER, synthetic=old, held_out=KNOWN.groups, out=tmp_path / "run")
    assert len(segtrain.score(tmp_path / "run", KNOWN).cases) == len(KNOWN)

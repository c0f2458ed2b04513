"""The phantom and the demo's data: seeded, grouped, labelled right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom

from synth.core.checks import UserError
from synth.formats import load_images, load_pairs

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_phantom_depends_on_its_arguments_alone() -> None:
    left, right = make_phantom(8, size=32, seed=3).arrays(32), make_phantom(8, size=32, seed=3).arrays(32)
    assert left.fingerprint() == right.fingerprint()
    assert make_phantom(8, size=32, seed=4).arrays(32).fingerprint() != left.fingerprint()
    longer = make_phantom(12, size=32, seed=3).arrays(32)
    assert longer.select(range(8)).fingerprint() == left.fingerprint()


@pytest.mark.parametrize("channels, bit_depth, n_classes", [(1, 8, 2), (3, 8, 3), (1, 16, 5)])
def test_phantom_is_what_it_says(channels: int, bit_depth: int, n_classes: int) -> None:
    pairs = make_phantom(12, size=48, n_groups=4, channels=channels, bit_depth=bit_depth, n_classes=n_classes)
    assert pairs.info.n_classes == n_classes
    assert len(set(pairs.groups)) == 4
    for pair in pairs:
        assert pair.image.shape == ((48, 48) if channels == 1 else (48, 48, 3))
        assert pair.image.dtype == pairs.info.dtype
        assert pair.mask.dtype == np.uint8 and pair.mask.max() < n_classes
    counts = np.bincount(np.concatenate([p.mask.ravel() for p in pairs]), minlength=n_classes)
    assert (counts > 0).all()


def test_phantom_masks_are_where_the_objects_are() -> None:
    for pair in make_phantom(12, size=64, n_groups=4):
        body = pair.image > pair.image.max() * 0.25
        inside, around = pair.image[pair.mask == 1].mean(), pair.image[body & (pair.mask == 0)].mean()
        assert inside > 1.15 * around  # class 1 is brighter than tissue through every scanner


def test_phantom_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(UserError, match="n_classes=9"):
        make_phantom(1, n_classes=9)


def test_phantom_command(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "phantom.py"), "--out", str(tmp_path / "p"), "--n", "6", "--size", "24"]
    assert "6 pairs" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert load_pairs(tmp_path / "p").arrays(24).fingerprint() == make_phantom(6, size=24).arrays(24).fingerprint()
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0 and "not an empty folder" in again.stderr


@pytest.fixture(scope="module")
def icbm_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("nibabel")
    from icbm import make_icbm
    root = tmp_path_factory.mktemp("icbm") / "data"
    made = make_icbm(root, size=48)
    assert (made.labelled, made.unlabelled, made.test) == (24, 152, 96)
    return root


def test_icbm_sets_are_slabs_apart(icbm_root: Path) -> None:
    sets = {name: load_images(icbm_root / name) for name in ("labelled", "unlabelled", "test")}
    slices = {name: {(int(i[1:4]), g) for i, g in zip(s.ids, s.groups, strict=True)} for name, s in sets.items()}
    everything = sorted(set().union(*slices.values()))
    assert len({y for y, _ in everything}) == len(everything) == sum(len(s) for s in slices.values())
    for (y, group), (after, next_group) in zip(everything, everything[1:], strict=False):
        assert after - y == 1 if group == next_group else after - y >= 3
    assert {i[-1] for i in sets["labelled"].ids} == {i[-1] for i in sets["unlabelled"].ids} == set("abcd")
    assert {i[-1] for i in sets["test"].ids} == set("abcdef")
    assert not (icbm_root / "unlabelled" / "masks").exists()


def test_icbm_ventricles_are_dark_and_in_the_middle(icbm_root: Path) -> None:
    for name in ("labelled", "test"):
        pairs = load_pairs(icbm_root / name)
        assert pairs.info.classes == ("background", "lateral ventricle")
        darker, columns = [], []
        for pair in pairs:
            assert 4 <= (pair.mask == 1).sum() < 120
            rows = np.flatnonzero((pair.mask == 1).any(1))
            assert 10 < rows.min() and rows.max() < 38
            columns.append(np.argwhere(pair.mask == 1)[:, 1].mean())
            brain = pair.image > pair.image.mean()
            darker.append(pair.image[pair.mask == 1].mean() / pair.image[brain].mean())
        assert abs(np.mean(columns) - 23.5) < 1.5  # left and right are mirror images
        assert np.mean(darker) < 0.8 and max(darker) < 1


def test_icbm_is_made_once_and_always_alike(icbm_root: Path, tmp_path: Path) -> None:
    from icbm import make_icbm
    stamp = (icbm_root / "labelled" / "dataset.json").stat().st_mtime_ns
    make_icbm(icbm_root, size=48)
    assert (icbm_root / "labelled" / "dataset.json").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="something other"):
        make_icbm(icbm_root, size=48, seed=1)
    make_icbm(tmp_path / "again", size=48)
    for path in sorted(icbm_root.rglob("*")):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(icbm_root)).read_bytes() == path.read_bytes(), path
    assert "not a method" in (icbm_root / "test" / "dataset.json").read_text()

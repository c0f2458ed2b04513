"""The demo's data: coronal T1 slices of the ICBM152 template, lateral ventricles labelled, seen by simulated scanners.

    python scripts/icbm.py --out runs/demo/data

The volumes lie in nilearn's wheel. The template is ONE brain, the average of 152: it shows what the tool does and says
nothing about how well a method works on patients. Groups are slabs of four neighbouring slices with two slices left
out between them. Of the 14 slabs that show ventricles, 3 are labelled (every slice by 2 scanners: 24 images), 6 are
the test set (every slice by 2 of the training scanners and by 2 unseen ones: 96 images) and 5 are unlabelled (by 4
scanners); 6 slabs before and behind the ventricles join the unlabelled ones (by 3 scanners): 152 images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np
from scanners import SCANNERS, TRAINING, UNSEEN, Slice, scan
from scipy import ndimage

from synth.core.checks import UserError
from synth.core.files import write_json
from synth.core.pairs import DataInfo, memory_set
from synth.formats import write_folder

SLAB, PITCH = 4, 6  # slices in a slab; slices from one slab to the next, the difference is the gap
MIN_VOXELS = 60  # of ventricle in a slice that counts as showing it
LABELLED, TEST = (3, 6, 11), (1, 4, 7, 9, 12, 13)  # slabs by number, from the back; the others are unlabelled
N_BESIDE = 3  # slabs without ventricles taken on either side
FIELD_MM = 112  # side of the field of view: the deep brain, so that the ventricles are more than a few pixels
RECIPE = "recipe.json"
CLASSES = ("background", "lateral ventricle")
NOTES = ("One averaged brain (MNI ICBM152, T1, 1 mm, out of nilearn's wheel) and simulated scanners: this shows the "
         "tool, not a method. Groups are slabs of 4 coronal slices, 2 slices apart.")


@dataclass(frozen=True)
class Volumes:
    """The template, (X, Y, Z) at 1 mm: T1 brightness, grey and white matter shares in [0, 1], ventricles as bool."""

    t1: np.ndarray
    grey: np.ndarray
    white: np.ndarray
    ventricles: np.ndarray


@dataclass(frozen=True)
class View:
    """One image to make: the coronal slice `y` of the slab `group` through the scanner of that name."""

    y: int
    group: str
    scanner: str

    @property
    def id(self) -> str:
        """Name of the image, unique over all three sets."""
        return f"y{self.y:03d}_{self.scanner}"


@dataclass(frozen=True)
class IcbmSets:
    """Numbers of images written."""

    labelled: int
    unlabelled: int
    test: int


def make_icbm(out: Path, *, size: int = 96, seed: int = 0) -> IcbmSets:
    """Returns the numbers of images in `out`/labelled, /unlabelled and /test; writes them unless they are there.

    Images are grey, 8 bit, `size` px a side. The same size and seed give the same files.

    Raises:
        UserError: if nilearn is not installed, or `out` holds something else.
    """
    out = Path(out)
    recipe = {"version": 3, "size": size, "seed": seed, "scanners": {k: asdict(s) for k, s in SCANNERS.items()}}
    held = json.loads((out / RECIPE).read_text(encoding="utf-8")) if (out / RECIPE).is_file() else {}
    if {key: held.get(key) for key in recipe} == recipe:
        return IcbmSets(**held["images"])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(str(out), rule="it holds something other than this demo data", repair="choose another folder")
    volumes = read_volumes()
    views = plan_views(volumes.ventricles)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for name, planned in views.items():
            _write_set(volumes, planned, temporary / name, size=size, seed=seed)
        done = IcbmSets(**{name: len(planned) for name, planned in views.items()})
        write_json(temporary / RECIPE, {**recipe, "images": asdict(done)})
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return done


def read_volumes() -> Volumes:
    """Returns the template's volumes and its lateral ventricles.

    The ventricles are the two largest pieces but one of the fluid that the tissue maps enclose (the largest piece is
    what is not fluid): mirror images of each other, 7,695 voxels each.

    Raises:
        UserError: if nilearn is not installed.
    """
    t1, grey, white = (_read(name) for name in ("t1", "gm", "wm"))
    tissue = grey.astype(np.int16) + white
    brain = ndimage.binary_fill_holes(ndimage.binary_closing(tissue > 127))
    pieces, _ = ndimage.label(ndimage.binary_opening(brain & (tissue < 100)))
    largest = np.argsort(np.bincount(pieces.ravel())[1:])[-2:] + 1
    return Volumes(t1 / np.float32(255), grey / np.float32(255), white / np.float32(255), np.isin(pieces, largest))


def plan_views(ventricles: np.ndarray) -> dict[str, list[View]]:
    """Returns, for each of the three sets, which slices of `ventricles` (X, Y, Z) go through which scanners."""
    voxels = ventricles.sum((0, 2))
    shown = np.flatnonzero(voxels > MIN_VOXELS)
    first, n_slabs = int(shown[0]), (int(shown[-1] - shown[0]) + 1 - SLAB) // PITCH + 1
    starts = {k: first + PITCH * k for k in range(-n_slabs, 2 * n_slabs)}
    bare = [k for k, y in starts.items() if 0 <= y < len(voxels) - SLAB and not voxels[y:y + SLAB].any()]
    beside = [k for k in bare if k < 0][-N_BESIDE:] + [k for k in bare if k >= n_slabs][:N_BESIDE]
    views: dict[str, list[View]] = {"labelled": [], "unlabelled": [], "test": []}
    for k in (*range(n_slabs), *beside):
        name = "labelled" if k in LABELLED else "test" if k in TEST else "unlabelled"
        n_known = {"labelled": 2, "test": 2, "unlabelled": 3 if k in beside else len(TRAINING)}[name]
        for y in range(starts[k], starts[k] + SLAB):
            known = [TRAINING[(y + i) % len(TRAINING)] for i in range(n_known)]
            views[name] += [View(y, f"slab_y{starts[k]:03d}", s) for s in (*known, *(UNSEEN if name == "test" else ()))]
    return views


def cut_square(volumes: Volumes, y: int) -> Slice:
    """Returns the coronal slice `y`, head up, cut to one square for all slices: FIELD_MM around the ventricles' middle.

    The middle is that of all slices together: one for each slice would give the ventricles' place away.
    """
    rows, columns = (np.flatnonzero(volumes.ventricles.any(axes)) for axes in ((0, 1), (1, 2)))
    top, left = (int(r[0] + r[-1] + 1) // 2 for r in (rows, columns))  # in the padded plane: half a field further

    def cut(volume: np.ndarray) -> np.ndarray:
        plane = np.pad(volume[:, y].T.astype(np.float32), FIELD_MM // 2)
        return plane[top:top + FIELD_MM, left:left + FIELD_MM][::-1]

    return Slice(cut(volumes.t1), cut(volumes.grey), cut(volumes.white), cut(volumes.ventricles))


def _read(name: str) -> np.ndarray:
    # Importing nilearn takes seconds and is not needed to find a file of it.
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise UserError("nilearn", rule="the demo's volumes come with it, and it is not installed",
                        repair="pip install 'pairsmith[demo]'")
    path = Path(spec.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    return np.asarray(nibabel.load(path).dataobj)


def _write_set(volumes: Volumes, views: list[View], out: Path, *, size: int, seed: int) -> None:
    slices = {y: cut_square(volumes, y) for y in {view.y for view in views}}
    made = [scan(slices[view.y], view.scanner, size=size, seed=seed, name=view.id) for view in views]
    masks = None if out.name == "unlabelled" else [image.mask for image in made]
    info = DataInfo(CLASSES, 1, 8, (0.0, 255.0), "T1 MRI, simulated scanners", f"icbm152 {out.name}")
    write_folder(memory_set([image.pixels for image in made], masks, info, ids=[view.id for view in views],
                            groups=[view.group for view in views]), out)
    told = json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    write_json(out / "dataset.json", {**told, "notes": NOTES, "count": len(views), "seed": seed,
                                      "groups": len({view.group for view in views})})


def main() -> None:
    """Writes the three sets and says how many images each has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; new or empty")
    parser.add_argument("--size", type=int, default=96, help="side of the images in px, default 96")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    args = parser.parse_args()
    try:
        done = make_icbm(args.out, size=args.size, seed=args.seed)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{done.labelled} labelled, {done.unlabelled} unlabelled, {done.test} test images in {args.out}. {NOTES}")


if __name__ == "__main__":
    main()

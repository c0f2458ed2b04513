"""From settings to parts: what is read, what is refused, and what is left out with a note for the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from segtrain.compare.beside import TRUST, Beside, observers_beside, stored_beside
from segtrain.compare.data import Parts, choose, fingerprint, hide, join, shrink, with_range
from segtrain.compare.settings import CompareSettings
from segtrain.compare.splits import LabelDraw, Member, check_disjoint, draw_labels, split_test
from segtrain.streams import check_alike
from synth.core.checks import IGNORE, UserError
from synth.core.files import hash_json, sha256
from synth.core.pairs import ImageSet, Pair, PairSet
from synth.formats import load_images, load_pairs
from synth.formats.survey import range_16_bit

log = logging.getLogger(__name__)


def prepare(settings: CompareSettings, labelled: PairSet | None = None, unlabelled: ImageSet | None = None,
            test: PairSet | None = None) -> Parts:
    """Returns the parts: sets given here, else those that `settings.data` names.

    Raises:
        UserError: if a set is missing, or a group (or one and the same image) is on both sides of the split.
    """
    named = settings.data.root or settings.data.labelled
    labelled, unlabelled, test = _load(settings, labelled, unlabelled, test)
    lost: list[str] = []
    pairs = shrink(labelled, settings.size, lost)
    pile = shrink(hide(unlabelled), settings.size) if unlabelled is not None else None
    held_out = shrink(test, settings.size, lost) if test is not None else None
    for other in filter(None, (pile, held_out)):
        check_alike(other.info, pairs.info, other.where, classes=isinstance(other, PairSet))
    source = hash_json([fingerprint(s) for s in (pairs, pile, held_out)])
    notes = list(dict.fromkeys([*_notes(named), *_notes(settings.data.test), *lost]))
    splits_itself = held_out is None
    if splits_itself:
        pairs, pile, held_out = _split(settings, pairs, pile, notes)
        span = own_range(labelled, frozenset(pairs.ids))
        pairs, pile, held_out = (s and with_range(s, span) for s in (pairs, pile, held_out))
    else:
        for images in filter(None, (pairs, pile)):
            check_disjoint(images, held_out)
        _refuse_copies(pairs, pile, held_out)
    pile = _without_doubles(pairs, pile, notes)
    if settings.n_labelled and settings.n_groups:
        raise UserError(f"n_labelled={settings.n_labelled} and n_groups={settings.n_groups}",
                        rule="labels are counted by image or by group",
                        repair="write n_labelled=null, or drop n_groups")
    budget = len(pairs) if settings.n_labelled is None else settings.n_labelled
    if not splits_itself and budget > len(pairs):
        notes.append(f"n_labelled={budget}, but the labelled set holds {len(pairs)}: all of them are used.")
        budget = len(pairs)
    draws = _label_draws(settings, pairs, budget, notes)
    stored = _stored(settings, draws, labelled, unlabelled and pile and choose(unlabelled, pile.ids))
    notes += [TRUST] if stored else []
    return Parts(pairs, pile, held_out, draws, tuple(notes), source, stored, _observers(settings, draws, labelled))


def _stored(settings: CompareSettings, draws: Sequence[LabelDraw], labelled: ImageSet,
            pile: ImageSet | None) -> Beside | None:
    # Of what some draw leaves unlabelled, and beside the images at their native size.
    if not settings.data.stored:
        return None
    hidden = {name for draw in draws for name in draw.hidden}
    sets = ([choose(labelled, hidden)] if hidden else []) + ([pile] if pile else [])
    if not sets:
        raise UserError("data.stored", rule="no image is unlabelled in any label draw", repair="leave it out")
    return stored_beside(settings.data.stored, join(sets), settings.size, labelled.info.n_classes)


def _observers(settings: CompareSettings, draws: Sequence[LabelDraw], labelled: ImageSet) -> Beside | None:
    if not settings.data.observers:
        return None
    shown = choose(labelled, {name for draw in draws for name in draw.labelled})
    return observers_beside(settings.data.observers, shown, settings.size)


def _load(settings: CompareSettings, labelled: PairSet | None, unlabelled: ImageSet | None,
          test: PairSet | None) -> tuple[PairSet, ImageSet | None, PairSet | None]:
    data = settings.data
    if data.root and (data.labelled or data.test):
        raise UserError("data", rule="data.root is one labelled set that is split; data.labelled and data.test are a "
                        "split of your own", repair="give data.root alone, or the three folders")
    named = data.root or data.labelled
    for name, given, path in (("labelled", labelled, named), ("unlabelled", unlabelled, data.unlabelled),
                              ("test", test, data.test)):
        if given is not None and path is not None:
            raise UserError(f"{name}={path}", rule=f"the {name} images were also given as a set",
                            repair="give one of the two")
    if labelled is None and named is None:
        raise UserError("data", rule="there are no labelled images", repair="give data.root=DIR, or data.labelled=DIR "
                        "with data.test=DIR")
    options = {"channels": data.channels, "mask_map": data.mask_map}
    labelled = labelled if labelled is not None else load_pairs(named, **options)
    if data.unlabelled:
        unlabelled = load_images(data.unlabelled, channels=data.channels, like=labelled.info)
    if data.test:
        test = load_pairs(data.test, **options, like=labelled.info)
    return labelled, unlabelled, test


def _notes(folder: str | None) -> list[str]:
    path = Path(folder or "") / "dataset.json"
    if folder is None or not path.is_file():
        return []
    notes = json.loads(path.read_text(encoding="utf-8-sig")).get("notes") or []
    return [str(n) for n in (notes if isinstance(notes, list) else [notes])]


def _members(images: ImageSet) -> list[Member]:
    return [Member(p.id, p.group, p.mask is None or bool(((p.mask > 0) & (p.mask != IGNORE)).any())) for p in images]


def _split(settings: CompareSettings, pairs: ImageSet, pile: ImageSet | None,
           notes: list[str]) -> tuple[PairSet, ImageSet | None, PairSet]:
    split = settings.split
    parts = split_test(_members(pairs), seed=split.seed, share=split.test_share, cap=split.max_test)
    test, training = choose(pairs, parts.test), choose(pairs, parts.training)
    held_out = {g for i, g in zip(pairs.ids, pairs.groups, strict=True) if i in {*parts.test, *parts.unused}}
    if parts.unused:
        notes.append(f"{len(parts.unused)} images of the last test group lie past split.max_test and are used nowhere.")
    # What lies past the cap is of a test group too.
    seen = {_pixels_hash(p.image) for p in choose(pairs, {*parts.test, *parts.unused})} - {""}
    training = _drop(training, notes, "copy of a test image", lambda p: _pixels_hash(p.image) in seen)
    if training is None:
        raise UserError("data.root", rule="no training image is left once copies of test images are removed",
                        repair="add images")
    if pile is not None:
        pile = _drop(pile, notes, "unlabelled image of a test group or copy of a test image",
                     lambda p: p.group in held_out or _pixels_hash(p.image) in seen)
    return training, pile, test


def own_range(labelled: ImageSet, training: Collection[str]) -> tuple[float, float]:
    """Returns the intensity range of the images named `training`, where that of the set was measured on its images.

    One that was declared stays. One measured on all images would let test images decide how training images look.
    """
    declared = tuple(labelled.info.intensity_range)
    if labelled.info.bit_depth == 8:
        return declared
    everywhere, own = np.zeros(65536, np.int64), np.zeros(65536, np.int64)
    for pair in labelled:
        counts = np.bincount(pair.image.ravel(), minlength=65536)
        everywhere += counts
        own += counts if pair.id in training else 0
    return range_16_bit(own) if range_16_bit(everywhere) == declared else declared


def _pixels_hash(image: np.ndarray) -> str:
    # A blank image is no evidence of a copy: each counts as its own.
    return sha256(image.tobytes()) if image.min() < image.max() else ""


def _drop(images: ImageSet, notes: list[str], why: str, unwanted: Callable[[Pair], bool]) -> ImageSet | None:
    kept = [i for i, pair in enumerate(images) if not unwanted(pair)]
    if len(kept) < len(images):
        notes.append(f"Left out of training, {why}: {len(images) - len(kept)}.")
        log.warning(notes[-1])
    return images.select(kept) if kept else None


def _refuse_copies(pairs: ImageSet, pile: ImageSet | None, test: ImageSet) -> None:
    seen = {_pixels_hash(p.image): p.id for p in test}
    seen.pop("", None)
    for images in filter(None, (pairs, pile)):
        for pair in images:
            if (same := seen.get(_pixels_hash(pair.image))) is not None:
                raise UserError(f"{images.where}: {pair.id}", rule=f"it is the same image as {same} of the test set "
                                f"{test.where}", repair="remove it from one of them")


def _without_doubles(pairs: ImageSet, pile: ImageSet | None, notes: list[str]) -> ImageSet | None:
    if pile is None:
        return None
    known = {p.id: _pixels_hash(p.image) for p in pairs}
    for pair in pile:
        if pair.id in known and known[pair.id] != _pixels_hash(pair.image):
            raise UserError(f"{pile.where}: {pair.id}", rule=f"another image of {pairs.where} has this name",
                            repair="rename one of them")
    return _drop(pile, notes, "unlabelled image that is labelled too", lambda p: p.id in known)


def _label_draws(settings: CompareSettings, pairs: ImageSet, budget: int, notes: list[str]) -> tuple[LabelDraw, ...]:
    members = _members(pairs)
    draws = tuple(draw_labels(members, seed=settings.split.seed, draw=k, budget=budget, n_groups=settings.n_groups)
                  for k in range(settings.draws))
    if len(draws[0].labelled) == len(pairs) and settings.draws > 1:
        notes.append(f"All {settings.draws} label draws use all {len(pairs)} labelled images: they differ in the "
                     "random numbers of training alone.")
    elif len({draw.labelled for draw in draws}) < len(draws):
        notes.append("Some label draws label the same images: there are too few groups to choose from.")
    for draw in draws:
        notes.extend(line[0].upper() + line[1:] + "." for line in draw.redrawn)
        seen = {int(v) for p in choose(pairs, draw.labelled) for v in np.unique(p.mask)}
        absent = [c for k, c in enumerate(pairs.info.classes) if k and k not in seen]
        if absent:
            notes.append(f"Label draw {draw.index} shows no pixel of: {', '.join(absent)}.")
    return draws

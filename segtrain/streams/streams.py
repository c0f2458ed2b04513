"""Labelled, synthetic and unlabelled images as one stream of batches, and the guard before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from segtrain.settings import SegmentSettings
from segtrain.streams.extras import NOTHING, Extras
from segtrain.streams.inputs import make_inputs
from segtrain.streams.patches import Corner, cut, draw_corner, read_arrays, shows_foreground
from segtrain.streams.stacks import hold_out, windows
from segtrain.streams.stored import Stored, print_of, read_observers, read_stored
from synth.core.checks import UserError
from synth.core.loop import Batch
from synth.core.pairs import Arrays, DataInfo, ImageSet, PairSet, Rows
from synth.core.rng import derive_seed, sample_rng
from synth.core.space import pixels_to_unit


def check_leak(images: ImageSet | None, held_out: Collection[str], kind: str) -> None:
    """Returns nothing; raises if an item of `images` belongs to, or was made from, a group of `held_out`.

    Or if the generator that drew them was fitted on one, as far as the set says so.

    Raises:
        UserError: naming the first such item, or the set, and the group.
    """
    held = frozenset(held_out)
    for item in images.items if images is not None else ():
        own = {item.group, *(item.made.parent_groups if item.made else ())}
        if leaked := sorted(own & held):
            raise UserError(f"{kind} {item.id}", rule=f"it stems from group {leaked[0]}, which is held out for "
                            "validation or test", repair="train without it: synth export DIR out=NEW "
                            f"--without-group {leaked[0]}, or images.without_group({leaked[0]!r})")
    taught = images.taught if images is not None else None
    if known := sorted(group for group in held if taught is not None and taught.has_group(group)):
        raise UserError(f"{kind} {images.where}", rule=f"it was drawn by a generator that was fitted on group "
                        f"{known[0]}, which is held out for validation or test",
                        repair="draw it with a generator that was fitted without that group")


def check_kept(pairs: PairSet | None) -> None:
    """Returns nothing; raises if a gate rejected one of `pairs`.

    Raises:
        UserError: naming the first rejected pair.
    """
    for item in pairs.items if pairs is not None else ():
        if item.made and item.made.verdict == "rejected":
            raise UserError(f"synthetic {item.id}", rule=f"a gate rejected this pair ({item.made.reason})",
                            repair="train on the split of kept pairs")


def check_alike(other: DataInfo, info: DataInfo, what: str, *, classes: bool) -> None:
    """Returns nothing; raises if the images of `other` mean something else to a network for `info`.

    Args:
        what: to call them. classes: whether their masks are looked at too.

    Raises:
        UserError: naming both values.
    """
    if other.channels != info.channels:
        raise UserError(what, rule=f"they have {other.channels} channels, the labelled {info.channels}",
                        repair=f"read them with channels={info.channels} (data.channels on the command line)")
    # A network reads shares of the range: the same tissue would be dark in one set and bright in the other.
    for name, theirs, ours in (("bit depth", other.bit_depth, info.bit_depth),
                               ("intensity range", tuple(other.intensity_range), tuple(info.intensity_range))):
        if theirs != ours:
            raise UserError(what, rule=f"their {name} is {theirs}, the labelled ones' {ours}",
                            repair="load them with like=labelled.info, or convert one set")
    if classes and other.classes != info.classes:
        raise UserError(what, rule=f"their classes are {list(other.classes)}, the labelled ones' "
                        f"{list(info.classes)}", repair="list all classes in dataset.json of both, or draw pairs from "
                        "the same labelled set")


@dataclass(frozen=True)
class Streams:
    """What training reads, decoded once, and the rule by which it is dealt out.

    Attributes:
        labelled, synthetic, unlabelled: what is dealt out; without labelled images batches hold none.
        inputs: further forms of the unlabelled images, by name.
        calibration: labelled images that teach nothing. stored: pseudo-labels of the unlabelled images.
        observers: further annotators' masks of the labelled images, (O, N, S, S). stacks: runs of neighbouring slices
            of the labelled images, as rows; () = images are drawn by themselves.
    """

    labelled: Arrays | None
    synthetic: Arrays | None
    unlabelled: Arrays | None
    settings: SegmentSettings
    inputs: Mapping[str, np.ndarray | Rows] = field(default_factory=dict)
    calibration: Arrays | None = None
    stored: Stored | None = None
    observers: np.ndarray | None = None
    stacks: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def read(cls, settings: SegmentSettings, labelled: PairSet | None, *, synthetic: PairSet | None = None,
             unlabelled: ImageSet | None = None, extras: Extras = NOTHING) -> Streams:
        """Returns the streams of three sets at the working resolution; `extras` is what else the method wants.

        Raises:
            UserError: if they do not go together, a mask is missing, or no labelled pair shows any foreground.
        """
        if settings.patch and (extras.stored or extras.observers or extras.stack > 1 or extras.whole):
            raise UserError("patch", rule="this method looks at whole images: at masks or predictions that are kept of "
                            "them, or at stacks of slices", repair="leave patch out and give size")
        if labelled is None:
            pile = read_arrays(unlabelled, settings).without_masks()
            stored = read_stored(extras.stored, unlabelled, settings.size, unlabelled.info.n_classes)
            return cls(None, None, pile, settings, make_inputs(pile, extras.inputs), stored=stored)
        whole = read_arrays(labelled, settings)
        train, apart = hold_out(whole.groups, extras.held_out_share, settings.loop.seed)
        arrays = whole.select(train) if apart else whole
        for other, what in ((synthetic, "synthetic pairs"), (unlabelled, "unlabelled images")):
            if other is not None:
                check_alike(other.info, labelled.info, what, classes=other is synthetic)
        made = None if synthetic is None else read_arrays(synthetic, settings)
        for part in (arrays, made):
            if part is not None and part.masks is None:
                raise UserError(labelled.where, rule="a pair without a mask cannot be learnt from",
                                repair="give masks, or pass the images as unlabelled")
        if not shows_foreground(arrays):
            raise UserError(labelled.where, rule=f"no labelled pair shows any foreground at {settings.side} px",
                            repair="check the masks and mask_map, or raise size")
        pile = None if unlabelled is None else read_arrays(unlabelled, settings).without_masks()
        return cls(
            arrays, made, pile, settings, make_inputs(pile, extras.inputs),
            calibration=whole.select(apart) if apart else None,
            stored=extras.stored and read_stored(extras.stored, unlabelled, settings.size, labelled.info.n_classes),
            observers=read_observers(extras.observers, labelled, settings.size)[:, train] if extras.observers else None,
            stacks=windows(arrays.ids, arrays.groups, extras.stack) if extras.stack > 1 else ())

    def fingerprints(self) -> dict[str, str]:
        """Returns what identifies each set's content; "" where there is none."""
        parts = {"labelled": self.labelled, "synthetic": self.synthetic, "unlabelled": self.unlabelled}
        found = {name: part.fingerprint() if part else "" for name, part in parts.items()}
        if self.calibration:
            found["calibration"] = self.calibration.fingerprint()
        if self.stored:
            found["stored"] = self.stored.fingerprint()
        if self.observers is not None:
            found["observers"] = print_of(self.observers)
        return found

    def shown(self) -> tuple[Arrays, ...]:
        """Returns the real images that training looks at in any way, calibration included."""
        return tuple(part for part in (self.labelled, self.unlabelled, self.calibration) if part is not None)

    def batches(self, step: int, rank: int, n_ranks: int) -> Batch:
        """Returns this rank's part of batch `step`: a pure function, so a restart needs no state.

        The global batch is drawn first and dealt out by rank, so that the images seen do not depend on the number of
        processes.

        Raises:
            UserError: if a batch size cannot be dealt out evenly.
        """
        n, n_unlabelled = self.settings.batch_size, self.settings.unlabelled_batch_size
        check_ranks(n, n_ranks, "batch_size")
        if self.labelled is None:
            batch = self._nothing()
        else:
            before, after = self._n_synthetic(step), self._n_synthetic(step + 1)
            rows = [(False, k) for k in range(step * n - before, (step + 1) * n - after)]
            rows += [(True, k) for k in range(before, after)]
            # Slices of one stack stay on one process.
            first = rank * n // n_ranks
            batch = self._supervised(rows[first:first + n // n_ranks] if self.stacks else rows[rank::n_ranks])
        if self.calibration:
            batch |= self._calibration(step)
        if self.unlabelled is not None:
            check_ranks(n_unlabelled, n_ranks, "unlabelled_batch_size")
            draws = range(step * n_unlabelled, (step + 1) * n_unlabelled)[rank::n_ranks]
            rows = self._indices("unlabelled", draws, self.unlabelled)
            batch["unlabelled_seeds"] = self._seeds("unlabelled", draws)
            corners = self._corners(self.unlabelled, rows, batch["unlabelled_seeds"])
            batch["unlabelled"] = self._images(self.unlabelled, rows, corners)
            batch["unlabelled_rows"] = torch.tensor(rows)
            if self.stored:
                batch["stored_labels"] = torch.from_numpy(self.stored.labels[rows].astype(np.int64))
                batch["stored_confidence"] = torch.from_numpy(self.stored.confidence[rows].astype(np.float32) / 255)
            for name, images in self.inputs.items():
                batch[f"input_{name}"] = pixels_to_unit(cut(images, rows, corners, self.settings.side),
                                                        self.unlabelled.info.intensity_range)
        return batch

    def _n_synthetic(self, step: int) -> int:
        # Synthetic images drawn before `step`: rounded once per run, not per batch, so that the share is met exactly.
        return int(step * self.settings.batch_size * self.settings.synthetic_share + 1e-9) if self.synthetic else 0

    def _nothing(self) -> Batch:
        # The labelled part of a batch without labelled images.
        side, none = self.settings.side, torch.zeros(0, dtype=torch.long)
        return {"images": torch.zeros(0, self.unlabelled.info.channels, side, side), "rows": none, "seeds": none,
                "labels": torch.zeros(0, side, side, dtype=torch.long), "synthetic": none.bool()}

    def _supervised(self, rows: list[tuple[bool, int]]) -> Batch:
        # Labelled rows come first, as `rows` has them.
        draws = {made: [draw for own, draw in rows if own == made] for made in (False, True)}
        parts = [self._deal(some, made=made) for made, some in draws.items() if some]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def _deal(self, draws: list[int], *, made: bool) -> Batch:
        part, name = (self.synthetic, "synthetic") if made else (self.labelled, "labelled")
        stacks = [-1] * len(draws)
        if self.stacks and not made:
            stacks, index = (list(column) for column in zip(*(self._slice(draw) for draw in draws), strict=True))
            draws = stacks
        else:
            index = self._indices(name, draws, part)
        seeds = self._seeds(name, draws)
        corners = self._corners(part, index, seeds)
        labels = self._labels(part, index, corners)
        batch = {"images": self._images(part, index, corners), "labels": labels, "seeds": seeds,
                 "synthetic": torch.full((len(draws),), made),
                 "rows": torch.tensor(index) + (len(self.labelled) if made else 0)}
        if self.labelled.weights or (self.synthetic and self.synthetic.weights):
            batch["weights"] = torch.tensor([part.weights[i] if part.weights else 1.0 for i in index])
        batch |= {} if self.observers is None else {"observers": self._observers(labels, None if made else index)}
        return batch | ({"stacks": torch.tensor(stacks)} if self.stacks else {})

    def _slice(self, draw: int) -> tuple[int, int]:
        # Which stack a draw belongs to, and the row of its slice. All slices of a stack are augmented alike: what they
        # show together would fall apart otherwise.
        stack, place = divmod(draw, len(self.stacks[0]))
        order = _order(self.settings.loop.seed, "stacks", stack // len(self.stacks), len(self.stacks))
        return stack, self.stacks[order[stack % len(self.stacks)]][place]

    def _observers(self, own: torch.Tensor, rows: list[int] | None) -> torch.Tensor:
        # Labels (B, O, S, S): the set's own mask first. A synthetic pair has no other, so all see the same.
        if rows is None:
            return own[:, None].expand(-1, 1 + len(self.observers), -1, -1)
        others = torch.from_numpy(self.observers[:, rows].astype(np.int64)).movedim(0, 1)
        return torch.cat([own[:, None], others], dim=1)

    def _calibration(self, step: int) -> Batch:
        # The same on every process, which therefore all come to the same conclusions.
        n = max(self.settings.batch_size // 4, 1)
        draws = range(step * n, (step + 1) * n)
        rows = self._indices("calibration", draws, self.calibration)
        corners = self._corners(self.calibration, rows, self._seeds("calibration", draws))
        return {"calibration_images": self._images(self.calibration, rows, corners),
                "calibration_labels": self._labels(self.calibration, rows, corners)}

    def _indices(self, stream: str, draws: Collection[int], part: Arrays) -> list[int]:
        seed, n = self.settings.loop.seed, len(part)
        return [_order(seed, stream, k // n, n)[k % n] for k in draws]

    def _seeds(self, stream: str, draws: Collection[int]) -> torch.Tensor:
        return torch.tensor([derive_seed(self.settings.loop.seed, "augment", stream, k) for k in draws])

    def _corners(self, part: Arrays, rows: list[int], seeds: torch.Tensor) -> list[Corner] | None:
        # Where the squares of some images lie, each by its own seed; None = they are seen whole.
        if self.settings.patch is None:
            return None
        return [draw_corner(sample_rng(seed, "patch"), part.images[i].shape[-2:], self.settings.patch,
                            None if part.masks is None else part.masks[i])
                for i, seed in zip(rows, seeds.tolist(), strict=True)]

    def _images(self, part: Arrays, rows: list[int], corners: list[Corner] | None) -> torch.Tensor:
        return pixels_to_unit(cut(part.images, rows, corners, self.settings.side), part.info.intensity_range)

    def _labels(self, part: Arrays, rows: list[int], corners: list[Corner] | None) -> torch.Tensor:
        return torch.from_numpy(cut(part.masks, rows, corners, self.settings.side).astype(np.int64))


@lru_cache(maxsize=64)
def _order(seed: int, stream: str, epoch: int, n: int) -> tuple[int, ...]:
    return tuple(torch.randperm(n, generator=sample_rng(seed, "order", stream, epoch)).tolist())


def check_ranks(n: int, n_ranks: int, name: str) -> None:
    """Returns nothing; raises if `n` images cannot be dealt out evenly to `n_ranks` processes.

    Raises:
        UserError: naming the setting.
    """
    if n % n_ranks:
        raise UserError(f"{name} {n}", rule=f"{n_ranks} processes need a multiple of {n_ranks}",
                        repair=f"take {-(-n // n_ranks) * n_ranks}")

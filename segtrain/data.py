"""Labelled, synthetic and unlabelled images as one stream of batches, and the guard before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from segtrain.inputs import make_inputs
from segtrain.settings import SegmentSettings
from synth.core.checks import IGNORE, UserError
from synth.core.loop import Batch
from synth.core.pairs import Arrays, DataInfo, ImageSet, PairSet
from synth.core.rng import derive_seed, sample_rng
from synth.core.space import pixels_to_unit


def check_leak(images: ImageSet | None, held_out: Collection[str], kind: str) -> None:
    """Returns nothing; raises if an item of `images` belongs to, or was made from, a group of `held_out`.

    Raises:
        UserError: naming the first such item and the group.
    """
    held = frozenset(held_out)
    for item in images.items if images is not None else ():
        own = {item.group, *(item.made.parent_groups if item.made else ())}
        if leaked := sorted(own & held):
            raise UserError(f"{kind} {item.id}", rule=f"it stems from group {leaked[0]}, which is held out for "
                            "validation or test", repair=f"train without it: images.without_group({leaked[0]!r})")


def check_kept(pairs: PairSet | None) -> None:
    """Returns nothing; raises if a gate rejected one of `pairs`.

    Raises:
        UserError: naming the first rejected pair.
    """
    for item in pairs.items if pairs is not None else ():
        if item.made and item.made.verdict == "rejected":
            raise UserError(f"synthetic {item.id}", rule=f"a gate rejected this pair ({item.made.reason})",
                            repair="train on the split of kept pairs")


def check_alike(other: DataInfo, info: DataInfo, kind: str) -> None:
    """Returns nothing; raises if the images of `other` cannot be read by a network for `info`.

    Raises:
        UserError: naming both values.
    """
    if other.channels != info.channels:
        raise UserError(f"{kind} images", rule=f"they have {other.channels} channels, the labelled {info.channels}",
                        repair=f"read them with channels={info.channels} (data.channels on the command line)")
    if kind == "synthetic" and other.n_classes != info.n_classes:
        raise UserError("synthetic pairs", rule=f"their classes are {list(other.classes)}, the labelled ones' "
                        f"{list(info.classes)}", repair="draw them from the same labelled set")


@dataclass(frozen=True)
class Streams:
    """What training reads, decoded once, and the rule by which it is dealt out."""

    labelled: Arrays
    synthetic: Arrays | None
    unlabelled: Arrays | None
    settings: SegmentSettings
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, settings: SegmentSettings, labelled: PairSet, *, synthetic: PairSet | None = None,
             unlabelled: ImageSet | None = None, inputs: Sequence[str] = ()) -> Streams:
        """Returns the streams of three sets at the working resolution; `inputs` names forms of the unlabelled images.

        Raises:
            UserError: if they do not go together, a mask is missing, or no labelled pair shows any foreground.
        """
        arrays = labelled.arrays(settings.size)
        for other, kind in ((synthetic, "synthetic"), (unlabelled, "unlabelled")):
            if other is not None:
                check_alike(other.info, labelled.info, kind)
        made = None if synthetic is None else synthetic.arrays(settings.size)
        for part in (arrays, made):
            if part is not None and part.masks is None:
                raise UserError(labelled.where, rule="a pair without a mask cannot be learnt from",
                                repair="give masks, or pass the images as unlabelled")
        if not ((arrays.masks > 0) & (arrays.masks != IGNORE)).any():
            raise UserError(labelled.where, rule=f"no labelled pair shows any foreground at {settings.size} px",
                            repair="check the masks and mask_map, or raise size")
        pile = None if unlabelled is None else unlabelled.arrays(settings.size).without_masks()
        return cls(arrays, made, pile, settings, make_inputs(pile, inputs))

    def fingerprints(self) -> dict[str, str]:
        """Returns what identifies each set's content; "" where there is none."""
        parts = {"labelled": self.labelled, "synthetic": self.synthetic, "unlabelled": self.unlabelled}
        return {name: part.fingerprint() if part else "" for name, part in parts.items()}

    def batches(self, step: int, rank: int, n_ranks: int) -> Batch:
        """Returns this rank's part of batch `step`: a pure function, so a restart needs no state.

    XX The global batch is drawn
        first and dealt out by rank, so that the images seen do not depend on the number of processes.

        Raises:
            UserError: if a batch size cannot be dealt out evenly.
        """
        n, n_unlabelled = self.settings.batch_size, self.settings.unlabelled_batch_size
        check_ranks(n, n_ranks, "batch_size")
        before, after = self._n_synthetic(step), self._n_synthetic(step + 1)
        rows = [(self.labelled, False, k) for k in range(step * n - before, (step + 1) * n - after)]
        rows += [(self.synthetic, True, k) for k in range(before, after)]
        batch = self._supervised(rows[rank::n_ranks])
        if self.unlabelled is not None:
            check_ranks(n_unlabelled, n_ranks, "unlabelled_batch_size")
            draws = range(step * n_unlabelled, (step + 1) * n_unlabelled)[rank::n_ranks]
            rows = self._indices("unlabelled", draws, self.unlabelled)
            batch["unlabelled"] = self._images(self.unlabelled, rows)
            batch["unlabelled_seeds"] = self._seeds("unlabelled", draws)
            batch["unlabelled_rows"] = torch.tensor(rows)
            for name, images in self.inputs.items():
                batch[f"input_{name}"] = pixels_to_unit(images[rows], self.unlabelled.info.intensity_range)
        return batch

    def _n_synthetic(self, step: int) -> int:
        # Synthetic images drawn before `step`: rounded once per run, not per batch, so that the share is met exactly.
        return int(step * self.settings.batch_size * self.settings.synthetic_share + 1e-9) if self.synthetic else 0

    def _supervised(self, rows: list[tuple[Arrays, bool, int]]) -> Batch:
        images, labels, seeds, found = [], [], [], []
        for part, made, draw in rows:
            name = "synthetic" if made else "labelled"
            index = self._indices(name, [draw], part)
            images.append(self._images(part, index))
            labels.append(torch.from_numpy(part.masks[index].astype(np.int64)))
            seeds.append(self._seeds(name, [draw]))
            found.append(index[0] + (len(self.labelled) if made else 0))
        return {"images": torch.cat(images), "labels": torch.cat(labels), "seeds": torch.cat(seeds),
                "synthetic": torch.tensor([made for _, made, _ in rows]), "rows": torch.tensor(found)}

    def _indices(self, stream: str, draws: Collection[int], part: Arrays) -> list[int]:
        seed, n = self.settings.loop.seed, len(part)
        return [_order(seed, stream, k // n, n)[k % n] for k in draws]

    def _seeds(self, stream: str, draws: Collection[int]) -> torch.Tensor:
        return torch.tensor([derive_seed(self.settings.loop.seed, "augment", stream, k) for k in draws])

    @staticmethod
    def _images(part: Arrays, indices: list[int]) -> torch.Tensor:
        return pixels_to_unit(part.images[indices], part.info.intensity_range)


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

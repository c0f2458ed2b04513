"""Which images are neighbouring slices of one volume, and which images are kept apart: rules about groups."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from synth.core.checks import UserError
from synth.core.rng import sample_rng


def windows(ids: Sequence[str], groups: Sequence[str], n: int) -> tuple[tuple[int, ...], ...]:
    """Returns runs of `n` neighbouring slices as rows of the set; a group's slices are in the order of their ids.

    Every slice is in one run at least. A group with fewer than `n` slices is gone through there and back.

    Raises:
        UserError: if a group has one image: a stack has more.
    """
    members: dict[str, list[int]] = {}
    for row in sorted(range(len(ids)), key=lambda row: _natural(ids[row])):
        members.setdefault(groups[row], []).append(row)
    alone = [ids[rows[0]] for rows in members.values() if len(rows) == 1]
    if alone:
        raise UserError(f"labelled {alone[0]}", rule="it is the only image of its group, but the method learns from "
                        "stacks: groups of slices", repair="give the volume each slice belongs to as its group")
    found = []
    for rows in members.values():
        path = [*rows, *rows[-2:0:-1]]
        starts = sorted({min(start, max(len(rows) - n, 0)) for start in range(0, len(rows), n)})
        found += [tuple(path[(start + i) % len(path)] for i in range(n)) for start in starts]
    return tuple(found)


def _natural(name: str) -> list[tuple[int, str]]:
    # Slice 10 comes after slice 9.
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def hold_out(groups: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Returns the rows that train and the rows held out: whole groups, at random, until `share` of all rows.

    Raises:
        UserError: if a share is asked for and there is but one group.
    """
    rows = list(range(len(groups)))
    if not share:
        return rows, []
    names = sorted(set(groups))
    if len(names) == 1:
        raise UserError(f"group {names[0]}", rule="the method calibrates itself on labelled images of held-out groups, "
                        "and all belong to this one", repair="label images of a second group, or take another method")
    order = torch.randperm(len(names), generator=sample_rng(seed, "held out")).tolist()
    apart: list[int] = []
    for index in order[:-1]:
        if len(apart) >= share * len(rows):
            break
        apart += [row for row in rows if groups[row] == names[index]]
    held = set(apart)
    return [row for row in rows if row not in held], sorted(apart)

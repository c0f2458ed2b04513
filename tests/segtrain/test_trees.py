"""The tree filter against a definition by sets of pixels, its order properties, and the guard around it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scenes import PAIRS, SETTINGS
from scipy.ndimage import gaussian_filter, generate_binary_structure, label

from segtrain.streams.inputs import INPUTS, make_inputs
from segtrain.streams.trees import filter_max, filter_min, simplify, ssim, tree_max, tree_min
from synth.core.checks import UserError


def smooth(size: int = 48, seed: int = 0, sigma: float = 1.5) -> np.ndarray:
    """Returns a random picture (S, S) uint8 of smooth shapes and a little noise that uses the whole range."""
    rng = np.random.default_rng(seed)
    field = 6 * gaussian_filter(rng.normal(size=(size, size)), sigma) + 0.3 * rng.normal(size=(size, size))
    return np.rint(255 * (field - field.min()) / np.ptp(field)).astype(np.uint8)


def by_definition(levels: np.ndarray, connectivity: int) -> np.ndarray:
    """Returns the filtered levels, from all components of all thresholds as plain sets of pixels."""
    shape = generate_binary_structure(2, 1 if connectivity == 4 else 2)
    nodes = set()
    for threshold in np.unique(levels):
        parts, n = label(levels >= threshold, structure=shape)
        nodes |= {frozenset(np.flatnonzero(parts.ravel() == i).tolist()) for i in range(1, n + 1)}
    values = levels.ravel()

    def parent(node: frozenset) -> frozenset | None:
        return min((other for other in nodes if node < other), key=len, default=None)

    parents = {node: parent(node) for node in nodes}
    n_children = {node: sum(up == node for up in parents.values()) for node in nodes}
    kept = [node for node in nodes if parents[node] is None or n_children[parents[node]] >= 2]
    found = [min(int(values[list(min((k for k in kept if i in k), key=len))].min()), 255) for i in range(values.size)]
    return np.array(found, dtype=np.uint8).reshape(levels.shape)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_the_filter_is_its_definition(connectivity: int, seed: int) -> None:
    levels = np.random.default_rng(seed).integers(0, 6, (7, 8)).astype(np.uint8) * 40
    expected = by_definition(levels, connectivity)
    assert np.array_equal(filter_max(levels, connectivity=connectivity), expected)
    assert np.array_equal(filter_min(255 - levels, connectivity=connectivity), 255 - expected)
    assert not np.array_equal(expected, levels)


@pytest.mark.parametrize("seed", range(3))
def test_order_and_idempotence(seed: int) -> None:
    x = smooth(seed=seed)
    low, high = filter_max(x), filter_min(x)
    assert (low <= x).all() and (low < x).any(), "the max-tree's filter is anti-extensive"
    assert (high >= x).all() and (high > x).any(), "the min-tree's is extensive"
    assert np.array_equal(filter_max(low), low) and np.array_equal(filter_min(high), high)
    assert np.array_equal(filter_min(x), 255 - filter_max(255 - x))


def test_a_lone_peak_goes_and_two_on_one_plateau_stay() -> None:
    lone = np.array([[1, 3, 7, 3, 1]], dtype=np.uint8)
    assert filter_max(lone).tolist() == [[1, 1, 1, 1, 1]]
    # 3's parent, 1, has no other child: gone. 7 and 5 are siblings: both stay, the plateau between them falls to 1.
    pair = np.array([[1, 3, 7, 3, 5, 3, 1]], dtype=np.uint8)
    assert filter_max(pair).tolist() == [[1, 1, 7, 1, 5, 1, 1]]
    with pytest.raises(UserError, match="4 or 8"):
        filter_max(lone, connectivity=6)


def test_the_guard_saves_flat_pictures_and_nothing_else() -> None:
    flat = np.full((1, 32, 32), 90, dtype=np.uint8)
    assert np.array_equal(tree_max(flat), flat) and np.array_equal(tree_min(flat), flat)
    disc = flat.copy()
    disc[0, 8:24, 8:24] = 220
    assert np.array_equal(tree_max(disc), disc), "the only object would be gone"
    assert (simplify(disc, keep=filter_max, min_ssim=-1) == 90).all()
    busy = smooth()[None]
    assert np.array_equal(tree_max(busy), filter_max(busy[0])[None]) and not np.array_equal(tree_max(busy), busy)


def test_similarity_against_closed_forms() -> None:
    x = smooth()
    assert ssim(x, x) == pytest.approx(1) and ssim(x, smooth(seed=9)) < 0.5
    a, b, c = 40.0, 90.0, 2.55**2
    expected = (2 * a * b + c) / (a * a + b * b + c)
    assert ssim(np.full((20, 20), a), np.full((20, 20), b)) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "sign"), [("tree_max", -1), ("tree_min", 1)])
def test_sixteen_bits_come_back_in_their_own_range(name: str, sign: int) -> None:
    levels = smooth()
    deep = (levels.astype(int) * 37 + 900 + np.random.default_rng(1).integers(0, 9, levels.shape)).astype(np.uint16)
    found = INPUTS[name](deep[None])[0]
    assert found.dtype == np.uint16 and deep.min() <= found.min() and found.max() <= deep.max()
    change = found.astype(int) - deep
    assert (sign * change >= 0).all() and (change != 0).any()
    # What the filter leaves alone keeps its value to the last bit, though the tree saw 256 levels of it.
    assert (change == 0).mean() > 0.3 and len(np.unique(found)) > 256


def test_channels_are_filtered_one_by_one_and_alike_for_every_batch() -> None:
    x = np.stack([smooth(seed=i, sigma=1.2) for i in range(3)])
    together = tree_max(x)
    assert all(np.array_equal(together[i], tree_max(x[i:i + 1])[0]) for i in range(3))
    flat = np.full((1, 24, 24), 7, dtype=np.uint16)
    assert np.array_equal(tree_min(flat), flat)


def test_the_streams_make_every_form_once() -> None:
    pile = PAIRS.arrays(SETTINGS.size).without_masks()
    forms = make_inputs(pile, ("tree_max", "tree_min"))
    assert all(form.shape == pile.images.shape and form.dtype == pile.images.dtype for form in forms.values())
    below, above = forms["tree_max"], forms["tree_min"]
    assert all((a <= b).all() for a, b in pairwise((below, pile.images, above))) and (below < above).any()
    assert np.array_equal(below[2], tree_max(pile.images[2]))
    with pytest.raises(UserError, match="did you mean tree_m"):
        make_inputs(pile, ("tree_mix",))

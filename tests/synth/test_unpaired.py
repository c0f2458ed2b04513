"""Translation without pairs: closed forms of its losses, and the traps, each of which must be seen."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom
from PIL import Image
from tiny import UNPAIRED, squares

from synth.core.checks import IGNORE, UserError
from synth.core.config import load_config
from synth.core.space import labels_to_onehot
from synth.formats import load_masks
from synth.gan.cycle import binarise, draw_places, least_squares_fooling, least_squares_loss, patch_nce
from synth.gan.unpaired.batches import Unpaired, edit_mask, frames_of, unpaired_batches
from synth.gan.unpaired.health import (
    Health,
    alike,
    class_statistics,
    enforce_health,
    find_exchange,
    other_rows,
    place,
    smooth,
)
from synth.gan.unpaired.label import LabelPipeline
from synth.gan.unpaired.networks import Labeller, MaskVae
from synth.gan.unpaired.recipe import Translators, UnpairedRecipe, told_of
from synth.gan.unpaired.settings import UnpairedHealth, UnpairedSettings

PAIRS = make_phantom(8, size=32, n_groups=8)


def settings_of(**changes: object) -> UnpairedSettings:
    """Returns the tiny settings with top-level changes."""
    return load_config(UnpairedSettings, {**UNPAIRED, **changes})


def data_of() -> Unpaired:
    """Returns phantom images, and the masks of other phantoms."""
    arrays = PAIRS.arrays(32).without_masks()
    return Unpaired(arrays, make_phantom(6, size=32, seed=9).arrays(32).masks, 2,
                    frames_of(arrays.images, keep_in="none"))


# Losses ---------------------------------------------------------------------------------------------------------------

def test_least_squares_has_its_closed_form() -> None:
    ones, zeros = torch.ones(2, 1, 3, 3), torch.zeros(2, 1, 3, 3)
    assert least_squares_loss(ones, zeros) == 0 and least_squares_loss(zeros, ones) == 1
    assert least_squares_fooling(ones) == 0 and least_squares_fooling(3 * ones) == 2


def test_patch_nce_has_its_closed_form() -> None:
    basis = torch.eye(16).view(1, 16, 4, 4).repeat(2, 1, 1, 1)  # every place orthogonal to every other
    places = draw_places(2, (4, 4), n_places=8)
    assert all(len(set(row.tolist())) == 8 for row in places) and places.max() < 16
    found = patch_nce(3 * basis, basis, places, temperature=0.5)
    assert found == pytest.approx(math.log(1 + 7 * math.exp(-1 / 0.5)), rel=1e-5)
    assert patch_nce(torch.ones_like(basis), basis + 1, places, temperature=0.5) == pytest.approx(math.log(8), rel=1e-5)
    assert patch_nce(basis, basis.roll(1, 1), places, temperature=0.5) > found + 0.5, "another place's features"
    query, key = basis.clone().requires_grad_(), (basis + 0.1).requires_grad_()
    patch_nce(query, key, places, temperature=0.5).backward()
    assert query.grad.abs().sum() > 0 and key.grad is None


# Hidden texture -------------------------------------------------------------------------------------------------------

def test_a_binarised_mask_says_one_class_a_pixel_and_passes_the_gradient_of_its_probability() -> None:
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hard = binarise(logits, noise=0.0)
    assert torch.equal(hard.argmax(1), logits.argmax(1)) and set(hard.unique().tolist()) == {0.0, 1.0}
    weights = torch.randn(2, 3, 8, 8)
    mine, = torch.autograd.grad((weights * hard).sum(), logits)
    soft, = torch.autograd.grad((weights * logits.softmax(1)).sum(), logits)
    assert torch.allclose(mine, soft, atol=1e-6) and mine.abs().sum() > 0


def test_noise_drowns_what_is_undecided_and_leaves_what_is_sure() -> None:
    torch.manual_seed(0)
    sure, open_ = torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16)
    sure[:, 1] = 8
    assert (binarise(sure, noise=0.5)[:, 1] == 1).all()
    assert 0.3 < binarise(open_, noise=0.5)[:, 1].mean() < 0.7
    assert not torch.equal(binarise(open_, noise=0.5), binarise(open_, noise=0.5))


def test_an_image_hidden_in_probabilities_does_not_reach_the_one_who_draws() -> None:
    image = torch.rand(1, 1, 8, 8)
    mask = torch.zeros(1, 2, 8, 8)
    mask[:, 1, 2:6, 2:6], mask[:, 0] = 3.0, 1.0
    hidden, frames = mask + 0.2 * torch.cat([image, -image], 1), torch.zeros(1, 1, 8, 8)
    assert not torch.equal(mask.softmax(1), hidden.softmax(1))
    assert torch.equal(told_of(binarise(mask, noise=0.0), frames), told_of(binarise(hidden, noise=0.0), frames))


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_step_draws_from_binarised_noisy_labels(noise: float) -> None:
    settings = settings_of(loss={"noise": noise})
    recipe = UnpairedRecipe(settings, channels=1, n_classes=2)
    net = recipe.nets["translators"]
    for weights in (net.labeller.last.weight, net.labeller.last.bias):
        torch.nn.init.zeros_(weights)  # undecided everywhere
    told: list[torch.Tensor] = []
    net.translator.register_forward_pre_hook(lambda _, given: told.append(given[0].detach()))
    batch = unpaired_batches(data_of(), settings)(0, 0, 1)
    for seed in (0, 1):
        torch.manual_seed(seed)
        net(batch, recipe.nets["mask_judge"])
    first, second = (one[4:, :2] for one in told)  # the labels' half: two classes
    assert set(first.unique().tolist()) <= {0.0, 1.0}, "probabilities reach the translator"
    assert torch.equal(first, second) == (noise == 0)
    assert torch.equal(told[0][:4, :2], labels_to_onehot(batch["masks"], 2)), "masks are told as they are"


def test_the_cycle_teaches_the_labeller_through_the_mask() -> None:
    settings = settings_of()
    net, batch = Translators(settings, channels=1, n_classes=2), unpaired_batches(data_of(), settings)(0, 0, 1)
    done = net(batch, MaskVae(2, 32, 4, (8, 16)))
    (done.again - batch["images"]).abs().mean().backward()
    assert net.labeller.last.weight.grad.abs().sum() > 0


def test_smoothing_keeps_shapes_and_ends_texture() -> None:
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((y - 16) ** 2 + (x - 16) ** 2 < 100).long()[None]
    assert (smooth(disc, n_classes=2) == disc).float().mean() > 0.98
    board = ((y + x) % 2)[None]
    assert (smooth(board, n_classes=2)[:, 4:-4, 4:-4] == board[:, 4:-4, 4:-4]).float().mean() < 0.6
    rows = other_rows(7, seed=0)
    assert sorted(rows) == list(range(7)) and all(a != b for a, b in enumerate(rows))


# Who judges masks -----------------------------------------------------------------------------------------------------

def test_energy_is_what_the_formula_says() -> None:
    judge = MaskVae(2, 32, 4, (8, 16), beta=0.5).eval()
    masks = labels_to_onehot(torch.from_numpy(data_of().masks.astype(np.int64)), 2)
    mean, logvar = judge.encode(masks)
    entropy = torch.nn.functional.cross_entropy(judge.decode(mean), masks.argmax(1), reduction="none").mean((1, 2))
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean(1)
    assert torch.allclose(judge(masks), entropy + 0.5 * kl, atol=1e-5)


def test_a_judge_learns_to_tell_masks_from_what_is_none() -> None:
    settings = settings_of(shape={"widths": [8, 16], "n_code": 4, "margin": 0.5})
    recipe, data = UnpairedRecipe(settings, channels=1, n_classes=2), data_of()
    batches = unpaired_batches(data, settings)
    torch.manual_seed(0)
    for step in range(60):
        recipe.step(batches(step, 0, 1), 0.0)
    judge = recipe.nets["mask_judge"].eval()
    known = torch.from_numpy(data.masks.astype(np.int64))
    noise = torch.randint(2, known.shape)
    with torch.no_grad():
        energy = {name: float(judge(labels_to_onehot(m, 2)).mean()) for name, m in
                  (("known", known), ("inverted", 1 - known), ("noise", noise))}
    assert energy["known"] < 0.5 * min(energy["inverted"], energy["noise"])


def test_calibration_begins_neutral_then_acts_and_lets_no_gradient_through_the_judge() -> None:
    labeller, judge = Labeller(1, 2, 32, 4, (8, 8, 16)), MaskVae(2, 32, 4, (8, 16))
    images, frames = torch.randn(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    assert torch.allclose(labeller(images, frames, judge), labeller(images, frames))
    torch.nn.init.normal_(labeller.calibration[-1].weight)
    second = labeller(images, frames, judge)
    assert (second - labeller(images, frames)).abs().mean() > 1e-3
    second.sum().backward()
    assert labeller.calibration[0].weight.grad.abs().sum() > 0 and all(p.grad is None for p in judge.parameters())


def test_the_frame_is_background() -> None:
    frames = torch.zeros(1, 1, 32, 32)
    frames[..., :5] = 1
    labeller = Labeller(1, 3, 32, 4, (8, 8, 16))
    torch.nn.init.constant_(labeller.last.bias, 0)
    labeller.last.bias.data[2] = 50
    labels = labeller(torch.randn(1, 1, 32, 32), frames).argmax(1)
    assert (labels[..., :5] == 0).all() and (labels[..., 5:] == 2).all()


def test_an_image_weighs_by_its_labels_energy() -> None:
    labelling = LabelPipeline(Labeller(1, 2, 32, 4, (8, 8, 16)), MaskVae(2, 32, 4, (8, 16)), energy=0.2, tau=0.5)
    weights = labelling.weigh(torch.tensor([0.1, 0.2, 0.3]))
    assert torch.allclose(weights, torch.tensor([1.0, 1.0, math.exp(-1.0)]))


# Traps of the masks ---------------------------------------------------------------------------------------------------

def square(top: int, left: int, side: int = 10) -> torch.Tensor:
    """Returns labels (1, 32, 32) with one square."""
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, top:top + side, left:left + side] = 1
    return labels


def test_statistics_of_classes_are_areas_borders_and_centres() -> None:
    found = class_statistics(square(0, 0, 16), n_classes=3)
    assert found[1].tolist() == pytest.approx([0.25, 31 / 124, 7.5 / 31, 7.5 / 31])
    assert found[2].tolist() == [0, 0, 0.5, 0.5] and found[0, 0] == 0.75
    mask = square(0, 0, 16)
    mask[:, 16:] = IGNORE
    assert class_statistics(mask, n_classes=2)[:, 0].tolist() == [0.25, 0.25]


def test_an_inverted_labeller_is_seen_whether_foreground_is_bright_or_dark() -> None:
    masks = torch.cat([square(8, 9), square(12, 11, 9), square(10, 14)])
    ours = class_statistics(1 - masks, n_classes=2)
    far, exchange, near = find_exchange(ours, class_statistics(masks, n_classes=2))
    assert exchange == (1, 0) and near == pytest.approx(0, abs=1e-9) and far > 0.2
    assert find_exchange(class_statistics(masks.roll(2, 1), n_classes=2), class_statistics(masks, n_classes=2))[
        1] == (0, 1)
    left_right = torch.zeros(1, 32, 32, dtype=torch.long)
    left_right[:, 8:24, 4:12], left_right[:, 8:24, 20:28] = 1, 2
    swapped = torch.tensor([0, 2, 1])[left_right]
    assert find_exchange(*(class_statistics(m, n_classes=3) for m in (swapped, left_right)))[1] == (0, 2, 1)


def healthy() -> Health:
    """Returns the health of a fit that nothing is wrong with."""
    return Health(0.02, (0, 1), 0.02, (0.7, 0.3), (0.7, 0.3), (1.0, 0.0), (1.0, 0.0), 0.5, 0.5, 0.7, 0.7, 0.1, 0.3,
                  0.1, 0.33, 1.0, 0.2, 0.2, 0.9, 0.5)


def test_inverted_or_equal_labels_are_refused() -> None:
    limits, classes = UnpairedHealth(), ("background", "lesion")
    enforce_health(healthy(), limits, classes)
    inverted = replace(healthy(), exchanged=(1, 0), distance=0.4, exchanged_distance=0.1)
    with pytest.raises(UserError, match="inverted: what it calls lesion has the area and place of background"):
        enforce_health(inverted, limits, classes)
    enforce_health(inverted, limits.model_copy(update={"swap_margin": 0.5}), classes)
    with pytest.raises(UserError, match="the labeller does not look"):
        enforce_health(replace(healthy(), alike_labels=0.95), limits, classes)


@pytest.mark.parametrize(("change", "words"), [({"distance": 0.5}, "far from the masks"),
                                               ({"place_labels": 0.9}, "bias of place"), ({"hidden": 1.5}, "hidden")])
def test_what_a_person_should_look_at_is_warned_of(change: dict[str, float], words: str,
                                                   caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        enforce_health(healthy(), UnpairedHealth(), ("background", "lesion"))
        assert not caplog.records
        enforce_health(replace(healthy(), **change), UnpairedHealth(), ("background", "lesion"))
    assert words in caplog.text


def test_bias_of_place_is_measured_and_a_random_layout_moves_masks() -> None:
    masks = torch.cat([square(i, j) for i, j in ((8, 8), (12, 10), (10, 14), (9, 11), (11, 11))])
    assert place(square(10, 11).expand(5, -1, -1), masks) > place(masks, masks) + 0.05, "a fixed guess fits its like"
    assert place(square(0, 0).expand(5, -1, -1), masks) < 0.2
    assert alike(masks[:1].expand(5, -1, -1)) == 1 and alike(masks) < 0.8
    mask = masks[0].numpy().astype(np.uint8)
    still = settings_of(still_share=1.0)
    assert np.array_equal(edit_mask(mask, still, rng=torch.Generator().manual_seed(0)), mask)
    moving = settings_of(still_share=0.0, layout={"shift": 0.4, "recombine": 0.0})
    moved = np.stack([edit_mask(mask, moving, rng=torch.Generator().manual_seed(i)) for i in range(24)])
    assert place(torch.from_numpy(moved.astype(np.int64)), torch.from_numpy(moved.astype(np.int64))) < 0.6


# A folder of masks ----------------------------------------------------------------------------------------------------

def save(folder: Path, **masks: np.ndarray) -> Path:
    """Returns the folder, with masks (H, W) as NAME.png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, mask in masks.items():
        Image.fromarray(np.asarray(mask, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_masks_are_read_without_images_and_their_classes_joined(tmp_path: Path) -> None:
    mask = np.zeros((20, 24), np.uint8)
    mask[4:9, 4:9], mask[12:15, 2:20] = 1, 2
    save(tmp_path / "a" / "masks", one=mask, two=mask.T)
    found = load_masks(tmp_path / "a")
    assert len(found) == 2 and found.ids == ("one", "two") and found.classes == ("background", "class_1", "class_2")
    assert found.arrays(32).shape == (2, 32, 32) and np.array_equal(found[0], mask)
    joined = load_masks(tmp_path / "a" / "masks", mask_map="0:0,1:1,2:1")
    assert joined.classes == ("background", "class_1") and np.array_equal(joined[0], mask > 0)
    assert len(joined.select([1])) == 1
    (tmp_path / "a" / "dataset.json").write_text('{"classes": ["background", "disc", "cup"]}')
    assert load_masks(tmp_path / "a").classes == ("background", "disc", "cup")


@pytest.mark.parametrize(("value", "match"), [(255, "mask_map='0:0,255:1'"), (0, "no foreground anywhere"),
                                              (200, "outside the classes")])
def test_masks_that_are_none_are_refused(tmp_path: Path, value: int, match: str) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = value
    with pytest.raises(UserError, match=match):
        load_masks(save(tmp_path / "m", one=mask))


def test_folders_without_masks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_masks(tmp_path / "none")
    with pytest.raises(UserError, match="no masks found"):
        load_masks(save(tmp_path / "empty"))
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(save(tmp_path / "j") / "one.jpg")
    with pytest.raises(UserError, match="masks are PNG"):
        load_masks(tmp_path / "j")


def test_images_and_masks_come_in_orders_of_their_own_and_flip_as_allowed() -> None:
    data, settings = data_of(), settings_of(batch_size=8)
    batch = unpaired_batches(data, settings)(0, 0, 1)
    assert batch["images"].shape == (8, 1, 32, 32) and batch["told"].shape == (8, 4, 32, 32)
    again = unpaired_batches(data, settings)(0, 0, 1)
    assert all(torch.equal(batch[k], again[k]) for k in batch)
    framed = Unpaired(data.images, data.masks, 2, np.ones((8, 32, 32), bool))
    told = unpaired_batches(framed, settings)(0, 0, 1)
    assert torch.equal(told["told"][:, -1] > 0, told["masks"] == 0), "a mask lies before the frame"
    plain = {tuple(i.ravel().tolist()) for i in batch["images"].numpy()}
    both = unpaired_batches(data, settings_of(batch_size=8, layout={"flip": "both", "recombine": 0.0}))(0, 0, 1)
    assert {tuple(i.ravel().tolist()) for i in both["images"].numpy()} != plain
    assert frames_of(squares(2).arrays(32).images, keep_in="none").sum() == 0

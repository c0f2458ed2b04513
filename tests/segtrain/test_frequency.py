"""Changes of amplitudes in training: what they leave alone, where their prior comes from, FPGM, and alignment."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scenes import PAIRS, SETTINGS, changed, make_scene, named_rngs, perturbed, run, same, weights
from stages import stage

import segtrain
from segtrain.method import load_method, method_text
from segtrain.priors import find_prior, wanted_prior, with_use
from segtrain.settings import AugmentSettings, SegmentSettings
from segtrain.transforms.spectral import AsFarSettings, Beside, FrequencySettings, SpectrumSettings, partners
from segtrain.transforms.warps import Stay
from segtrain.views.spectral import SPECTRAL
from synth.core.checks import UserError
from synth.core.config import load_config
from synth.core.pairs import ImageSet, memory_set
from synth.formats import write_folder
from synth.spectral import FrequencyPrior
from synth.spectral.grid import grid_of, ring_means

OFF = {"frequency": {"strength": (0, 0)}, "as_far": {"like": {"strength": (0, 0)}}, "fda": {"p": 0},
       "amplitude_mix": {"share": (0, 0)}, "reweight": {"log_gain": 0}, "one_over_f": {"p": 0}}
CONFIG = {"size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "model": {"name": "tiny", "channels": [8, 16]},
          "loop": {"steps": 2}}


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the peak signal to noise ratio of each image, (B,), dB, of unit images (B, C, H, W)."""
    return 10 * torch.log10(4 / (a.double() - b.double()).square().mean((1, 2, 3)).clamp_min(1e-30))


def blind(n: int = 6, *, seed: int = 9) -> ImageSet:
    """Returns unlabelled phantom images of other patients."""
    from phantom import make_phantom

    pairs = make_phantom(n, size=32, n_groups=3, seed=seed)
    return memory_set([p.image for p in pairs], None, pairs.info, ids=[f"u{i}" for i in range(n)],
                      groups=[f"pile_{g}" for g in pairs.groups])


@pytest.mark.parametrize("name", sorted(SPECTRAL))
def test_amplitudes_change_and_pixels_stay(name: str) -> None:
    scene = make_scene(size=32)
    made, warp = perturbed(name, scene)
    assert isinstance(warp, Stay) and made.shape == scene.clean.shape
    assert (psnr(made, scene.clean) < 60).any(), "it does something"
    off, _ = perturbed(name, scene, **OFF[name])
    assert (psnr(off, scene.clean) > 100).all(), "and nothing at strength 0"


@pytest.mark.parametrize("name", ["frequency", "as_far", "reweight", "one_over_f"])
def test_a_row_of_a_view_does_not_depend_on_its_batch(name: str) -> None:
    scene = make_scene(size=32)
    member, whole = SPECTRAL[name](), perturbed(name, scene)[0]
    alone = member(scene.clean[1:2], scene.rngs("test")[1:2], scene)[0]
    assert torch.allclose(whole[1:2], alone, atol=1e-5)


def test_partners_are_other_images_of_the_named_set() -> None:
    labelled, unlabelled = (torch.arange(n).float().view(n, 1, 1, 1) + first for n, first in ((3, 0), (5, 100)))
    beside = Beside(None, labelled, unlabelled)
    seen = set()
    for k in range(40):
        rows = partners(named_rngs(5, f"draw {k}"), beside, "unlabelled").flatten() - 100
        assert (rows != torch.arange(5)).all() and (rows >= 0).all()
        seen |= {tuple(rows.tolist())}
    assert len(seen) > 20
    assert (partners(named_rngs(3), beside, "labelled") < 3).all()
    with pytest.raises(UserError, match="partner: labelled"):
        partners(named_rngs(3), Beside(), "unlabelled")


@pytest.mark.parametrize("shape", ["either", "tilt"])
def test_the_control_is_as_far_from_the_image_as_what_it_controls(shape: str) -> None:
    scene = make_scene(n=4, size=32)
    like = FrequencySettings(strength=(0.3, 0.6))
    there = like.of(scene.clean, scene.rngs("c"), scene.beside())
    made = AsFarSettings(like=like, shape=shape).of(scene.clean, scene.rngs("c"), scene.beside())
    assert torch.allclose(psnr(made, scene.clean), psnr(there, scene.clean), atol=0.5)
    assert not torch.allclose(made, there, atol=1e-2)


def test_labelled_images_are_augmented_and_their_labels_never_asked() -> None:
    still = AugmentSettings.model_validate({"geometry": {"flip_horizontal": False, "p": 0},
                                            "intensity": {"p_colour": 0, "p_blur": 0, "p_noise": 0, "p_low_res": 0}})
    scene, untouched = make_scene(size=32), make_scene(size=32)
    labels = scene.supervised.labels.clone()
    scene.augment(still.model_copy(update={"spectrum": load_config(SpectrumSettings, {"frequency": {}, "fda": {}})}))
    untouched.augment(still)
    assert torch.equal(untouched.supervised.images, make_scene(size=32).supervised.images)
    assert torch.equal(scene.supervised.labels, labels)
    assert not torch.allclose(scene.supervised.images, untouched.supervised.images, atol=1e-2)


def test_a_run_without_changes_of_amplitudes_is_known_as_before() -> None:
    on = SETTINGS.model_copy(update={"augment": AugmentSettings(spectrum=SpectrumSettings(
        frequency=FrequencySettings()))})
    found = [s.identity(synthetic=False, unlabelled=False)["augment"] for s in (SETTINGS, on)]
    assert "spectrum" not in found[0] and found[1]["spectrum"]["frequency"]["strength"] == [0.0, 0.15]


# FPGM -----------------------------------------------------------------------------------------------------------------

def ring_shape(images: torch.Tensor) -> torch.Tensor:
    """Returns the radial mean amplitudes (B, R) of images (B, 1, S, S), each row's sum 1, without the mean."""
    amplitude = torch.fft.rfft2((images.double() + 1) / 2, norm="ortho").abs()
    rings = ring_means(amplitude, grid_of(tuple(images.shape[-2:]), images.shape[-1] // 2))[:, 0, 1:]
    return rings / rings.sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["fpgm", "fpgm_coded"])
def test_fpgm_shows_the_weak_view_drawn_to_the_spectrum_of_labelled_outlines(name: str) -> None:
    recipe, scene = stage(name)
    assert len(scene.shown) == 4 and recipe.prior.settings.kind == "edge_raw"
    view = scene.shown[3]
    target = recipe.prior.profile()[0, 1:] / recipe.prior.profile()[0, 1:].sum()
    before, after = ((ring_shape(x) - target).abs().sum(1) for x in (scene.clean, view.images))
    assert after.mean() < 0.99 * before.mean(), "fails if the frequency view is off"
    assert torch.equal(view.target.hard, scene.said("student").logits.argmax(1)), "who labels sees the weak view"
    assert isinstance(view.warp.warps[0], Stay)


@pytest.mark.parametrize("name", ["fpgm", "fpgm_coded"])
def test_fpgm_learns_from_that_view_and_at_weight_0_is_supervised(name: str) -> None:
    full = load_method(name)
    tau = [view.model_copy(update={"target": full.views[3].target[:1]}) for view in full.views]
    spec = [view.model_dump(mode="json") for view in tau]
    with_it, _ = run(changed(name, views=spec), 2)
    without, _ = run(changed(name, views=spec[:3]), 2)
    assert not same(weights(with_it), weights(without))
    off, _ = run(changed(name, lambda_u={"max": 0.0}), 2)
    assert same(weights(off), weights(run("supervised", 2, unlabelled=False)[0]))
    assert [view.weight for view in full.views] == [0.25, 0.25, 0.5, 0.5] and full.phases == ()


# The prior of a run ---------------------------------------------------------------------------------------------------

def test_the_prior_is_fitted_on_labelled_training_pairs_alone(tmp_path: Path) -> None:
    hashes = []
    for seed in (9, 10):
        out = tmp_path / str(seed)
        segtrain.fit(CONFIG, PAIRS, unlabelled=blind(seed=seed), method="fpgm", out=out)
        hashes.append(FrequencyPrior.from_pretrained(out / "prior").content_hash())
    expected = FrequencyPrior.fit(PAIRS, kind="edge_raw", size=32)
    assert hashes == [expected.content_hash()] * 2
    assert FrequencyPrior.from_pretrained(tmp_path / "9/prior").seen.n_images == len(PAIRS)
    again = segtrain.fit(CONFIG, PAIRS, unlabelled=blind(seed=9), method="fpgm", out=tmp_path / "9")
    assert again.result.steps == 2
    other = FrequencyPrior.fit(PAIRS.select(range(3)), size=32)
    with pytest.raises(UserError, match="another run|holds"):
        segtrain.fit(CONFIG, PAIRS, unlabelled=blind(seed=9), method="fpgm", prior=other, out=tmp_path / "9")


def test_pairs_that_calibrate_teach_no_prior(tmp_path: Path) -> None:
    method = changed("supervised", held_out_share=0.34).model_copy(update={"name": "calibrated"})
    path = tmp_path / "m.yaml"
    path.write_text(method_text(method))
    config = {**CONFIG, "augment": {"spectrum": {"frequency": {}}}}
    segtrain.fit(config, PAIRS, method=path, out=tmp_path / "run")
    seen = FrequencyPrior.from_pretrained(tmp_path / "run/prior").seen
    assert seen.n_images < len(PAIRS) and set(seen.groups) < set(PAIRS.groups)


def test_a_given_prior_that_nothing_asks_for_augments_the_labelled_images(tmp_path: Path) -> None:
    prior = FrequencyPrior.fit(PAIRS, kind="contour_only", size=32)
    prior.save_pretrained(tmp_path / "given")
    used = with_use(SETTINGS, load_method("supervised"), tmp_path / "given")
    assert used.augment.spectrum.frequency == FrequencySettings()
    assert with_use(SETTINGS, load_method("fpgm"), prior) == SETTINGS == with_use(SETTINGS, load_method("cps"), None)
    made = segtrain.fit(CONFIG, PAIRS, method="supervised", prior=tmp_path / "given", out=tmp_path / "run")
    plain = segtrain.fit(CONFIG, PAIRS, method="supervised", out=tmp_path / "plain")
    assert made.content_hash() != plain.content_hash()
    assert FrequencyPrior.from_pretrained(tmp_path / "run/prior").content_hash() == prior.content_hash()
    assert not (tmp_path / "plain/prior").exists()


@pytest.mark.parametrize(("changes", "held_out", "match"), [
    ({"size": 64, "bands": 8}, (), "size=32"),
    ({"size": None, "bands": 8}, (), "native images.*size=32"),
    ({"size": 32}, "own", "held out"),
])
def test_a_prior_that_does_not_fit_is_refused(changes: dict, held_out: object, match: str) -> None:
    groups = PAIRS.groups[:1] if held_out else ()
    prior = FrequencyPrior.fit(PAIRS, **changes)
    with pytest.raises(UserError, match=match):
        find_prior(SETTINGS, load_method("fpgm"), PAIRS, given=prior, held_out=groups)


def test_a_prior_of_other_channels_and_two_kinds_of_prior_are_refused() -> None:
    from phantom import make_phantom

    colour = FrequencyPrior.fit(make_phantom(3, size=32, channels=3), size=32)
    with pytest.raises(UserError, match="channels=grey"):
        find_prior(SETTINGS, load_method("fpgm"), PAIRS, given=colour)
    both = load_config(SegmentSettings, SETTINGS, ["augment.spectrum={frequency: {kind: whole}}"])
    with pytest.raises(UserError, match="one frequency prior"):
        wanted_prior(both, load_method("fpgm"))
    with pytest.raises(UserError, match="no such folder|no frequency prior"):
        find_prior(SETTINGS, load_method("fpgm"), PAIRS, given="nowhere")


def test_amplitudes_of_unlabelled_images_are_lent_to_the_supervised_arm(tmp_path: Path) -> None:
    config = {**CONFIG, "augment": {"spectrum": {"fda": {}}}}
    with pytest.raises(UserError, match="partner: labelled"):
        segtrain.fit(config, PAIRS, out=tmp_path / "none")
    found = [segtrain.fit(config, PAIRS, unlabelled=blind(seed=s), out=tmp_path / str(s)) for s in (9, 10)]
    assert found[0].content_hash() != found[1].content_hash()
    own = {**CONFIG, "augment": {"spectrum": {"fda": {"partner": "labelled"}}}}
    assert segtrain.fit(own, PAIRS, out=tmp_path / "own").result.counts["images_seen"] == 8


# Alignment ------------------------------------------------------------------------------------------------------------

def test_predictions_of_aligned_images_keep_their_place(tmp_path: Path) -> None:
    segtrain.fit(CONFIG, PAIRS, out=tmp_path / "run")
    prior = FrequencyPrior.fit(PAIRS, kind="whole", size=32)
    prior.save_pretrained(tmp_path / "prior")
    wide = memory_set([np.repeat(p.image, 2, axis=1) for p in PAIRS], None, PAIRS.info, ids=PAIRS.ids,
                      groups=PAIRS.groups)
    found = {}
    write_folder(PAIRS, tmp_path / "training")
    for name, options in {"plain": {}, "off": {"align": prior, "strength": 0.0}, "on": {"align": tmp_path / "prior"},
                          "images": {"align": tmp_path / "training"}}.items():
        files = segtrain.predict(tmp_path / "run", wide, out=tmp_path / name, **options)
        found[name] = [np.asarray(Image.open(f)) for f in files]
    assert all(m.shape == (32, 64) for m in found["on"])
    assert np.array_equal(found["on"], found["images"]), "a folder of the training images does as well as their prior"
    assert np.mean(np.stack(found["plain"]) != np.stack(found["off"])) < 1e-3
    with pytest.raises(UserError, match="kind='whole'"):
        segtrain.predict(tmp_path / "run", wide, out=tmp_path / "edge", align=FrequencyPrior.fit(PAIRS, size=32))
    with pytest.raises(UserError, match="strength"):
        segtrain.predict(tmp_path / "run", wide, out=tmp_path / "far", align=prior, strength=2.0)


def test_alignment_undoes_what_another_camera_did(tmp_path: Path) -> None:
    from synth.core.space import pixels_to_unit, unit_to_pixels
    from synth.spectral import align_images, low_pass

    turned = [(PAIRS.info.intensity_range[1] - p.image).astype(p.image.dtype) for p in PAIRS]  # no dark air, no frame
    bright = memory_set(turned, [p.mask for p in PAIRS], PAIRS.info, ids=PAIRS.ids, groups=PAIRS.groups)
    segmenter = segtrain.fit(CONFIG, bright, out=tmp_path / "run")
    unit = pixels_to_unit(bright.arrays(32).images, PAIRS.info.intensity_range)
    blurred = low_pass(unit, sigma_px=0.5)
    pixels = unit_to_pixels(blurred, PAIRS.info.intensity_range, PAIRS.info.dtype)[:, 0]
    there = memory_set(list(pixels), None, PAIRS.info, ids=PAIRS.ids, groups=PAIRS.groups)
    alignment = segmenter.fit_alignment(there, FrequencyPrior.fit(bright, kind="whole", size=32))
    assert (psnr(align_images(blurred, alignment), unit) > psnr(blurred, unit) + 3).all()
    gap = [(segmenter.predict(x, align=a) - segmenter.predict(unit)).abs().mean()
           for x, a in ((blurred, None), (blurred, alignment))]
    assert gap[1] < gap[0] and math.isfinite(float(gap[0]))


def test_a_comparison_knows_runs_by_the_prior_they_use(tmp_path: Path) -> None:
    from segtrain.compare.arms import arm_named
    from segtrain.compare.prepare import prepare
    from segtrain.compare.runs import Bench, Job
    from segtrain.compare.settings import load_settings

    FrequencyPrior.fit(PAIRS, size=32).save_pretrained(tmp_path / "prior")
    folders = {}
    for name, given in (("own", []), ("given", [f"data.prior={tmp_path}/prior"])):
        settings = load_settings(None, ["size=32", "n_labelled=3", "draws=1", "split.test_share=0.3", *given])
        bench = Bench(settings, prepare(settings, PAIRS), tmp_path / "out")
        for arm in ("real", "real+unlabelled:fpgm"):
            folders[name, arm] = bench.segmenter_folder(Job(arm_named(arm), bench.parts.draws[0]))
    assert folders["own", "real"] == folders["given", "real"], "it uses none"
    assert folders["own", "real+unlabelled:fpgm"] != folders["given", "real+unlabelled:fpgm"]

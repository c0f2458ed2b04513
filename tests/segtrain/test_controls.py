"""The controls of a comparison, and the supply in it: what each arm adds, cached and counted like the others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom

import segtrain
from segtrain.compare.arms import ENGINES, arm_named, choose_arms, engines_of
from segtrain.compare.making import shuffle_masks
from segtrain.compare.prepare import prepare
from segtrain.compare.runs import Bench
from segtrain.compare.settings import load_settings
from segtrain.report import Report
from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.draw import draw
from synth.formats import read_shards
from synth.generator import Generator

STEPS, BATCH = 3, 4
CONTROLS = ("real+affine", "real+inpaint_shuffled")
SETTINGS = {
    "size": 32, "n_labelled": 4, "draws": 1, "resamples": 199, "synthetic": {"n": 4}, "gates": {"faithfulness": 0.0},
    "segment": {"batch_size": BATCH, "model": {"name": "tiny", "channels": [4, 8, 8]},
                "loop": {"steps": STEPS, "log_every": 1}, "optim": {"lr": 0.01}},
    "inpaint": {"autoencoder": {"kind": "kl", "widths": [8, 8, 8], "batch_size": 4, "perceptual_weight": 0,
                                "adversarial_weight": 0, "loop": {"steps": 2}},
                "health": {"max_border_error": 99, "max_gradient_error": 99, "min_latent_std": 0, "max_latent_std": 99},
                "denoiser": {"widths": [32, 32], "attention": [False, True], "layers": 1, "batch_size": 4, "n_views": 1,
                             "labels": False, "loop": {"steps": 2}},
                "sampler": {"n_steps": 2, "margin_cells": [1, 1]}},
    "draw": {"shard_size": 4, "batch_size": 4},
}
CONTROLLED = {**SETTINGS, "arms": ["real", "real+inpaint", *CONTROLS],
              "draw": {"shard_size": 4, "batch_size": 4, "supply": {"oversample": 2}}}


def pairs() -> PairSet:
    """Returns 18 pairs of 6 patients."""
    return make_phantom(18, size=32, n_groups=6)


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Returns the report of the painted arm, chosen by two models, and of its controls."""
    return segtrain.compare(CONTROLLED, pairs(), out=tmp_path_factory.mktemp("controls") / "out")


def made(report: Report, kind: str, split: str = "train") -> PairSet:
    """Returns the pairs of one kind."""
    facts = next(f for f in report.index.made if f.kind == kind)
    return read_shards(report.out / facts.folder, split)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_no_mask_stays_with_its_own_image(n: int, tmp_path: Path) -> None:
    before = draw(None, make_phantom(8, size=32, n_groups=4), n=n, size=32, out=tmp_path / "made")
    for seed in range(5):
        after = shuffle_masks(before, seed=seed)
        hashes = [pair.mask.tobytes() for pair in before]
        assert len(set(hashes)) == n and sorted(pair.mask.tobytes() for pair in after) == sorted(hashes)
        for old, new in zip(before, after, strict=True):
            assert np.array_equal(old.image, new.image) and not np.array_equal(old.mask, new.mask)
            donor = before[hashes.index(new.mask.tobytes())]
            assert set(new.made.parents) == {*old.made.parents, *donor.made.parents}
            assert set(new.made.parent_groups) == {*old.made.parent_groups, *donor.made.parent_groups}
    again = shuffle_masks(before, seed=4)
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(after, again, strict=True))


def test_the_controls_ran_on_the_same_budget(controlled: Report) -> None:
    assert [arm.name for arm in controlled.arms] == ["real", "real+inpaint", *CONTROLS]
    assert {(a.steps, a.images_seen) for a in controlled.arms} == {(STEPS, STEPS * BATCH)}
    assert [(c.arm, c.baseline) for c in controlled.comparisons] == [
        ("real+inpaint", "real"), *((name, "real") for name in CONTROLS), ("real+inpaint", "real+affine")]
    assert set(controlled.gates) == {"inpaint", "affine", "inpaint_shuffled"}


def test_the_shuffled_pairs_are_the_painted_ones(controlled: Report) -> None:
    painted, shuffled = made(controlled, "inpaint"), made(controlled, "inpaint_shuffled")
    assert [i.removeprefix("shuffled-") for i in shuffled.ids] == list(painted.ids)
    for a, b in zip(painted, shuffled, strict=True):
        assert np.array_equal(a.image, b.image) and not np.array_equal(a.mask, b.mask)


def test_the_sources_are_those_that_were_painted_on(controlled: Report) -> None:
    painted, sources = made(controlled, "inpaint"), {p.id: p for p in made(controlled, "affine")}
    shared = [(p, sources[name]) for p in painted if (name := p.id.replace("inpaint", "source")) in sources]
    for a, b in shared:
        keep = (b.mask > 0) & (a.mask != 255)
        assert np.array_equal(a.image[keep], b.image[keep])


def test_two_models_chose_and_the_others_are_recorded(controlled: Report) -> None:
    rejected = [i for i in made(controlled, "inpaint", "rejected").items if i.made.reason == "supply"]
    assert controlled.gates["inpaint"].kept == 4 and controlled.gates["inpaint"].reasons["supply"] == len(rejected) == 4
    for item in (*rejected, *made(controlled, "inpaint").items):
        assert {"hardness", "consistency", "faithfulness"} <= set(item.made.scores)
    referee, = (controlled.out / "cache").glob("referee-*")
    model = json.loads((referee / "model" / "config.json").read_text())["model"]
    assert model["name"] == "unet" != CONTROLLED["segment"]["model"]["name"]
    seconds = json.loads((referee / "done.json").read_text())["seconds"]
    tree = json.loads((controlled.out / "report.json").read_text())
    assert controlled.index.referee_seconds == seconds > 0 and tree["referee_seconds"] == round(seconds, 1)


def test_running_again_trains_nothing(controlled: Report) -> None:
    def stamps() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for name in ("*/data/*", "*/done.json", "*/scores-*")
                for p in (controlled.out / "cache").glob(name)}

    before = stamps()
    segtrain.compare(CONTROLLED, pairs(), out=controlled.out)
    assert len(before) > 10 and stamps() == before


def test_the_supply_leaves_the_controls_alone(controlled: Report, tmp_path: Path) -> None:
    """Choosing is the painted arm's alone: whatever it is set to, the control's pairs lie in the same folder."""
    plain = {**SETTINGS, "arms": ["real", "real+affine"]}
    report = segtrain.compare(plain, pairs(), out=tmp_path / "out")
    assert made(report, "affine").where.endswith(Path(made(controlled, "affine").where).name)
    assert report.index.referee_seconds == 0 and not list((tmp_path / "out" / "cache").glob("referee-*"))


def test_the_round_trip_arm_draws_through_the_generator(tmp_path: Path) -> None:
    from synth.diffusion.inpaint import InpaintPipeline

    if InpaintPipeline.roundtrip is Generator.roundtrip:
        pytest.skip("this generator has no round trip yet")
    small = {**SETTINGS, "arms": ["real", "real+affine", "real+roundtrip"]}
    report = segtrain.compare(small, pairs(), out=tmp_path / "out")
    assert len(list((tmp_path / "out" / "cache").glob("painter-*"))) == 1 and report.index.painter_seconds > 0
    for a, b in zip(made(report, "affine"), made(report, "roundtrip"), strict=True):
        keep = (a.mask > 0) & (a.mask < 255)
        assert np.array_equal(a.mask, b.mask) and np.array_equal(a.image[keep], b.image[keep])
        assert not np.array_equal(a.image, b.image)


def test_the_new_arms_parse() -> None:
    settings = load_settings(None, ["arms=[real, real+affine, real+roundtrip, real+inpaint_shuffled]"])
    arms = choose_arms(settings.arms, baseline="real", has_unlabelled=False)
    assert [a.synthetic for a in arms] == [None, "affine", "roundtrip", "inpaint_shuffled"]


@pytest.mark.parametrize(("name", "synthetic", "engines"), [
    ("real", None, ()), ("real+unlabelled", None, ()), ("all", "inpaint", ("inpaint",)),
    ("real+inpaint+translate", "inpaint+translate", ("inpaint", "translate")),
    ("real+roundtrip+inpaint_shuffled", "roundtrip+inpaint_shuffled", ("inpaint",)),
    ("real+translate+unlabelled:bcp", "translate", ("translate",))])
def test_an_arm_is_what_its_name_adds(name: str, synthetic: str | None, engines: tuple[str, ...]) -> None:
    arm = arm_named(name)
    assert (arm.name, arm.synthetic, arm.unlabelled) == (name, synthetic, "unlabelled" in name or name == "all")
    assert arm.method == (name.partition(":")[2] or None) and set(engines) <= set(ENGINES)
    assert engines_of([synthetic] if synthetic else []) == engines


@pytest.mark.parametrize("name", ["real+", "inpaint", "real+inpaint+inpaint", "unlabelled+real", "real+painted", ""])
def test_no_such_arm(name: str) -> None:
    with pytest.raises(UserError, match="no such arm.*real\\+inpaint"):
        arm_named(name)


def test_kinds_share_one_budget(tmp_path: Path) -> None:
    """An arm of two kinds has as many pairs as one of a single kind, half of each, and sees as many images."""
    mixed = {**SETTINGS, "arms": ["real", "real+affine", "real+copypaste", "real+affine+copypaste"]}
    report = segtrain.compare(mixed, pairs(), out=tmp_path / "out")
    each = {kind: list(made(report, kind)) for kind in ("affine", "copypaste", "affine+copypaste")}
    assert [p.id for p in each["affine+copypaste"]] == [p.id for k in ("affine", "copypaste") for p in each[k][:2]]
    assert {(a.steps, a.images_seen) for a in report.arms} == {(STEPS, STEPS * BATCH)}
    assert {a.name: a.n_synthetic for a in report.arms}["real+affine+copypaste"] == (4,)


def test_the_referee_is_another_architecture() -> None:
    tiny = load_settings({"segment": {"model": {"name": "tiny"}}})
    assert tiny.referee["name"] == "unet" and load_settings(None).referee["name"] == "tiny"
    alike = {"segment": {"model": {"name": "tiny"}}, "referee": {"name": "tiny", "channels": [8, 8, 8]}}
    assert load_settings(alike).referee["channels"] == [8, 8, 8]
    with pytest.raises(UserError, match="referee tiny.*judge's architecture"):
        load_settings({**alike, "draw": {"supply": {"oversample": 2}}})
    same = {"segment": {"model": {"name": "unet"}}, "draw": {"supply": {"oversample": 2}}}
    assert load_settings({**same, "referee": {"name": "unet", "encoder": "mobilenet_v2"}}).referee["name"] == "unet"


def test_labels_change_shape_for_translators_alone(tmp_path: Path) -> None:
    """The others show pixels that would not follow; their pairs are those of a comparison without such settings."""
    free = {**SETTINGS, "arms": ["real", "real+affine"], "draw": {**SETTINGS["draw"], "layout": {"grow_px": 3.0}}}
    settings = load_settings(free)
    bench = Bench(settings, prepare(settings, pairs(), None, None), tmp_path)
    grown = {kind: bench.drawing(kind)["layout"]["grow_px"] for kind in ("translate", "inpaint", "copypaste", "affine")}
    assert grown == {"translate": 3.0, "inpaint": 0.0, "copypaste": 0.0, "affine": 0.0}
    plain = load_settings({**SETTINGS, "arms": ["real", "real+affine"]})
    assert Bench(plain, bench.parts, tmp_path).drawing("affine") == bench.drawing("affine")


def test_a_comparison_has_no_shape_model() -> None:
    with pytest.raises(UserError, match="fits no shape model"):
        load_settings({**SETTINGS, "draw": {"layout": {"source": "shape"}}})

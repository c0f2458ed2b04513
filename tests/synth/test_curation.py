"""Curation: FreeMask's rule in closed form, nothing where it is off, a budget, no model that agrees with itself."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import blind_judge, brightness_judge, files_of, half_strict, squares, tiny_pipeline

import synth
from synth.commands.curate import run_curate
from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.core.space import pixels_to_unit
from synth.diffusion.settings import SamplerSettings
from synth.draw import CurateSettings, SelectSettings, class_losses, curate, default_curation
from synth.draw.curated import BUDGET
from synth.draw.curation import LEAST_MEAN, ClassLosses, curate_batch, ignore_unlikely, pixel_loss
from synth.draw.judges import check_strangers
from synth.draw.shards import kept_hash
from synth.formats import load_pairs, read_shards
from synth.gates import Verdict
from synth.generator import CURATED, kept_by
from synth.show import summary

PAIRS = squares(6)
PIPELINE = tiny_pipeline()
CONFIG = {"shard_size": 2, "batch_size": 3, "max_tries": 9}
RULES = CurateSettings(ignore=1.25, min_agreement=0.5)


def soft_referee(images: torch.Tensor) -> torch.Tensor:
    """Returns probabilities (B, 2, H, W) of unit images (B, C, H, W): another threshold than the judge's."""
    p = torch.sigmoid(10 * (images.mean(1) - 0.3))
    return torch.stack([1 - p, p], 1)


def half_blind_judge(images: torch.Tensor) -> torch.Tensor:
    """Returns probabilities (B, 2, H, W) of unit images (B, C, H, W): blind on the left, else as the other judge."""
    found = brightness_judge(images)
    found[..., :12] = blind_judge(images)[..., :12]
    return found


def others() -> PairSet:
    """Returns real pairs of groups that nothing was drawn from."""
    pairs = squares(4, seed=9)
    return PairSet([replace(i, id=f"h{k}", group=f"h{k}") for k, i in enumerate(pairs.items)], pairs.info)


def drawn(out: Path, *, mode: str = "surroundings", n: int = 7, **options: object) -> PairSet:
    """Returns pairs drawn into `out`."""
    settings = SamplerSettings(n_steps=4, margin_cells=(1, 1), mode=mode)
    made = synth.draw(tiny_pipeline(sampler=settings), PAIRS, n=n, seed=3, out=out, config=CONFIG, **options)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of seven drawn pairs."""
    out = tmp_path_factory.mktemp("curate") / "made"
    drawn(out)
    return out


def test_a_pixel_at_1_24_of_its_class_mean_stays_and_one_at_1_26_goes() -> None:
    losses, labels = ClassLosses((0.2, 0.5), "held out"), torch.tensor([[[0, 0, 1, 1, 255, 1]]])
    times = torch.tensor([1.24, 1.26, 1.24, 1.26, 9.0, 0.1])
    means = torch.tensor([0.2, 0.2, 0.5, 0.5, 0.5, 0.5])
    own = (-times * means).exp()
    p = torch.where(labels[0] == 1, torch.stack([1 - own, own])[:, None], torch.stack([own, 1 - own])[:, None])[None]
    p = p.reshape(1, 2, 1, 6)
    assert ignore_unlikely(p, labels, losses, factor=1.25).tolist() == [[[0, 255, 1, 255, 255, 1]]]
    assert ignore_unlikely(p, labels, losses, factor=1.2).tolist() == [[[255, 255, 255, 255, 255, 1]]]
    safe = torch.tensor([[[False, True, False, False, False, False]]])
    assert ignore_unlikely(p, labels, losses, factor=1.25, protected=safe).tolist() == [[[0, 0, 1, 255, 255, 1]]]


def test_a_class_that_no_real_image_shows_is_never_ignored_and_a_perfect_judge_ignores_no_sure_pixel() -> None:
    labels = torch.tensor([[[2, 1]]])
    p = torch.full((1, 3, 1, 2), 1e-6)
    losses = ClassLosses((0.1, 0.1, math.inf), "trained")
    assert ignore_unlikely(p, labels, losses, factor=1.25).tolist() == [[[2, 255]]]

    def perfect(images: torch.Tensor) -> torch.Tensor:
        p = (images.mean(1) > 0.5).float()
        return torch.stack([1 - p, p], 1)

    means = class_losses([(perfect, PAIRS)], size=32, of="trained").means
    assert means == (LEAST_MEAN, LEAST_MEAN)
    sure = torch.tensor([0.01, 0.99]).reshape(1, 2, 1, 1)
    assert ignore_unlikely(sure, torch.tensor([[[1]]]), ClassLosses(means, "trained"), factor=1.25).tolist() == [[[1]]]


def test_class_means_are_over_the_pixels_of_all_folds() -> None:
    first, second = PAIRS.select([0, 1]), PAIRS.select([2, 3, 4])
    found = class_losses([(brightness_judge, first), (soft_referee, second)], size=32, of="held out")
    total, n = np.zeros(2), np.zeros(2)
    for predict, pairs in ((brightness_judge, first), (soft_referee, second)):
        for pair in pairs:
            unit = pixels_to_unit(pair.image[None, None], (0, 255))
            labels = torch.from_numpy(pair.mask.astype(int))[None]
            loss = pixel_loss(predict(unit), labels).numpy()
            for c in (0, 1):
                total[c] += loss[labels == c].sum()
                n[c] += (labels == c).sum()
    assert found.means == pytest.approx(np.maximum(total / n, LEAST_MEAN), rel=1e-5)


def test_agreement_and_ignored_share_are_scores_and_reasons_add_up() -> None:
    curation = default_curation(brightness_judge, blind_judge, PAIRS, size=32, settings=RULES)
    unit = pixels_to_unit(np.stack([p.image[None] for p in PAIRS]), (0, 255))
    labels = torch.from_numpy(np.stack([p.mask for p in PAIRS]).astype(np.int64))
    wrong = labels.clone()
    wrong[0, :4] = 1  # what nobody sees there
    verdicts = [Verdict({"a": 1.0}, kept=False, reason="gate"), *[Verdict({}, kept=True, reason="")] * 5]
    found, said = curate_batch(unit, wrong, verdicts, curation, kept=torch.zeros_like(labels, dtype=torch.bool))
    assert (found[0, :4] == 255).all() and said[0].scores["a"] == 1
    assert said[0].scores["ignored"] == pytest.approx(float((found[0] == 255).float().mean()), abs=1e-5)
    assert said[0].reason.startswith("gate; agreement 0.00") and said[1].reason.startswith("agreement 0.00")
    spared, _ = curate_batch(unit, wrong, verdicts, curation, kept=torch.ones_like(labels, dtype=torch.bool))
    assert torch.equal(spared, wrong), "a real image's own pixels keep their labels"


def test_a_pair_that_loses_all_its_foreground_goes_and_the_set_can_be_read(made: Path, tmp_path: Path) -> None:
    curation = default_curation(brightness_judge, None, PAIRS, size=32, settings=CurateSettings(ignore=1.25))
    labels = torch.zeros(3, 32, 32, dtype=torch.long)
    labels[0, :4], labels[1, :4] = 1, 1
    unit = torch.full((3, 1, 32, 32), -1.0)
    unit[1, :, :2] = 1.0
    found, said = curate_batch(unit, labels, [Verdict({}, kept=True, reason="")] * 3, curation,
                               kept=torch.zeros_like(labels, dtype=torch.bool))
    assert found[0].unique().tolist() == [0, 255] and (found[1] == 1).any() and not found[2].any()
    assert [v.reason for v in said] == ["no foreground left", "", ""], "one without any before lost nothing"
    assert [v.kept for v in said] == [False, True, True]

    denied = pixels_to_unit(np.stack([p.image[None] for p in read_shards(made).select([1, 4])]), (0, 255))

    def denies_two(images: torch.Tensor) -> torch.Tensor:
        p = brightness_judge(images)
        p[[bool((denied == one).flatten(1).all(1).any()) for one in images], 1] = 1e-6
        return p

    rules = {"curate": {"ignore": 1.25, "kept_too": True, "min_agreement": 0}}
    left = curate(made, denies_two, None, PAIRS, out=tmp_path / "out", held_out=others(), config=rules)
    gone = read_shards(tmp_path / "out", "rejected")
    assert len(left) == 5 and len(gone) == 2 and {i.made.reason for i in gone.items} == {"no foreground left"}
    assert all(set(np.unique(pair.mask)) <= {0, 255} for pair in gone)
    assert f"{len(gone)} rejected: no foreground left {len(gone)}" in summary(tmp_path / "out")[-1]
    assert len(load_pairs(tmp_path / "out", split="train")) == len(left)


def test_switched_off_it_leaves_no_trace(tmp_path: Path) -> None:
    assert default_curation(brightness_judge, soft_referee, PAIRS, size=32, settings=CurateSettings()) is None
    for name, config in (("plain", CONFIG), ("off", {**CONFIG, "curate": {"ignore": None}})):
        synth.draw(PIPELINE, PAIRS, n=3, seed=3, out=tmp_path / name, gates=half_strict(PAIRS), config=config)
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "off")
    identity = json.loads((tmp_path / "plain" / "run.json").read_text())["identity"]
    assert "curate" not in identity["settings"] and CURATED not in identity["sampler"]


@pytest.mark.parametrize("mode", ["surroundings", "object"])
def test_kept_pixels_stay_kept_when_labels_go(mode: str, tmp_path: Path) -> None:
    made = drawn(tmp_path / "made", mode=mode)
    rules = SelectSettings(curate=CurateSettings(ignore=1.25, kept_too=True), shard_size=3)
    found = curate(tmp_path / "made", half_blind_judge, None, PAIRS, out=tmp_path / "out", held_out=others(),
                   config=rules)
    assert synth.verify_shards(tmp_path / "out") == [] and found.ids == made.ids
    n_lost = 0
    for before, after in zip(made, found, strict=True):
        assert (before.image == after.image).all() and ((before.mask == after.mask) | (after.mask == 255)).all()
        n_lost += int((after.mask == 255).sum())
        old, new = (kept_by(torch.from_numpy(p.mask.astype(int))[None], json.loads(p.made.settings))
                    for p in (before, after))
        assert (new & ~old).sum() == 0, "nothing counts as kept that may have been painted"
        assert after.made.kept_sha256 == kept_hash(after.image, after.mask, after.made.settings)
        assert after.made.parents == before.made.parents and after.made.seed == before.made.seed
    assert n_lost > 0
    facts = json.loads((tmp_path / "out" / "curation.json").read_text())
    assert facts["class_losses_of"] == "held out" and facts["n_kept"] == 7 and facts["share_of_pixels_ignored"] > 0


def test_the_budget_is_kept_and_the_choice_is_the_supplys(made: Path, tmp_path: Path) -> None:
    config = {"budget": 3, "rank": {"hard_share": 1.0, "clip": 1.0, "min_consistency": 0.0}}
    found = curate(made, brightness_judge, soft_referee, PAIRS, out=tmp_path / "a", config=config)
    left = read_shards(tmp_path / "a", "rejected")
    assert len(found) == 3 and len(left) == 4 and {i.made.reason for i in left.items} == {BUDGET}
    assert min(i.made.scores["hardness"] for i in found.items) >= max(i.made.scores["hardness"] for i in left.items)
    assert sorted([*found.ids, *left.ids]) == sorted(read_shards(made).ids)
    assert synth.verify_shards(tmp_path / "a") == []
    before = files_of(tmp_path / "a")
    curate(made, brightness_judge, soft_referee, PAIRS, out=tmp_path / "a", config=config)
    curate(made, brightness_judge, soft_referee, PAIRS, out=tmp_path / "b", config={**config, "batch_size": 16})
    assert files_of(tmp_path / "a") == before == files_of(tmp_path / "b")
    many = curate(made, brightness_judge, soft_referee, PAIRS, out=tmp_path / "c", config={**config, "budget": 99})
    assert len(many) == 7 and not list((tmp_path / "c" / "data").glob("rejected*"))
    with pytest.raises(UserError, match="another curate run"):
        curate(made, brightness_judge, soft_referee, PAIRS, out=tmp_path / "a", config={**config, "budget": 2})


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_two_ranks_curate_as_one_does_and_the_last_one_writes_the_card(
        order: list[int], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"budget": 3, "rank": {"clip": 1.0}, "shard_size": 2}
    one = curate(made, brightness_judge, soft_referee, PAIRS, out=tmp_path / "one", config=config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    results = []
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        results.append(curate(made, brightness_judge, soft_referee, PAIRS, out=tmp_path / "two", config=config))
    assert results[0] is None and results[1] is not None and results[1].ids == one.ids
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")


def test_another_set_without_a_ledger_is_not_taken_for_the_one_before(made: Path, tmp_path: Path) -> None:
    config = {"budget": 3, "batch_size": 4}
    for name, source in (("one", made), ("two", tmp_path / "again")):
        if name == "two":
            drawn(source, mode="object")
        shutil.copytree(source / "data", tmp_path / name / "data")
        shutil.copy(source / "dataset.json", tmp_path / name)
    for _ in range(2):
        curate(tmp_path / "one", brightness_judge, soft_referee, PAIRS, out=tmp_path / "out", config=config)
    with pytest.raises(UserError, match=r"another curate run \(differs in: made"):
        curate(tmp_path / "two", brightness_judge, soft_referee, PAIRS, out=tmp_path / "out", config=config)


def test_while_drawing_the_same_rules_hold(tmp_path: Path) -> None:
    curation = default_curation(brightness_judge, soft_referee, PAIRS, size=32, held_out=others(),
                                settings=CurateSettings(ignore=1.25))
    plain, ruled = drawn(tmp_path / "plain"), drawn(tmp_path / "ruled", curation=curation)
    after = curate(tmp_path / "plain", brightness_judge, None, PAIRS, out=tmp_path / "after", held_out=others(),
                   config={"curate": {"ignore": 1.25, "min_agreement": 0}})
    assert synth.verify_shards(tmp_path / "ruled") == []
    for a, b, c in zip(plain, ruled, after, strict=True):
        assert (a.image == b.image).all() and (b.mask == c.mask).all()
        assert b.made.scores["ignored"] == c.made.scores["ignored"] and CURATED in json.loads(b.made.settings)
    assert any((b.mask == 255).any() for b in ruled)
    with pytest.raises(UserError, match="another draw run"):
        drawn(tmp_path / "plain", curation=curation)


@pytest.mark.parametrize(("what", "match"), [
    ("referee", "curate.min_agreement"), ("judge", "curate.ignore"), ("leak", "is among the held-out pairs"),
    ("shared", "held-out pair's group"), ("nothing", "nothing to do"), ("twice", "curated before"),
])
def test_what_cannot_be_curated_is_refused(what: str, match: str, made: Path, tmp_path: Path) -> None:
    judge, referee, real, held_out, config = brightness_judge, soft_referee, PAIRS, None, {"curate": RULES.model_dump()}
    folder = made
    if what == "referee":
        referee = None
    elif what == "judge":
        judge = None
    elif what == "leak":
        real, held_out = others(), PAIRS
    elif what == "shared":
        real, held_out = others(), others()
    elif what == "nothing":
        config = {"curate": {"ignore": None, "min_agreement": 0}}
    else:
        folder = tmp_path / "once"
        curate(made, judge, None, real, out=folder, config={"curate": {"ignore": 1.25, "min_agreement": 0}})
    with pytest.raises(UserError, match=match):
        curate(folder, judge, referee, real, out=tmp_path / "out", held_out=held_out, config=config)


def test_a_budget_without_a_judge_is_named_as_it_was_written(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^budget=3: .*judge=") as refused:
        curate(made, None, None, PAIRS, out=tmp_path / "out", config={"budget": 3})
    assert "supply" not in str(refused.value)
    with pytest.raises(UserError, match=r"^budget=3: "):
        run_curate(made, ["budget=3", f"out={tmp_path / 'out'}"], dry_run=True)


def test_rules_without_a_model_stop_a_drawing_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="curate.ignore"):
        synth.draw(PIPELINE, PAIRS, n=2, out=tmp_path / "a", config={"curate": {"ignore": 1.25}})


def test_a_model_does_not_vouch_for_itself(capsys: pytest.CaptureFixture) -> None:
    def model(digest: str, design: str) -> SimpleNamespace:
        return SimpleNamespace(content_hash=lambda: digest, config=SimpleNamespace(model=design), predict=None, size=32)

    with pytest.raises(UserError, match="always agrees with itself"):
        check_strangers(model("1", "tiny"), model("1", "tiny"), where="runs/referee")
    check_strangers(model("1", "tiny"), model("2", "lite"), where="runs/referee")
    assert not capsys.readouterr().out
    check_strangers(model("1", "tiny"), model("2", "tiny"), where="runs/referee")
    assert "err alike" in capsys.readouterr().out

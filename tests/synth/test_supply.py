"""Supply: hardness in closed form, the rule of choice against a plain reading of it, the same bytes however drawn."""

from __future__ import annotations

import itertools
import json
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import blind_judge, brightness_judge, files_of, half_strict, squares, tiny_pipeline

import synth
from synth.core.checks import UserError
from synth.core.space import pixels_to_unit
from synth.draw import Supply, SupplySettings, default_supply
from synth.draw.painters import roundtrip_painter
from synth.draw.sources import transform_pairs
from synth.draw.supply import REASON, hardness, select
from synth.formats import read_shards
from synth.generator import Generator
from synth.layouts import LayoutSettings
from synth.layouts.warp import foreground_of

PAIRS = squares(6)
PIPELINE = tiny_pipeline()
CONFIG = {"shard_size": 2, "batch_size": 3, "max_tries": 9}
SETTINGS = SupplySettings(oversample=3)


def soft_referee(images: torch.Tensor) -> torch.Tensor:
    """Returns probabilities (B, 2, H, W) of unit images (B, C, H, W): another threshold than the judge's."""
    p = torch.sigmoid(10 * (images.mean(1) - 0.3))
    return torch.stack([1 - p, p], 1)


def supply_of(settings: SupplySettings = SETTINGS) -> Supply:
    """Returns the supply of two models of different mind."""
    supply = default_supply(brightness_judge, soft_referee, PAIRS, size=32, settings=settings)
    assert supply is not None
    return supply


def drawn(out: Path, *, supply: Supply | None, config: dict | None = None) -> synth.PairSet | None:
    """Returns five gated pairs drawn into `out`."""
    return synth.draw(PIPELINE, PAIRS, n=5, seed=3, gates=half_strict(PAIRS), out=out, config=config or CONFIG,
                      supply=supply)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of five supplied pairs."""
    out = tmp_path_factory.mktemp("supply") / "made"
    drawn(out, supply=supply_of())
    return out


def test_hardness_is_cross_entropy_and_one_minus_soft_dice() -> None:
    p, labels = torch.tensor([[[[0.9, 0.6, 0.2, 0.5]], [[0.1, 0.4, 0.8, 0.5]]]]), torch.tensor([[[0, 1, 1, 0]]])
    entropy = -(math.log(0.9) + math.log(0.4) + math.log(0.8) + math.log(0.5)) / 4
    dice = 2 * (0.4 + 0.8) / (0.1 + 0.4 + 0.8 + 0.5 + 2)
    assert hardness(p, labels).tolist() == pytest.approx([entropy + 1 - dice])


def test_hardness_is_a_mean_over_the_classes_present_and_zero_when_all_is_right() -> None:
    labels = torch.tensor([[[0, 1, 2, 2]], [[0, 1, 1, 0]]])
    sure = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert hardness(sure, labels).tolist() == pytest.approx([0, 0], abs=1e-6)
    worst = hardness(sure.flip(1), labels)  # the middle class stays right, outer ones are exchanged
    assert worst[0] == pytest.approx(0.75 * -math.log(1e-7) + 0.5) and worst[1] == pytest.approx(
        0.5 * -math.log(1e-7))


def test_ignored_pixels_count_for_nothing() -> None:
    rng = torch.Generator().manual_seed(0)
    p, labels = torch.rand(3, 2, 8, 8, generator=rng).softmax(1), torch.randint(2, (3, 8, 8), generator=rng)
    labels[:, :, 5:] = 255
    other = p.clone()
    other[..., 5:] = 0.5
    assert torch.equal(hardness(p, labels), hardness(other, labels))
    assert torch.allclose(hardness(p, labels), hardness(p[..., :5], labels[..., :5]))
    assert hardness(p, torch.full_like(labels, 255)).tolist() == [1, 1, 1]


def by_the_book(hard: list[float], consistent: list[float], quota: int, settings: SupplySettings,
                least: float) -> tuple[set[int], int]:
    """Returns the hard part, and how many more are chosen at random: the rule read aloud, quadratic and plain."""
    n, part, pool = len(hard), round(settings.hard_share * quota), []
    for i in range(n):
        n_below = sum(h < hard[i] for h in hard)
        if consistent[i] >= least and n_below <= math.ceil(settings.clip * (n - 1)):
            pool.append(i)
    chosen: set[int] = set()
    while pool and len(chosen) < part:
        best = pool[0]
        for i in pool:
            best = i if hard[i] > hard[best] else best
        chosen.add(best)
        pool.remove(best)
    return chosen, quota - len(chosen)


@pytest.mark.parametrize(("share", "clip", "seed"), itertools.product((0.0, 0.5, 1.0), (0.6, 0.95, 1.0), range(3)))
def test_the_choice_follows_the_rule(share: float, clip: float, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    settings = SupplySettings(oversample=4, hard_share=share, clip=clip)
    hard, consistent = numbers.permutation(40).tolist(), numbers.random(40).tolist()

    def choose(k: int) -> list[int]:
        return select(hard, consistent, quota=10, min_consistency=0.4, settings=settings,
                      rng=torch.Generator().manual_seed(k))

    certain, n_random = by_the_book(hard, consistent, 10, settings, 0.4)
    choices = [choose(k) for k in range(200)]
    assert all(len(set(c)) == 10 and c == sorted(c) and certain <= set(c) for c in choices)
    assert choose(7) == choices[7]
    counts = np.bincount(np.concatenate(choices), minlength=40)
    rest = [i for i in range(40) if i not in certain]
    expected = 200 * n_random / len(rest)
    assert sum(counts[rest]) == 200 * n_random and all(abs(counts[i] - expected) < 0.5 * expected + 20 for i in rest)


def test_equals_keep_their_order_and_few_candidates_are_all_kept() -> None:
    rng, settings = torch.Generator().manual_seed(0), SupplySettings(oversample=2, hard_share=1.0)
    assert select([1.0] * 6, [1.0] * 6, quota=3, min_consistency=0.5, settings=settings, rng=rng) == [0, 1, 2]
    assert select([1.0, 9.0], [0.0, 0.0], quota=3, min_consistency=0.5, settings=settings, rng=rng) == [0, 1]


def test_the_choice_can_be_made_again_from_the_recorded_scores(made: Path) -> None:
    kept, left = read_shards(made), [i for i in read_shards(made, "rejected").items if i.made.reason == REASON]
    assert len(kept) == 5 and len(left) == 3 * 5 - 5
    supply, quotas = supply_of(), {0: 2, 1: 2, 2: 1}
    for shard, quota in quotas.items():
        mine = sorted((i for i in [*kept.items, *left] if i.id.startswith(f"inpaint-{shard:05d}")), key=lambda i: i.id)
        assert len(mine) == 3 * quota
        assert all({"hardness", "consistency", "correlation"} <= set(i.made.scores) for i in mine)
        chosen = select([i.made.scores["hardness"] for i in mine], [i.made.scores["consistency"] for i in mine],
                        quota=quota, min_consistency=supply.min_consistency, settings=SETTINGS,
                        rng=synth.core.rng.sample_rng(3, REASON, shard))
        assert [mine[k].id for k in chosen] == [i.id for i in kept.items if i in mine]
    assert all(i.made.verdict == "rejected" for i in left) and synth.verify_shards(made) == []


def test_the_scores_are_those_of_the_written_pixels(made: Path) -> None:
    for pair in read_shards(made):
        unit = pixels_to_unit(pair.image[None, None], (0, 255))
        score = hardness(brightness_judge(unit), torch.from_numpy(pair.mask.astype(np.int64))[None])
        assert pair.made.scores["hardness"] == pytest.approx(float(score), abs=2e-5)


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_two_ranks_write_the_same_bytes_in_any_order(made: Path, tmp_path: Path, order: list[int],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        drawn(tmp_path / "ranks", supply=supply_of())
    assert files_of(tmp_path / "ranks") == files_of(made)


def test_switched_off_it_leaves_no_trace(tmp_path: Path) -> None:
    assert default_supply(brightness_judge, soft_referee, PAIRS, size=32, settings=SupplySettings()) is None
    drawn(tmp_path / "plain", supply=None)
    drawn(tmp_path / "off", supply=None, config={**CONFIG, "supply": {"oversample": 1.0}})
    assert files_of(tmp_path / "plain") == files_of(tmp_path / "off")
    for split in ("train", "rejected"):
        assert all(set(i.made.scores) == {"correlation", "spectrum"} and i.made.reason != REASON
                   for i in read_shards(tmp_path / "plain", split).items)
    assert "supply" not in {*json.loads((tmp_path / "plain" / "run.json").read_text())["identity"]}


def test_another_supply_does_not_go_into_the_same_folder(made: Path) -> None:
    before = files_of(made)
    other = default_supply(blind_judge, soft_referee, PAIRS, size=32, settings=SETTINGS)
    for supply in (other, supply_of(SupplySettings(oversample=4)), None):
        with pytest.raises(UserError, match="another draw run"):
            drawn(made, supply=supply)
    assert files_of(made) == before


def test_what_cannot_choose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="oversample=3.*judge"):
        default_supply(None, soft_referee, PAIRS, size=32, settings=SETTINGS)
    with pytest.raises(UserError, match="oversample=4.*judge"):
        drawn(tmp_path / "made", supply=None, config={**CONFIG, "supply": {"oversample": 4}})
    with pytest.raises(UserError, match="calibrated with"):
        drawn(tmp_path / "made", supply=supply_of(), config={**CONFIG, "supply": {"oversample": 4}})
    assert not (tmp_path / "made").exists()


def test_one_model_in_both_parts_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        alone = default_supply(brightness_judge, None, PAIRS, size=32, settings=SETTINGS)
    assert alone.referee is alone.judge and "cancel" in caplog.text
    assert alone.identity != supply_of().identity and alone.min_consistency == pytest.approx(0.8)


class Halver(Generator):
    """Paints nothing; its round trip halves the contrast."""

    size, channels, intensity_range = 32, 1, (0.0, 255.0)

    def sample(self, image: torch.Tensor, mask: torch.Tensor, *, seeds: object,
               keep_in: torch.Tensor | None = None) -> torch.Tensor:
        """Returns `image` (B, C, H, W)."""
        return image

    def roundtrip(self, image: torch.Tensor) -> torch.Tensor:
        """Returns half of `image` (B, C, H, W)."""
        return image / 2

    def sampler_settings(self) -> dict[str, float | int | str]:
        """Returns nothing to set."""
        return {}

    def content_hash(self) -> str:
        """Returns a name."""
        return "halver"


class Plain(Halver):
    """A generator without an autoencoder."""

    roundtrip = Generator.roundtrip


def test_the_round_trip_changes_all_but_the_kept_pixels(tmp_path: Path) -> None:
    through = synth.draw_roundtrip(Halver(), PAIRS, n=4, seed=3, out=tmp_path / "through", config=CONFIG)
    source = synth.draw(None, PAIRS, n=4, seed=3, out=tmp_path / "source", config=CONFIG, size=32)
    assert through is not None and source is not None
    sources = transform_pairs(PAIRS.arrays(32), [i.removeprefix("source-") for i in source.ids],
                              rows=range(6), seed=3, layout=LayoutSettings(), shown_px=np.inf)
    for k, (a, b) in enumerate(zip(through, source, strict=True)):
        keep = foreground_of(b.mask) | sources.keep_in[k]
        half = np.clip(np.rint((b.image / 127.5 - 1) / 2 * 127.5 + 127.5), 0, 255)
        assert np.array_equal(a.mask, b.mask) and np.array_equal(a.image[keep], b.image[keep])
        assert np.abs(a.image[~keep] - half[~keep]).max() <= 1 and (a.image[~keep] != b.image[~keep]).mean() > 0.5
    assert synth.verify_shards(tmp_path / "through") == []


def test_a_generator_without_an_autoencoder_says_so() -> None:
    sources = transform_pairs(PAIRS.arrays(32), ["a"], rows=[0], seed=0, layout=LayoutSettings())
    with pytest.raises(UserError, match="Plain.*no autoencoder"):
        roundtrip_painter(Plain())(sources)

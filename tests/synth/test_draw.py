"""Drawing: byte-identical shards however they were made, exact foregrounds, provenance, refusals, the control."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom
from tiny import blind_judge, files_of, half_strict, killed_and_whole, launch, squares, tiny_pipeline

import synth
from synth.core.checks import IGNORE, UserError
from synth.core.pairs import PairSet, memory_set
from synth.core.space import from_channels, pixels_to_unit, to_channels, unit_to_pixels
from synth.draw.shards import kept_hash
from synth.formats import load_pairs, read_shards
from synth.gates import Gates, default_gates
from synth.layouts import apply_layout, layout_from_json
from synth.layouts.warp import foreground_of

PAIRS = squares(6)
PIPELINE = tiny_pipeline()
CONFIG = {"shard_size": 2, "batch_size": 3, "max_tries": 9}


def drawn(out: Path, *, n: int = 5, seed: int = 3, gates: Gates | None = None,
          pairs: PairSet = PAIRS) -> PairSet | None:
    """Returns n pairs drawn into `out` by the tiny pipeline."""
    return synth.draw(PIPELINE, pairs, n=n, seed=seed, gates=gates, out=out, config=CONFIG)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PairSet, Path]:
    """Returns five gated pairs and their folder."""
    out = tmp_path_factory.mktemp("draw") / "made"
    pairs = drawn(out, gates=half_strict(PAIRS))
    assert pairs is not None
    return pairs, out


def test_n_pairs_are_kept_and_the_rejected_ones_lie_apart(made: tuple[PairSet, Path]) -> None:
    pairs, out = made
    rejected = read_shards(out, "rejected")
    assert len(pairs) == 5 and len(set(pairs.ids) | set(rejected.ids)) == 5 + len(rejected)
    assert all(item.made.verdict == "kept" and item.made.reason == "" for item in pairs.items)
    assert all(item.made.verdict == "rejected" and item.made.reason.startswith("correlation")
               for item in rejected.items)
    assert sorted(p.name for p in (out / "data").iterdir()) == [
        f"{split}-0000{i}-of-00003.parquet" for split in ("rejected", "train") for i in range(3)]
    for pair in pairs:
        assert pair.image.shape == pair.mask.shape == (32, 32) and pair.origin == "synthetic"
        assert set(np.unique(pair.mask)) <= {0, 1, 255} and (pair.mask == 1).any()


def test_the_same_command_elsewhere_writes_the_same_bytes(made: tuple[PairSet, Path], tmp_path: Path) -> None:
    drawn(tmp_path / "again", gates=half_strict(PAIRS))
    assert files_of(tmp_path / "again") == files_of(made[1])


def test_the_number_of_threads_changes_no_byte(made: tuple[PairSet, Path], tmp_path: Path) -> None:
    before, used = torch.get_num_threads(), []
    hook = PIPELINE.unet.register_forward_pre_hook(lambda *_: used.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        drawn(tmp_path / "threads", gates=half_strict(PAIRS))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
        hook.remove()
    assert set(used) == {1}, "sums shared out among threads round by their number; larger nets than this one show it"
    assert files_of(tmp_path / "threads") == files_of(made[1])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_two_ranks_write_the_same_bytes_in_any_order(made: tuple[PairSet, Path], tmp_path: Path, order: list[int],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    results = []
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        results.append(drawn(tmp_path / "ranks", gates=half_strict(PAIRS)))
    assert results[0] is None and results[1] is not None and len(results[1]) == 5
    assert files_of(tmp_path / "ranks") == files_of(made[1])


def test_kill_9_at_random_moments_changes_no_byte(tmp_path: Path) -> None:
    said = killed_and_whole("draw", tmp_path)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "killed"), said
    assert len(read_shards(tmp_path / "killed")) == 24 and len(read_shards(tmp_path / "killed", "rejected")) > 0


@pytest.mark.slow
def test_accelerate_launch_with_two_processes_writes_the_same_bytes(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "painter")
    synth.write_folder(PAIRS, tmp_path / "labelled")
    words = [tmp_path / "draw.yaml", f"generator={tmp_path}/painter", f"data.labelled={tmp_path}/labelled", "n=5",
             "seed=3"]
    (tmp_path / "draw.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    one = launch(["-m", "synth.cli", "draw", *words, f"out={tmp_path}/one"])
    two = launch(["-m", "synth.cli", "draw", *words, f"out={tmp_path}/two"], n_processes=2)
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert "5 pairs kept of 5" in one.stdout and "5 pairs kept of 5" in two.stdout


def test_running_again_touches_nothing(made: tuple[PairSet, Path]) -> None:
    _, out = made
    before = {p: p.stat().st_mtime_ns for p in (out / "data").iterdir()}
    again = drawn(out, gates=half_strict(PAIRS))
    assert again is not None and again.ids == made[0].ids
    assert {p: p.stat().st_mtime_ns for p in (out / "data").iterdir()} == before


def coloured() -> PairSet:
    """Returns RGB phantom pairs."""
    return make_phantom(4, size=32, channels=3)


def deep() -> PairSet:
    """Returns 16-bit grey phantom pairs."""
    return make_phantom(4, size=32, bit_depth=16, n_classes=3)


@pytest.mark.parametrize("pairs", [PAIRS, coloured(), deep()], ids=["grey", "rgb", "16 bit"])
def test_the_foreground_is_bit_identical_to_the_unpainted_source(pairs: PairSet, tmp_path: Path) -> None:
    pipeline = tiny_pipeline(channels=pairs.info.channels, value_range=pairs.info.intensity_range)
    config = {**CONFIG, "layout": {"keep_in": "none"}}  # the air round the phantom is a frame, and would be kept too
    painted = synth.draw(pipeline, pairs, n=4, seed=3, out=tmp_path / "painted", config=config)
    source = synth.draw(None, pairs, n=4, seed=3, out=tmp_path / "source", config=config, size=32)
    assert [i.removeprefix("inpaint-") for i in painted.ids] == [i.removeprefix("source-") for i in source.ids]
    for a, b in zip(painted, source, strict=True):
        keep, told = foreground_of(b.mask), b.mask != IGNORE  # unknown: mirrored into the frame, if the source shows
        assert a.image.dtype == b.image.dtype == pairs.info.dtype and np.array_equal(a.mask[told], b.mask[told])
        assert keep.any() and np.array_equal(a.image[keep], b.image[keep])
        assert (a.image[~keep] != b.image[~keep]).mean() > 0.5
        assert a.made.kept_sha256 == b.made.kept_sha256 == kept_hash(b.image, b.mask)


def test_the_frame_shows_through(tmp_path: Path) -> None:
    pairs = coloured()
    painted = synth.draw(tiny_pipeline(channels=3), pairs, n=4, seed=3, out=tmp_path / "painted", config=CONFIG)
    arrays, seen = pairs.arrays(32), 0
    for pair in painted:
        layout, row = layout_from_json(pair.made.layout), pairs.ids.index(pair.made.parents[0])
        placed = apply_layout(arrays.images[row], arrays.masks[row], dataclasses.replace(layout, recombined=None))
        frame = placed.keep_in & (pair.mask == 0)
        assert np.array_equal(to_channels(pair.image)[:, frame], placed.pixels[:, frame])
        seen += frame.mean() > 0.1
    assert seen > 0


def test_provenance_is_enough_to_draw_a_pair_again(made: tuple[PairSet, Path]) -> None:
    pipeline, sources = PIPELINE, {pair.id: pair for pair in PAIRS}
    for pair in made[0]:
        parent = sources[pair.made.parents[0]]
        groups = [sources[name].group for name in pair.made.parents]
        assert pair.made.parent_groups == tuple(dict.fromkeys(groups)) and pair.group == parent.group
        layout = layout_from_json(pair.made.layout)
        second = sources[layout.recombined.other] if layout.recombined else None
        placed = apply_layout(to_channels(parent.image), parent.mask, layout,
                              other=second and (to_channels(second.image), second.mask))
        labels, pixels = placed.labels, placed.pixels
        assert np.array_equal(labels > 0, pair.mask == 1) and pair.made.generator == pipeline.content_hash()
        assert json.loads(pair.made.settings) == pipeline.sampler_settings()
        unit = pipeline.sample(pixels_to_unit(pixels[None], (0, 255)), torch.from_numpy(labels.astype(np.int64))[None],
                               seeds=[pair.made.seed], keep_in=torch.from_numpy(placed.keep_in)[None])
        again = from_channels(unit_to_pixels(unit, (0, 255), np.dtype(np.uint8))[0])
        assert np.abs(again.astype(int) - pair.image.astype(int)).max() <= 1, "up to rounding of another batch size"


def test_a_damaged_file_is_found_and_drawn_anew(tmp_path: Path) -> None:
    out = tmp_path / "made"
    drawn(out, gates=half_strict(PAIRS))
    whole = files_of(out)
    assert synth.verify_shards(out) == []
    victim = out / "data" / "train-00001-of-00003.parquet"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    assert synth.verify_shards(out)[0].startswith("shard 00001:")
    drawn(out, gates=half_strict(PAIRS))
    assert files_of(out) == whole and synth.verify_shards(out) == []
    victim.unlink()
    assert any("shard 00001" in fault for fault in synth.verify_shards(out))
    drawn(out, gates=half_strict(PAIRS))
    assert files_of(out) == whole


def test_a_changed_foreground_pixel_is_found_though_file_and_ledger_agree(tmp_path: Path) -> None:
    out = tmp_path / "made"
    drawn(out, n=2)
    pairs = list(read_shards(out))
    image = pairs[0].image.copy()
    image[tuple(np.argwhere(pairs[0].mask == 1)[0])] ^= 1
    name = "data/train-00000-of-00001.parquet"
    digest = synth.formats.write_shard([dataclasses.replace(pairs[0], image=image), pairs[1]], out / name)
    ledger = out / "ledger" / "00000.json"
    entry = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**entry, "files": {**entry["files"], name: digest}}))
    faults = synth.verify_shards(out)
    assert len(faults) == 1 and faults[0].startswith(pairs[0].id)
    with pytest.raises(UserError, match="no ledger"):
        synth.verify_shards(tmp_path)


def test_another_draw_into_the_same_folder_is_refused(made: tuple[PairSet, Path]) -> None:
    _, out = made
    before = files_of(out)
    for changes in ({"seed": 4}, {"n": 6}, {"gates": None}, {"pairs": squares(6, seed=9)}):
        with pytest.raises(UserError, match="another draw run"):
            drawn(out, **{"gates": half_strict(PAIRS), **changes})
    with pytest.raises(UserError, match="another draw run .*settings"):
        synth.draw(PIPELINE, PAIRS, n=5, seed=3, gates=half_strict(PAIRS), out=out, config=CONFIG,
                   overrides=["layout.flip=none"])
    assert files_of(out) == before


def test_what_cannot_be_drawn_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    empty = memory_set([p.image for p in PAIRS], [np.zeros_like(p.mask) for p in PAIRS], PAIRS.info, ids=PAIRS.ids,
                       groups=PAIRS.groups)
    out = tmp_path / "made"
    with pytest.raises(UserError, match="no mask shows any foreground"):
        drawn(out, pairs=empty)
    with pytest.raises(UserError, match="n=0"):
        drawn(out, n=0)
    with pytest.raises(UserError, match="3 channel"):
        drawn(out, pairs=coloured())
    with pytest.raises(UserError, match="range"):
        drawn(out, pairs=deep())
    with pytest.raises(UserError, match="size"):
        synth.draw(None, PAIRS, n=2, out=out)
    assert not out.exists()


def test_a_class_that_the_generator_never_learnt_is_refused_before_a_folder_is_held(tmp_path: Path) -> None:
    info = dataclasses.replace(PAIRS.info, classes=("background", "a", "b", "c", "d"))
    masks = [np.where(p.mask > 0, 4, 0).astype(np.uint8) for p in PAIRS]
    strange = memory_set([p.image for p in PAIRS], masks, info, ids=PAIRS.ids, groups=PAIRS.groups)
    with pytest.raises(UserError, match="memory: its masks show class 4, and this generator learnt classes 0 to 2"):
        drawn(tmp_path / "out", pairs=strange)
    assert not (tmp_path / "out").exists()
    assert drawn(tmp_path / "named", n=1, pairs=PairSet(PAIRS.items, info)) is not None, "a name alone is no harm"


def test_grey_of_16_bit_read_as_rgb_is_refused_before_a_folder_is_held(tmp_path: Path) -> None:
    images = [p.image.astype(np.uint16) * 256 for p in PAIRS]
    info = dataclasses.replace(PAIRS.info, bit_depth=16, intensity_range=(0.0, 65535.0))
    deep = memory_set(images, [p.mask for p in PAIRS], info, ids=PAIRS.ids, groups=PAIRS.groups)
    synth.write_folder(deep, tmp_path / "deep")
    wide = load_pairs(tmp_path / "deep", channels=3)
    for work in (lambda out: synth.draw(None, wide, n=1, size=32, out=out),
                 lambda out: synth.fit({"kind": "spectral", "size": 32}, wide, out=out)):
        with pytest.raises(UserError, match="RGB of 16 bit"):
            work(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_datasets_opens_what_was_drawn(made: tuple[PairSet, Path], tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset(str(made[1]), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "rejected"} and len(loaded["train"]) == 5
    row = loaded["train"][0]
    pair = made[0][0]
    assert row["id"] == pair.id and np.array_equal(np.asarray(row["image"]), pair.image)
    assert np.array_equal(np.asarray(row["mask"]), pair.mask) and row["parents"] == list(pair.made.parents)
    assert json.loads(row["scores"]) == pair.made.scores


def test_without_rejections_there_is_no_empty_split(tmp_path: Path) -> None:
    drawn(tmp_path / "made", n=3)
    assert not list((tmp_path / "made" / "data").glob("rejected-*"))
    assert "rejected" not in (tmp_path / "made" / "README.md").read_text().split("---")[1]
    before = files_of(tmp_path / "made")
    drawn(tmp_path / "made", n=3)
    assert files_of(tmp_path / "made") == before and synth.verify_shards(tmp_path / "made") == []


def test_if_nothing_passes_the_reasons_can_be_read(tmp_path: Path) -> None:
    gates = default_gates(blind_judge, PAIRS, size=32)
    for _ in range(2):
        with pytest.raises(UserError, match="none of 18 drawn pairs passed"):
            synth.draw(PIPELINE, PAIRS, n=2, gates=gates, out=tmp_path / "made", config=CONFIG)
    rejected = read_shards(tmp_path / "made", "rejected")
    assert len(rejected) == 18 and all("faithfulness 0.00 < 0.01" in i.made.reason for i in rejected.items)


def test_every_parent_is_drawn_and_seeds_differ(tmp_path: Path) -> None:
    made = synth.draw(None, PAIRS, n=60, seed=1, out=tmp_path / "made", size=32)
    parents = Counter(item.made.parents[0] for item in made.items)
    assert set(parents) == set(PAIRS.ids) and max(parents.values()) < 25
    assert len({item.made.seed for item in made.items}) == 60
    assert len({item.made.layout for item in made.items}) == 60


def test_a_second_parent_is_recorded_and_recalled(tmp_path: Path) -> None:
    made = synth.draw(None, PAIRS, n=16, seed=1, out=tmp_path / "made", size=32, overrides=["layout.recombine=1"])
    groups = dict(zip(PAIRS.ids, PAIRS.groups, strict=True))
    both = [item for item in made.items if layout_from_json(item.made.layout).recombined]
    assert len(both) > 8
    for item in both:
        assert item.made.parents[1:] == (layout_from_json(item.made.layout).recombined.other,)
        assert item.made.parent_groups == tuple(dict.fromkeys(groups[p] for p in item.made.parents))
    rest = made.without_group("g1")
    assert all(groups[p] != "g1" for item in rest.items for p in item.made.parents)


def test_children_of_drawn_pairs_stem_from_all_their_grandparents(tmp_path: Path) -> None:
    first = synth.draw(None, PAIRS, n=6, out=tmp_path / "first", size=32, config={"layout": {"recombine": 1.0}})
    second = synth.draw(None, first, n=12, out=tmp_path / "second", size=32)
    groups = {item.id: set(item.made.parent_groups) for item in first.items}
    assert max(len(some) for some in groups.values()) == 2
    for item in second.items:
        assert set(item.made.parent_groups) == set().union(*(groups[name] for name in item.made.parents))
    card = (tmp_path / "second" / "README.md").read_text()
    assert f"Parent groups: {', '.join(sorted(set().union(*groups.values())))}" in card


def test_the_children_of_a_group_can_be_left_out(made: tuple[PairSet, Path]) -> None:
    rest = made[0].without_group("g1")
    assert 0 < len(rest) < 5 and all("g1" not in item.made.parent_groups for item in rest.items)


def test_a_drawn_set_reads_like_any_other(made: tuple[PairSet, Path]) -> None:
    pairs = load_pairs(made[1])
    assert pairs.ids == made[0].ids and pairs.info == PAIRS.info

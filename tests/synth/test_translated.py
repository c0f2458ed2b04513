"""Real images without masks in other styles: resumed byte for byte, by one process or two, never read half done."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from interrupted import Killed
from synth_shell import mistake, synth_cli
from tiny import files_of, killed_and_whole, squares, tiny_appearance

import synth
from synth.core.checks import UserError
from synth.core.pairs import ImageSet, PairSet, Provenance, memory_set
from synth.core.taught import stem_of
from synth.draw.modes import with_changes
from synth.gan.restyle.pipeline import AppearancePipeline

IMAGES = squares(20)
N_SHARDS = 4
"""Of 20 images and two translations of each."""


def translated(out: Path, generator: AppearancePipeline | None = None, images: ImageSet = IMAGES) -> ImageSet | None:
    """Returns the images and two translations of each."""
    return synth.translate_images(generator or tiny_appearance(), images, out=out, n=2, seed=3)


def counted(*, least: int = 10**9) -> tuple[AppearancePipeline, list[int]]:
    """Returns a generator that is killed at its image number `least`, and the seeds of the images that it made."""
    generator, seeds = tiny_appearance(), []
    sample: Callable[..., torch.Tensor] = generator.sample

    def count(image: torch.Tensor, mask: torch.Tensor, *, seeds: list[int], made: list[int] = seeds) -> torch.Tensor:
        """Returns what the generator makes of unit image (1, C, S, S) and mask (1, S, S)."""
        if len(made) == least:
            raise Killed
        made += seeds
        return sample(image, mask, seeds=seeds)

    generator.sample = count
    return generator, seeds


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("translated") / "whole"
    found = translated(out)
    assert found is not None and len(found) == 60 and len(list((out / "ledger").iterdir())) == N_SHARDS
    return out


def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    killed, made = counted(least=15)  # the first 20 images are real: 12 more fill the second shard
    with pytest.raises(Killed):
        translated(tmp_path / "cut", killed)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut" / "images").iterdir()}
    assert len(before) == 35
    resumed, rest = counted()
    found = translated(tmp_path / "cut", resumed)
    assert files_of(tmp_path / "cut") == files_of(whole) and found.ids == synth.load_images(whole).ids
    assert len(made) == 15 and len(rest) == 28, "the two whole shards were left as they were"
    kept = [p for p, then in before.items() if p.stat().st_mtime_ns == then]
    assert len(kept) == 32


def test_kill_9_at_random_moments_changes_no_byte(tmp_path: Path) -> None:
    said = killed_and_whole("translate", tmp_path)
    assert files_of(tmp_path / "whole") == files_of(tmp_path / "killed"), said
    assert len(synth.load_images(tmp_path / "killed")) == 120


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_two_ranks_write_the_same_bytes_in_any_order(whole: Path, tmp_path: Path, order: list[int],
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    results = []
    for rank in order:
        monkeypatch.setenv("RANK", str(rank))
        results.append(translated(tmp_path / "ranks"))
    assert results[0] is None and len(results[1]) == 60
    assert files_of(tmp_path / "ranks") == files_of(whole)


def test_running_again_makes_nothing_and_mends_what_was_damaged(whole: Path, tmp_path: Path) -> None:
    translated(tmp_path / "again")
    idle, made = counted()
    translated(tmp_path / "again", idle)
    assert made == []
    victim = tmp_path / "again" / "images" / "s19-appearance-1.png"
    victim.write_bytes(victim.read_bytes()[:-9])
    translated(tmp_path / "again", idle)
    assert len(made) == 12 and files_of(tmp_path / "again") == files_of(whole)


def test_a_folder_that_is_not_whole_is_not_read_as_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(Killed):
        translated(tmp_path / "cut", counted(least=15)[0])
    with pytest.raises(UserError, match="cut: not all of its images are written.*resumes"):
        synth.load_images(tmp_path / "cut")
    assert "not all of its images" in mistake(capsys, "show", tmp_path / "cut")


def test_another_run_in_the_same_folder_is_refused(whole: Path) -> None:
    changed = [*IMAGES.items[:-1], dataclasses.replace(IMAGES.items[-1], read=IMAGES.items[0].read)]
    for words, images, match in (({"seed": 4}, IMAGES, "seed, 3 there and 4 now"),
                                 ({"n": 1}, IMAGES, "n, 2 there and 1 now"),
                                 ({"originals": False}, IMAGES, "originals, True there and False now"),
                                 ({}, PairSet(changed, IMAGES.info), "images")):
        with pytest.raises(UserError, match=rf"another translated run \(differs in: {match}\)"):
            synth.translate_images(tiny_appearance(), images, out=whole, **{"n": 2, "seed": 3, **words})
    odd = PairSet([dataclasses.replace(IMAGES.items[0], id="a/b")], IMAGES.info)
    with pytest.raises(UserError, match="an id becomes a file name"):
        translated(whole.parent / "odd", images=odd)
    assert not (whole.parent / "odd").exists()


def test_a_translation_counts_what_its_image_does(tmp_path: Path) -> None:
    weights = {name: 1 / (2 + i) for i, name in enumerate(IMAGES.ids)}
    items = [dataclasses.replace(i, weight=weights[i.id]) for i in IMAGES.items]
    found = translated(tmp_path / "made", images=PairSet(items, IMAGES.info))
    assert [i.weight for i in found.items] == [weights[i.id.partition("-")[0]] for i in found.items]


def test_a_translation_of_a_drawn_image_stems_from_all_its_parents(tmp_path: Path) -> None:
    made = Provenance(("a", "b"), ("far", "wide"), 1, "cafe", "{}", "{}")
    items = [dataclasses.replace(IMAGES.items[0], made=made), IMAGES.items[1]]
    found = translated(tmp_path / "made", images=PairSet(items, IMAGES.info)).items
    groups = [item.made.parent_groups for item in found if "appearance" in item.id]
    assert groups == [(items[0].group, "far", "wide")] * 2 + [(items[1].group,)] * 2


def test_datasets_opens_the_folder(whole: Path, tmp_path: Path) -> None:
    opened = datasets.load_dataset(str(whole), cache_dir=str(tmp_path))["train"]
    found = synth.load_images(whole)
    assert len(opened) == 60
    for row in opened.select(range(0, 60, 7)):
        assert np.array_equal(np.array(row["image"]), found[found.ids.index(row["id"])].image)


def test_the_command_shows_them_and_leaves_out_a_group(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
                                                       ) -> None:
    group = IMAGES.groups[0]
    n = sum(g != group for g in synth.load_images(whole).groups)
    assert synth_cli("export", whole, f"out={tmp_path}/rest", "--without-group", group) == 0
    assert f"{n} images without masks" in capsys.readouterr().out
    rest = synth.load_images(tmp_path / "rest")
    assert len(rest) == n and not any(group in stem_of(item) for item in rest.items)
    assert synth_cli("show", tmp_path / "rest", "--out", tmp_path / "grid.png") == 0
    assert f"{n} images without masks, 1 channel(s)" in capsys.readouterr().out


def test_spacing_and_domain_go_along(tmp_path: Path) -> None:
    plain = memory_set([np.tile(p.image, (2, 1)) for p in IMAGES.select([0, 1])], None, IMAGES.info, ids=["s0", "s1"],
                       groups=["g0", "g1"], spacings=[(0.5, 0.8)] * 2)
    images, moved = (ImageSet([dataclasses.replace(item, domain=site) for item in plain.items], IMAGES.info)
                     for site in ("site 0", "site 2"))
    translated(tmp_path / "made", images=images)
    for item in synth.load_images(tmp_path / "made").items:
        style = json.loads(item.made.layout)["style"] if item.made else "site 0"
        assert item.domain == style and item.spacing == ((1.0, 0.8) if item.made else (0.5, 0.8)), item.id
    clusters = AppearancePipeline(tiny_appearance().translator, ["cluster_0", "cluster_1", "cluster_2"],
                                  **{k: tiny_appearance().config[k] for k in ("centres", "spread")})
    again = translated(tmp_path / "clusters", clusters, images)
    assert [item.domain for item in again.items] == ["site 0"] * 2 + [None] * 4, "a cluster is no site"
    with pytest.raises(UserError, match=r"differs in: known"):
        translated(tmp_path / "made", images=moved)


def deep(images: ImageSet = IMAGES, *, top: float = 255.0) -> ImageSet:
    """Returns the same pixels in 16 bit, over the range from 0 to `top`."""
    info = dataclasses.replace(images.info, bit_depth=16, intensity_range=(0.0, top))
    return memory_set([p.image.astype(np.uint16) for p in images], None, info, ids=images.ids, groups=images.groups)


def test_images_of_another_bit_depth_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    some = IMAGES.select([0, 1])
    for images, generator in ((deep(some), tiny_appearance()), (some, tiny_appearance(bit_depth=16))):
        with pytest.raises(UserError, match=f"images of {images.info.bit_depth} bit, and AppearancePipeline"):
            translated(tmp_path / "out", generator, images)
    tiny_appearance().save_pretrained(tmp_path / "styles")
    synth.write_folder(deep(some, top=4095), tmp_path / "pile")
    assert "images of 16 bit" in mistake(capsys, "translate", tmp_path / "styles", f"out={tmp_path}/out",
                                         f"data.unlabelled={tmp_path}/pile")
    assert not (tmp_path / "out").exists()


def test_the_bit_depth_is_saved_and_an_older_folder_is_told_by_its_range(tmp_path: Path) -> None:
    noted = with_changes(tiny_appearance(bit_depth=16), {"style": "site 1"})
    noted.save_pretrained(tmp_path / "noted")  # 16-bit files may well hold no level above 255
    assert translated(tmp_path / "low", synth.load_generator(tmp_path / "noted"), deep()).info.bit_depth == 16
    for top, fits, other in ((255, IMAGES, deep()), (4095, deep(top=4095), IMAGES)):
        folder = tmp_path / str(top)
        tiny_appearance(value_range=(0, top)).save_pretrained(folder)
        words = json.loads((folder / "model_index.json").read_text())
        del words["bit_depth"]
        (folder / "model_index.json").write_text(json.dumps(words))
        older = synth.load_generator(folder)
        assert len(translated(tmp_path / f"made {top}", older, fits.select([0]))) == 3
        with pytest.raises(UserError, match="bit, and AppearancePipeline was fitted on"):
            translated(tmp_path / "no", older, other)


def test_the_command_resumes(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    synth.write_folder(IMAGES, tmp_path / "pile")
    tiny_appearance().save_pretrained(tmp_path / "styles")
    words = ("translate", tmp_path / "styles", f"data.unlabelled={tmp_path}/pile", f"out={tmp_path}/more", "n=2",
             "seed=3")
    assert synth_cli(*words) == 0
    first = files_of(tmp_path / "more")
    (tmp_path / "more" / "metadata.jsonl").unlink()
    (tmp_path / "more" / "ledger" / "00001.json").unlink()
    (tmp_path / "more" / "images" / "s0-appearance-0.png").unlink()
    capsys.readouterr()
    assert synth_cli(*words) == 0
    assert "60 images, 40 of them translated" in capsys.readouterr().out and files_of(tmp_path / "more") == first
    assert {k: v for k, v in first.items() if "appearance" in k} == {
        k: v for k, v in files_of(whole).items() if "appearance" in k}

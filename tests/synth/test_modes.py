"""What is kept and what is painted: every mode, objects repainted first, objects put into real images, presets."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from phantom import make_phantom
from scipy import ndimage
from synth_shell import CONFIGS, mistake, synth_cli
from tiny import brightness_judge, files_of, squares, tiny_pipeline

import synth
from synth.audit import audit_seam, fit_probe
from synth.core.checks import IGNORE, UserError
from synth.core.pairs import DataInfo, ImageSet, PairSet, memory_set
from synth.core.space import pixels_to_unit, to_channels
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.settings import SamplerSettings
from synth.draw.hosts import lay_over, uncut
from synth.draw.shards import kept_hash
from synth.formats import read_shards
from synth.gates import Gates, default_gates, run_gates
from synth.gates.seam_net import SeamSettings
from synth.generator import KEEPS, kept_by
from synth.layouts import apply_layout, detect_frame, layout_from_json

PAIRS = squares(6)
SAMPLER = SamplerSettings(n_steps=2, margin_cells=(1, 1))
CONFIG = {"shard_size": 3, "batch_size": 4, "layout": {"keep_in": "none", "recombine": 0.0}}
PAINTS = get_args(SamplerSettings.model_fields["mode"].annotation)
"""What the inpainting generator may paint."""


def painter(mode: str = "surroundings", *, pairs: PairSet = PAIRS, tells_labels: bool = True) -> InpaintPipeline:
    """Returns an untrained pipeline that paints `pairs` in `mode`."""
    sampler = SAMPLER.model_copy(update={"mode": mode})
    return tiny_pipeline(channels=pairs.info.channels, value_range=pairs.info.intensity_range, sampler=sampler,
                         tells_labels=tells_labels)


def away_from(mask: np.ndarray, ring_px: int) -> np.ndarray:
    """Returns the pixels of mask (H, W) that lie more than `ring_px` from its foreground, in rows and columns."""
    foreground = (mask > 0) & (mask != IGNORE)
    return ~ndimage.binary_dilation(foreground, np.ones((3, 3)), iterations=ring_px)


def rewrite(out: Path, change: str) -> str:
    """Changes one pixel of the first pair, on its object or far from it, with ledger and all; returns the pair's id."""
    pairs, name = list(read_shards(out)), "data/train-00000-of-00001.parquet"
    image, mask = pairs[0].image.copy(), pairs[0].mask
    image[tuple(np.argwhere(mask == 1 if change == "object" else away_from(mask, 6))[0])] ^= 1
    digest = synth.formats.write_shard([dataclasses.replace(pairs[0], image=image), *pairs[1:]], out / name)
    ledger = out / "ledger" / "00000.json"
    entry = json.loads(ledger.read_text())
    ledger.write_text(json.dumps({**entry, "files": {**entry["files"], name: digest}}))
    return pairs[0].id


@pytest.mark.parametrize("mode", PAINTS)
@pytest.mark.parametrize("pairs", [PAIRS, make_phantom(4, size=32, bit_depth=16, n_classes=3)], ids=["8 bit", "16 bit"])
def test_what_a_mode_keeps_is_the_sources_in_the_files(mode: str, pairs: PairSet, tmp_path: Path) -> None:
    generator = painter(mode, pairs=pairs)
    assert generator.keeps == KEEPS[mode]
    made = synth.draw(generator, pairs, n=3, seed=3, out=tmp_path / "made", config=CONFIG)
    source = synth.draw(None, pairs, n=3, seed=3, out=tmp_path / "source", config=CONFIG, size=32)
    for a, b in zip(made, source, strict=True):
        foreground = (b.mask > 0) & (b.mask != IGNORE)
        keep = {"surroundings": foreground, "object": away_from(b.mask, generator.ring_px),
                "layout": np.zeros_like(foreground)}[mode]
        told = b.mask != IGNORE  # unknown is what is mirrored into the frame, where the source still shows
        assert a.image.dtype == pairs.info.dtype and np.array_equal(a.mask[told], b.mask[told])
        assert np.array_equal(a.image[keep], b.image[keep]) and (mode == "layout") == (not keep.any())
        assert (a.image[~keep] != b.image[~keep]).mean() > 0.5, "painted nothing"
        assert json.loads(a.made.settings)["mode"] == mode
        assert a.made.kept_sha256 == kept_hash(b.image, b.mask, a.made.settings)
        assert (a.made.kept_sha256 == "") == (mode == "layout")
    assert synth.verify_shards(tmp_path / "made") == [] == synth.verify_shards(tmp_path / "source")


def test_what_a_removed_object_was_filled_with_is_never_background(tmp_path: Path) -> None:
    masks, rng = np.zeros((4, 32, 32), np.uint8), np.random.default_rng(0)
    for mask, side in zip(masks, (20, 4, 20, 4), strict=True):  # a small object leaves much of a large one's hole
        mask[16 - side // 2:16 + side // 2, 16 - side // 2:16 + side // 2] = 1
    images = np.where(masks == 1, 230, rng.integers(60, 100, masks.shape)).astype(np.uint8)
    pairs, generator = memory_set(images, masks, INFO, ids=list("abcd"), groups=list("abcd")), painter("object")
    layout = {"keep_in": "none", "recombine": 1.0, "recombine_mode": "replace"}
    made, n_unknown = synth.draw(generator, pairs, n=8, out=tmp_path / "made", config={**CONFIG, "layout": layout}), 0
    for pair in made:
        edit, parent = layout_from_json(pair.made.layout), pairs[pairs.ids.index(pair.made.parents[0])]
        was = apply_layout(parent.image[None], parent.mask, dataclasses.replace(edit, recombined=None)).labels == 1
        stays = away_from(pair.mask, generator.ring_px)
        assert edit.recombined is None or not (was & (pair.mask == 0) & stays).any()
        assert not (was & (pair.mask == IGNORE) & ~stays).any(), "what is painted is background"
        n_unknown += int((was & (pair.mask == IGNORE)).sum())
    assert n_unknown > 100 and synth.verify_shards(tmp_path / "made") == []


def test_the_frame_is_kept_beside_an_object_too() -> None:
    mask, frame = torch.zeros(1, 32, 32, dtype=torch.long), torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 10:15, 10:15], frame[..., :9] = 1, True
    for mode in PAINTS:
        generator = painter(mode)
        keep = generator.kept(mask, frame)
        assert torch.equal(keep, generator.kept(mask) | frame)
        assert torch.equal(generator.kept(mask), kept_by(mask, generator.sampler_settings()))


@pytest.mark.parametrize(("mode", "found", "passed"), [("object", "surroundings", "object"),
                                                       ("surroundings", "object", "surroundings")])
def test_the_audit_finds_a_changed_pixel_of_what_was_kept(mode: str, found: str, passed: str, tmp_path: Path) -> None:
    for change in (found, passed):
        out = tmp_path / change
        synth.draw(painter(mode), PAIRS, n=2, seed=3, out=out, config=CONFIG)
        name = rewrite(out, change)
        faults = synth.verify_shards(out)
        assert len(faults) == (change == found) and all(
            f == f"{name}: a pixel of the {KEEPS[mode]} differs from the transformed source" for f in faults)


def test_redrawn_pairs_vouch_for_no_pixel_and_their_seam_can_be_looked_for(tmp_path: Path) -> None:
    generator = painter("surroundings")
    redrawn = generator.with_sampler(generator.sampler.model_copy(update={"texture": "redrawn"}))
    made = synth.draw(redrawn, PAIRS, n=2, seed=3, out=tmp_path / "made", config=CONFIG)
    assert {p.made.kept_sha256 for p in made} == {""} and synth.verify_shards(tmp_path / "made") == []
    found = synth.draw(generator, PAIRS, n=2, seed=3, out=tmp_path / "kept", config=CONFIG)
    for one, other in zip(made, found, strict=True):
        assert (one.image != other.image)[other.mask > 0].mean() > 0.9 and np.array_equal(one.mask, other.mask)
    result = audit_seam(redrawn, PAIRS, n=4, settings=SeamSettings(steps=2, widths=(4,)))
    assert result.n_keep_pixels > 0


def test_the_seam_gate_looks_at_redrawn_pairs_too(tmp_path: Path) -> None:
    redrawn = painter().with_sampler(SAMPLER.model_copy(update={"texture": "redrawn"}))
    probe = fit_probe(redrawn, PAIRS, n=8, settings=SeamSettings(steps=2, widths=(4,)), out=tmp_path / "probe")
    gates = dataclasses.replace(default_gates(None, PAIRS, size=32, seam=probe), max_correlation=2.0)
    made = synth.draw(redrawn, PAIRS, n=4, out=tmp_path / "made", gates=gates, config=CONFIG)
    for pair in made:
        unit = pixels_to_unit(to_channels(pair.image)[None], PAIRS.info.intensity_range)
        seen = float(probe.score(unit, torch.from_numpy(pair.mask == 1)[None]))
        assert pair.made.scores["seam"] == pytest.approx(seen, abs=1e-5) and seen != 0.5


def test_novelty_is_that_of_what_was_painted() -> None:
    gates = default_gates(None, PAIRS, size=32)
    images = pixels_to_unit(np.stack([to_channels(p.image) for p in PAIRS]), PAIRS.info.intensity_range)
    labels = torch.from_numpy(np.stack([p.mask for p in PAIRS]).astype(np.int64))
    painted = ~kept_by(labels, {"mode": "object", "ring_px": 4})
    assert all(v.scores["correlation"] > 0.999 for v in run_gates(images, labels, gates)[1]), "nothing is new"
    images[painted[:, None]] = torch.rand(int(painted.sum()), generator=torch.Generator().manual_seed(0)) - 0.5
    assert all(v.scores["correlation"] < 0.6 for v in run_gates(images, labels, gates, painted=painted)[1])


def test_without_repainting_nothing_changes_and_with_it_objects_do(tmp_path: Path) -> None:
    def drawn(name: str, **more: float) -> PairSet:
        return synth.draw(painter(), PAIRS, n=6, seed=3, out=tmp_path / name, config={**CONFIG, **more})

    plain, zero, some, every = (drawn("plain"), drawn("zero", repaint_share=0), drawn("some", repaint_share=0.5),
                                drawn("every", repaint_share=1))
    for part in ("data", "ledger"):
        assert files_of(tmp_path / "plain" / part) == files_of(tmp_path / "zero" / part)
    n_repainted = 0
    for p, z, s, e in zip(plain, zero, some, every, strict=True):
        fore = p.mask == 1
        assert np.array_equal(z.image, p.image) and np.array_equal(e.mask, p.mask) and e.made.seed == p.made.seed
        assert (e.image[fore] != p.image[fore]).mean() > 0.5
        assert json.loads(e.made.layout)["repainted"] is True and "repainted" not in json.loads(p.made.layout)
        assert layout_from_json(e.made.layout) == layout_from_json(p.made.layout)
        one_of = e if "repainted" in s.made.layout else p
        assert np.array_equal(s.image[fore], one_of.image[fore]) and s.made.layout == one_of.made.layout
        n_repainted += one_of is e
    assert 0 < n_repainted < 6
    assert all(synth.verify_shards(tmp_path / name) == [] for name in ("zero", "some", "every"))


def test_repainting_needs_a_generator_that_knows_objects(tmp_path: Path) -> None:
    def refused(generator: InpaintPipeline, match: str) -> None:
        with pytest.raises(UserError, match=match):
            synth.draw(generator, PAIRS, n=1, out=tmp_path / "no", config={"repaint_share": 0.5})

    refused(painter(tells_labels=False), "denoiser.labels=true")
    refused(painter("object"), "keeps: surroundings")
    refused(painter("layout"), "sampler.mode=surroundings")
    assert not (tmp_path / "no").exists()


INFO = DataInfo(("background", "square"), 1, 8, (0.0, 255.0))


def empty_images(n: int = 4, *, shape: tuple[int, int] = (32, 32), info: DataInfo = INFO) -> ImageSet:
    """Returns smooth dark images in two groups, all without an object; the last has a black frame on its left."""
    rng = np.random.default_rng(8)
    images = []
    for _ in range(n):
        texture = ndimage.gaussian_filter(rng.standard_normal(shape), 3, mode="reflect")
        images.append(np.clip(80 + 20 * texture / texture.std(), 30, 150).astype(info.dtype))
    images[-1][:, :shape[1] // 3] = 0
    return memory_set(images, None, info, ids=[f"h{i}" for i in range(n)], groups=[f"clinic{i % 2}" for i in range(n)])


def judged(pairs: PairSet = PAIRS) -> Gates:
    """Returns gates whose judge sees what is bright and lets anything pass, as an untrained painter needs it."""
    gates = default_gates(brightness_judge, pairs, size=32)
    return dataclasses.replace(gates, min_faithfulness=0.0, max_correlation=1.0)


def inserted(out: Path, hosts: ImageSet, *, n: int = 12, generator: InpaintPipeline | None = None,
             **more: object) -> PairSet:
    """Returns n pairs with objects put into `hosts`."""
    return synth.draw(generator or painter(), PAIRS, n=n, seed=5, gates=judged(), hosts=hosts, out=out,
                      config={**CONFIG, "layout": {"scale": [0.6, 0.8]}, **more})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[PairSet, Path]:
    """Returns pairs with objects put into empty images, among which lay one that shows an object."""
    busy = memory_set([PAIRS[0].image], None, INFO, ids=["busy"], groups=["clinic9"])
    hosts = ImageSet([*busy.items, *empty_images().items], INFO)
    out = tmp_path_factory.mktemp("insert") / "made"
    return inserted(out, hosts, n=24), out


def test_around_an_inserted_object_the_host_is_untouched(made: tuple[PairSet, Path]) -> None:
    pairs, out = made
    hosts, framed = {pair.id: pair for pair in empty_images()}, 0
    groups = dict(zip(PAIRS.ids, PAIRS.groups, strict=True))
    for pair in pairs:
        host, layout = hosts[pair.made.parents[0]], json.loads(pair.made.layout)
        keep = away_from(pair.mask, json.loads(pair.made.settings)["ring_px"])
        assert pair.id.startswith("insert-") and layout["host"] == host.id
        assert np.array_equal(pair.image[keep], host.image[keep]) and (pair.image != host.image).any()
        assert pair.group == host.group == pair.made.parent_groups[0]
        assert set(pair.made.parent_groups[1:]) == {groups[p] for p in pair.made.parents[1:]} and pair.made.parents[1:]
        assert json.loads(pair.made.settings)["mode"] == "object" and (pair.mask == 1).any()
        frame = detect_frame(to_channels(host.image))
        assert not (frame & (pair.mask == 1)).any() and np.array_equal(pair.image[frame], host.image[frame])
        framed += frame.any()
    assert framed > 0 and len({p.made.parents[0] for p in pairs}) == 4, "each clear host, and the busy one never"
    assert synth.verify_shards(out) == [] and "clinic1" in (out / "README.md").read_text()


def test_the_children_of_a_hosts_group_can_be_recalled(made: tuple[PairSet, Path]) -> None:
    pairs = read_shards(made[1])
    for group in ("clinic0", "g1"):
        rest = pairs.without_group(group)
        assert 0 < len(rest) < len(pairs)
        assert all(group not in item.made.parent_groups and item.group != group for item in rest.items)


def test_the_same_insertions_again_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        inserted(tmp_path / name, empty_images(), n=5)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    with pytest.raises(UserError, match="another draw run .*hosts"):
        inserted(tmp_path / "one", empty_images(5), n=5)


def test_what_cannot_be_inserted_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    out, hosts = tmp_path / "no", empty_images()
    busy = memory_set([p.image for p in PAIRS], None, INFO, ids=PAIRS.ids, groups=PAIRS.groups)
    with pytest.raises(UserError, match="judge"):
        synth.draw(painter(), PAIRS, n=2, hosts=hosts, out=out)
    with pytest.raises(UserError, match="judge"):
        synth.draw(painter(), PAIRS, n=2, hosts=hosts, gates=default_gates(None, PAIRS, size=32), out=out)
    with pytest.raises(UserError, match="no generator"):
        synth.draw(None, PAIRS, n=2, hosts=hosts, gates=judged(), size=32, out=out)
    with pytest.raises(UserError, match="sees an object on each of the 6"):
        inserted(out, busy)
    with pytest.raises(UserError, match="denoiser.labels=true"):
        inserted(out, hosts, generator=painter(tells_labels=False))
    with pytest.raises(UserError, match="repaint_share=0"):
        inserted(out, hosts, repaint_share=0.5)
    with pytest.raises(UserError, match="16"):
        inserted(out, empty_images(info=dataclasses.replace(INFO, bit_depth=16)))
    assert not out.exists()


def test_hosts_of_other_sizes_serve_a_native_generator(tmp_path: Path) -> None:
    fit = painter()
    own = {k: v for k, v in fit.config.items() if not k.startswith("_") and k not in fit.components}
    native = InpaintPipeline(**fit.components, **{**own, "scale": "native"})
    hosts = empty_images(shape=(40, 56))
    by_id = {pair.id: pair for pair in hosts}
    for pair in inserted(tmp_path / "made", hosts, n=3, generator=native):
        keep = away_from(pair.mask, native.ring_px)
        assert pair.image.shape == (40, 56) and (pair.mask == 1).any()
        assert np.array_equal(pair.image[keep], by_id[pair.made.parents[0]].image[keep])


def test_labels_are_laid_amid_another_size() -> None:
    labels, rng = np.arange(12, dtype=np.uint8).reshape(3, 4), torch.Generator().manual_seed(0)
    assert np.array_equal(lay_over(rng, labels, (3, 4))[0], labels)
    for shape in ((7, 9), (2, 3), (2, 9)):
        places = set()
        for _ in range(400):
            out, (top, left) = lay_over(rng, labels, shape)
            wide = np.pad(labels, [(9, 9)] * 2)[9 - top:9 - top + shape[0], 9 - left:9 - left + shape[1]]
            assert out.shape == shape and np.array_equal(out, wide)
            places.add((top, left))
        assert len(places) == (abs(shape[0] - 3) + 1) * (abs(shape[1] - 4) + 1)


def test_objects_that_the_border_cuts_are_no_donors() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[0:6, 4:10], mask[15:20, 15:20], mask[16:18, 16:18], mask[25, 25] = 1, 1, 2, IGNORE
    whole = uncut(np.random.default_rng(0).integers(0, 255, (1, 32, 32), np.uint8), mask)
    assert not whole[:10].any() and np.array_equal(whole[12:24], mask[12:24]) and whole[25, 25] == 0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with labelled/, hosts/ (images) and painter/ (untrained)."""
    home = tmp_path_factory.mktemp("modes")
    synth.write_folder(PAIRS, home / "labelled")
    synth.write_folder(PAIRS, home / "hosts")
    painter().save_pretrained(home / "painter")
    return home


def test_the_shell_takes_presets_and_sampler_settings(home: Path, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture) -> None:
    words = ("draw", CONFIGS / "draw.yaml", f"data.labelled={home}/labelled", f"generator={home}/painter", "n=2",
             f"out={tmp_path}/made")
    assert synth_cli(*words, "preset=fast", "sampler.mode=object", "data.hosts=x", "--dry-run") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["preset"] == "fast" and printed["data"]["hosts"] == "x" and printed["repaint_share"] == 0
    assert printed["sampler"]["mode"] == "object" and printed["sampler"]["n_steps"] == 8
    assert synth_cli(*words, "--dry-run") == 0
    assert yaml.safe_load(capsys.readouterr().out)["sampler"] == {}
    assert synth_cli(*words, "preset=fast", "sampler.mode=object", "sampler.guidance=1.5") == 0
    for pair in read_shards(tmp_path / "made"):
        settings = json.loads(pair.made.settings)
        assert (settings["mode"], settings["n_steps"], settings["guidance"]) == ("object", 8, 1.5)
        assert settings["margin_cells"] == [1, 1], "the pipeline's own"
    assert synth_cli("audit", tmp_path / "made") == 0
    assert "another draw run" in mistake(capsys, *words)
    assert "fast" in mistake(capsys, *words, "preset=quick", "--dry-run")
    assert "n_steps" in mistake(capsys, *words, "sampler.n_stps=3", "--dry-run")
    assert "judge=" in mistake(capsys, *words[:-1], f"out={tmp_path}/other", f"data.hosts={home}/hosts")
    for word in ("preset=fast", "data.hosts=x", "repaint_share=0.5"):
        assert "--no-paint" in mistake(capsys, *words, word, "--no-paint")

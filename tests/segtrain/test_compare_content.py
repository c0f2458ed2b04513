"""What a comparison knows its runs by: what lies in files and not where, nothing that another label draw decides."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom
from test_compare import SETTINGS, pairs

import segtrain
from segtrain.compare.arms import REAL
from segtrain.compare.data import Parts
from segtrain.compare.prepare import prepare
from segtrain.compare.runs import Bench, Job
from segtrain.compare.settings import load_settings
from segtrain.models import build_model
from segtrain.models.weights import save_encoder
from segtrain.settings import ModelSettings
from synth.core.checks import UserError
from synth.core.pairs import PairSet, memory_set
from synth.diffusion.codec import PixelCodec

SEGMENT, INPAINT = SETTINGS["segment"], SETTINGS["inpaint"]


def bench_of(settings: dict, out: Path, *, parts: Parts | None = None) -> Bench:
    """Returns the bench of some settings, of which nothing was run yet."""
    resolved = load_settings(settings)
    return Bench(resolved, parts or prepare(resolved, pairs()), out)


def test_other_weights_in_the_same_file_are_another_run(tmp_path: Path) -> None:
    def folders(path: Path, seed: int) -> tuple[Path, Path]:
        model = ModelSettings(name="tiny", channels=(4, 8, 8))
        save_encoder(build_model("tiny", 1, 3, model, seed=seed).main(), path)
        bench = bench_of({**SETTINGS, "segment": {**SEGMENT, "model": {**SEGMENT["model"], "weights": str(path)}}},
                         tmp_path)
        draw = bench.parts.draws[0]
        return bench.segmenter_folder(Job(REAL, draw)), bench.referee_folder(draw)

    first, other = folders(tmp_path / "a.safetensors", 0), folders(tmp_path / "a.safetensors", 1)
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert folders(tmp_path / "moved.safetensors", 1) == other, "where they lie says nothing"


def test_another_version_of_the_code_is_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_of(SETTINGS, tmp_path)
    job = Job(REAL, bench.parts.draws[0])
    before = bench.segmenter_folder(job)
    monkeypatch.setattr(sys.modules[Bench.__module__], "VERSION", "0.0.0")
    assert bench.segmenter_folder(job) != before


def test_another_autoencoder_in_the_same_folder_is_another_generator(tmp_path: Path) -> None:
    def folder(home: Path, patch: int) -> Path:
        PixelCodec(in_channels=1, sample_size=32, patch=patch).save_pretrained(home)
        own = {**INPAINT["autoencoder"], "pretrained": str(home)}
        bench = bench_of({**SETTINGS, "inpaint": {**INPAINT, "autoencoder": own}}, tmp_path)
        return bench.generator_folder("inpaint", bench.parts.draws[0])

    first, other = folder(tmp_path / "codec", 2), folder(tmp_path / "codec", 4)
    assert first != other == folder(tmp_path / "moved", 4)


def discs(radii: list[int]) -> PairSet:
    """Returns pairs of 64 px, each of its own group, that show one disc of a radius each."""
    plain, (y, x) = make_phantom(len(radii), size=64, n_groups=len(radii)), np.mgrid[:64, :64]
    masks = [((y - 32) ** 2 + (x - 32) ** 2 <= r * r).astype(np.uint8) for r in radii]
    return memory_set([p.image for p in plain], masks, plain.info, ids=plain.ids, groups=plain.groups)


def test_one_draws_masks_do_not_decide_where_another_ones_generator_paints(tmp_path: Path) -> None:
    """The generator learns no label, so all draws share it; but autoencoder.kind=auto looks at their masks' objects."""
    settings = {**SETTINGS, "size": 64, "n_labelled": 1, "draws": 2,
                "inpaint": {**INPAINT, "autoencoder": {**INPAINT["autoencoder"], "kind": "auto"}}}
    resolved = load_settings(settings)
    names = [draw.labelled[0] for draw in prepare(resolved, discs([20] * 8)).draws]
    thin = discs([3 if name == names[1] else 20 for name in discs([20] * 8).ids])
    bench = bench_of(settings, tmp_path, parts=prepare(resolved, thin))
    assert [draw.labelled[0] for draw in bench.parts.draws] == names and len(set(names)) == 2
    assert [bench.content.space(draw) for draw in bench.parts.draws] == ["kl", "pixels"]
    assert len({bench.generator_folder("inpaint", draw) for draw in bench.parts.draws}) == 2
    alike = bench_of(settings, tmp_path, parts=prepare(resolved, discs([20] * 8)))
    assert len({alike.generator_folder("inpaint", draw) for draw in alike.parts.draws}) == 1


def test_the_space_of_the_draw_is_the_one_that_is_fitted(tmp_path: Path) -> None:
    """Another number of labels may show other objects: in the same folder that is not another run."""
    settings = {**SETTINGS, "size": 64, "draws": 1, "arms": ["real", "real+inpaint"], "synthetic": {"n": 1},
                "inpaint": {**INPAINT, "autoencoder": {**INPAINT["autoencoder"], "kind": "auto"}}}
    first = prepare(load_settings({**settings, "n_labelled": 1}), discs([20] * 8)).draws[0].labelled
    mixed = discs([20 if name in first else 3 for name in discs([20] * 8).ids])
    for n in (1, 4):
        segtrain.compare({**settings, "n_labelled": n}, mixed, out=tmp_path / "out")
    assert len(list((tmp_path / "out" / "cache").glob("painter-*"))) == 2


@pytest.mark.parametrize(("method", "match"), [
    ("fixmach_ema", "no such method"), ("supervised", "does not use them"),
    ("annotation_efficient", "stored=")])
def test_a_method_that_cannot_be_is_refused_before_anything_is_trained(tmp_path: Path, method: str,
                                                                       match: str) -> None:
    settings = {**SETTINGS, "arms": ["real", "real+unlabelled"], "method": method}
    with pytest.raises(UserError, match=match):
        segtrain.compare(settings, pairs(), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_of_pairs_make_other_runs(tmp_path: Path) -> None:
    weighted = PairSet([dataclasses.replace(item, weight=0.5) for item in pairs().items], pairs().info)
    resolved = load_settings(SETTINGS)
    plain, other = (Bench(resolved, prepare(resolved, some), tmp_path) for some in (pairs(), weighted))
    assert plain.segmenter_folder(Job(REAL, plain.parts.draws[0])) != other.segmenter_folder(
        Job(REAL, other.parts.draws[0]))

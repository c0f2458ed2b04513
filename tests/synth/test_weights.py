"""What a pair counts in training: kept by every format, by drawing and by curation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_draw import CONFIG, PAIRS, PIPELINE
from test_formats import WRITERS
from tiny import brightness_judge

import synth
from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.formats import load_images, load_pairs, shard_name, write_shard


@pytest.mark.parametrize("writer", WRITERS)
def test_weights_are_read_back_from_every_format(tmp_path: Path, phantom_pairs: PairSet, writer: str) -> None:
    wanted = [1.0, 0.0, 0.1 + 0.2, *[1 / 3] * (len(phantom_pairs) - 3)]
    items = [dataclasses.replace(i, weight=w) for i, w in zip(phantom_pairs.items, wanted, strict=True)]
    WRITERS[writer](PairSet(items, phantom_pairs.info), tmp_path / "set")
    assert load_pairs(tmp_path / "set").weights == load_images(tmp_path / "set").weights == tuple(wanted)
    WRITERS[writer](phantom_pairs, tmp_path / "plain")
    assert load_pairs(tmp_path / "plain").weights == ()


def test_a_parquet_shard_says_what_is_no_weight_and_takes_sets_that_say_none(tmp_path: Path,
                                                                             phantom_pairs: PairSet) -> None:
    name = tmp_path / shard_name("train", 0, 1)
    write_shard([dataclasses.replace(pair, weight=0.5) for pair in phantom_pairs], name)
    whole = pq.read_table(name)
    pq.write_table(whole.drop_columns("weight"), name)
    assert load_pairs(tmp_path).weights == ()
    pq.write_table(whole.drop_columns("weight").append_column("weight", [[1.5] * len(phantom_pairs)]), name)
    with pytest.raises(UserError, match=rf"{phantom_pairs.ids[0]}.*weight 1.5 is no number from 0 to 1"):
        load_pairs(tmp_path)


def test_a_drawn_pair_weighs_what_its_least_sure_parent_does_and_keeps_it_when_curated_and_exported(
        tmp_path: Path) -> None:
    weights = dict(zip(PAIRS.ids, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5), strict=True))
    real = PairSet([dataclasses.replace(i, weight=weights[i.id]) for i in PAIRS.items], PAIRS.info)
    config = {**CONFIG, "layout": {"recombine": 0.5}}
    made = synth.draw(PIPELINE, real, n=9, seed=3, out=tmp_path / "made", config=config)
    assert any(len(item.made.parents) > 1 for item in made.items) and len(set(made.weights)) > 2
    assert made.weights == tuple(min(weights[name] for name in item.made.parents) for item in made.items)
    synth.write_imagefolder(made, tmp_path / "imagefolder")
    synth.write_folder(made, tmp_path / "folder")
    curated = synth.curate(tmp_path / "made", brightness_judge, None, real, out=tmp_path / "curated",
                           config={"curate": {"ignore": 9, "min_agreement": 0}})
    for found in (synth.load_pairs(tmp_path / "imagefolder"), synth.load_pairs(tmp_path / "folder"), curated):
        assert {i.id: i.weight for i in found.items} == {i.id: i.weight for i in made.items}
    plain = synth.draw(PIPELINE, PAIRS, n=2, seed=3, out=tmp_path / "plain", config=config)
    assert plain.weights == ()

"""Every format reads back what was written, and `datasets` opens it."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom
from PIL import Image

from synth.core.checks import UserError
from synth.core.files import sha256
from synth.core.pairs import ImageSet, Pair, PairSet, Provenance, memory_set
from synth.core.taught import Taught
from synth.formats import (
    encode_png,
    load_images,
    load_pairs,
    parse_mask_map,
    read_shards,
    shard_name,
    shards,
    write_dataset_files,
    write_folder,
    write_imagefolder,
    write_shard,
)
from synth.formats.decode import decode_image, decode_mask


def write_shards(pairs: PairSet, out: Path) -> None:
    listed = list(pairs)
    cuts = [listed[:5], [], listed[5:]]
    for i, part in enumerate(cuts):
        write_shard(part, out / shard_name("train", i, len(cuts)))
    write_dataset_files(out, pairs.info, "---\nlicense: cc0-1.0\n---\n# Phantom\n")


WRITERS: dict[str, Callable[[PairSet, Path], None]] = {
    "folder": write_folder, "imagefolder": write_imagefolder, "shards": write_shards}


def test_a_mask_of_background_and_ignore_alone_is_read_from_every_layout(tmp_path: Path) -> None:
    phantom = make_phantom(3, size=24)
    pairs = list(phantom)
    contested = pairs[1].mask * np.uint8(255)
    made = Provenance(("p",), ("g",), 1, "cafe", "{}", "{}")
    pairs[1] = dataclasses.replace(pairs[1], mask=contested, origin="synthetic", made=made)
    for name, write in WRITERS.items():
        out = tmp_path / name
        items = [dataclasses.replace(item, origin=pair.origin, made=pair.made, read=lambda p=pair: (p.image, p.mask))
                 for item, pair in zip(phantom.items, pairs, strict=True)]
        write(PairSet(items, phantom.info), out)
        assert np.array_equal(load_pairs(out)[1].mask, contested), name
    (tmp_path / "shards" / "dataset.json").unlink()
    assert np.array_equal(load_pairs(tmp_path / "shards")[1].mask, contested), "its provenance says who wrote it"


def assert_same(left: ImageSet, right: ImageSet) -> None:
    assert left.ids == right.ids
    assert left.groups == right.groups
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.image.dtype == b.image.dtype
        assert (a.mask is None) == (b.mask is None)
        if a.mask is not None:
            np.testing.assert_array_equal(a.mask, b.mask)
            assert b.mask.dtype == np.uint8


def drawn(pair: Pair, number: int) -> Pair:
    made = Provenance((pair.id, "other"), (pair.group, "patient_x"), 2**63 - 1 - number, "cafe", '{"flip":true}',
                      '{"steps":8}', "ab12", {"faithful": 0.25, "seam": float(number)}, "rejected", "seam: too visible")
    return dataclasses.replace(pair, id=f"made_{number:04d}", origin="synthetic", made=made)


@pytest.mark.parametrize("kind", [(1, 8), (3, 8), (1, 16)])
@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_written_is_read_back(tmp_path: Path, writer: str, kind: tuple[int, int]) -> None:
    pairs = make_phantom(8, size=24, n_groups=3, channels=kind[0], bit_depth=kind[1], n_classes=3)
    WRITERS[writer](pairs, tmp_path / "set")
    loaded = load_pairs(tmp_path / "set")
    assert_same(pairs, loaded)
    assert loaded.info == pairs.info
    images = load_images(tmp_path / "set")
    assert [p.mask for p in images] == [None] * 8
    assert images.arrays(24).fingerprint() == pairs.arrays(24).without_masks().fingerprint()


@pytest.mark.parametrize("writer", ["imagefolder", "shards"])
def test_provenance_is_read_back(tmp_path: Path, phantom_pairs: PairSet, writer: str) -> None:
    wanted = [drawn(pair, i) for i, pair in enumerate(phantom_pairs)]
    if writer == "shards":
        write_shard(wanted, tmp_path / shard_name("train", 0, 1))
        write_dataset_files(tmp_path, phantom_pairs.info, "# card")
    else:
        plain = memory_set([p.image for p in wanted], [p.mask for p in wanted], phantom_pairs.info,
                           ids=[p.id for p in wanted], groups=[p.group for p in wanted])
        items = [dataclasses.replace(item, origin=p.origin, made=p.made)
                 for item, p in zip(plain.items, wanted, strict=True)]
        (tmp_path / "sub").mkdir()
        write_imagefolder(PairSet(items, phantom_pairs.info), tmp_path / "sub", card="# card")
    loaded = load_pairs(tmp_path if writer == "shards" else tmp_path / "sub")
    assert [p.made for p in loaded] == [p.made for p in wanted]
    assert {p.origin for p in loaded} == {"synthetic"}
    assert len(loaded.without_group(wanted[0].group)) == sum(p.group != wanted[0].group for p in wanted)


def test_datasets_opens_shards(tmp_path: Path, phantom_pairs: PairSet) -> None:
    import datasets
    write_shards(phantom_pairs, tmp_path / "set")
    write_shard([drawn(phantom_pairs[0], 1)], tmp_path / "set" / shard_name("rejected", 0, 1))
    opened = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    assert set(opened) == {"train", "rejected"}
    for row, pair in zip(opened["train"], phantom_pairs, strict=True):
        np.testing.assert_array_equal(np.array(row["image"]), pair.image)
        np.testing.assert_array_equal(np.array(row["mask"]), pair.mask)
        assert (row["id"], row["group"], row["parents"]) == (pair.id, pair.group, [])
    assert opened["rejected"][0]["seed"] == 2**63 - 2
    assert json.loads(opened["rejected"][0]["scores"]) == {"faithful": 0.25, "seam": 1.0}


@pytest.mark.parametrize("builder", ["imagefolder", "path"])
def test_datasets_opens_an_imagefolder(tmp_path: Path, builder: str) -> None:
    import datasets
    pairs = make_phantom(5, size=24, bit_depth=16)
    write_imagefolder(pairs, tmp_path / "set", card="# A card")
    cache = str(tmp_path / "cache")
    where = {"data_dir": str(tmp_path / "set")} if builder == "imagefolder" else {}
    opened = datasets.load_dataset(builder if where else str(tmp_path / "set"), cache_dir=cache, **where)
    assert len(opened["train"]) == 5
    for row in opened["train"]:
        pair = pairs[pairs.ids.index(row["id"])]
        np.testing.assert_array_equal(np.array(row["image"]), pair.image)
        np.testing.assert_array_equal(np.array(row["mask"]), pair.mask)


def test_datasets_opens_an_imagefolder_whatever_its_files_are_called(tmp_path: Path) -> None:
    import datasets
    pairs = make_phantom(2, size=24)
    for k, names in enumerate((["test_1", "train_2"], ["only"])):
        renamed = [dataclasses.replace(item, id=name) for name, item in zip(names, pairs.items, strict=False)]
        found = PairSet(renamed, pairs.info, taught=Taught.of_sets([pairs]))
        write_imagefolder(found, tmp_path / f"set{k}")
        opened = datasets.load_dataset(str(tmp_path / f"set{k}"), cache_dir=str(tmp_path / "cache"))["train"]
        assert sorted(opened["id"]) == names
        assert np.array_equal(np.array(opened[0]["mask"]), found[found.ids.index(opened[0]["id"])].mask)


def test_a_shard_is_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    pairs = list(make_phantom(6, size=24))
    here = write_shard([drawn(p, i) for i, p in enumerate(pairs)], tmp_path / "here.parquet")
    (tmp_path / "pairs.pickle").write_bytes(pickle.dumps([drawn(p, i) for i, p in enumerate(pairs)]))
    code = ("import pickle, sys, pathlib; from synth.formats import write_shard; "
            "print(write_shard(pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()), pathlib.Path(sys.argv[2])))")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "pairs.pickle"), str(tmp_path / "there.parquet")],
                         capture_output=True, text=True, check=True)
    assert run.stdout.strip() == here == sha256((tmp_path / "there.parquet").read_bytes())
    other = write_shard([drawn(p, i + 1) for i, p in enumerate(pairs)], tmp_path / "other.parquet")
    assert other != here


def test_shards_are_read_lazily_and_in_any_order(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_shards(phantom_pairs, tmp_path)
    loaded = pickle.loads(pickle.dumps(read_shards(tmp_path)))
    order = np.random.default_rng(0).permutation(len(phantom_pairs))
    assert_same(phantom_pairs.select(order), loaded.select(order))
    for path in (tmp_path / "data").glob("*.parquet"):
        path.rename(path.with_suffix(".gone"))
    shards._row_group.cache_clear()
    with pytest.raises(UserError, match="does not open as parquet"):
        loaded[0]


def test_a_missing_shard_and_an_unknown_split_are_told(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_shards(phantom_pairs, tmp_path)
    with pytest.raises(UserError, match=r"'test'.*\['train'\]"):
        load_pairs(tmp_path, split="test")
    (tmp_path / shard_name("train", 1, 3)).unlink()
    with pytest.raises(UserError, match="train-00001-of-00003.parquet is missing"):
        read_shards(tmp_path)


def test_foreign_parquet_needs_only_image_and_mask(tmp_path: Path, phantom_pairs: PairSet) -> None:
    import datasets
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {"image": [Image.fromarray(p.image) for p in phantom_pairs],
            "mask": [Image.fromarray(p.mask) for p in phantom_pairs]}
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    loaded = load_pairs(tmp_path)
    assert loaded.ids[:2] == ("train-000000", "train-000001") == loaded.groups[:2]
    np.testing.assert_array_equal(loaded[3].image, phantom_pairs[3].image)
    assert loaded.info.classes == ("background", "class_1")


@pytest.mark.parametrize("writer", ["folder", "imagefolder"])
def test_spacing_weights_and_domains_come_back(tmp_path: Path, phantom_pairs: PairSet, writer: str) -> None:
    items = [dataclasses.replace(item, spacing=(0.5 + i, 0.75), weight=0.25 + 0.5 * (i % 2),
                                 domain="scanner_b" if i else None) for i, item in enumerate(phantom_pairs.items)]
    WRITERS[writer](PairSet(items, phantom_pairs.info), tmp_path / "set")
    loaded = load_pairs(tmp_path / "set")
    for mine, theirs in zip(items, loaded.items, strict=True):
        assert (mine.spacing, mine.weight, mine.domain) == (theirs.spacing, theirs.weight, theirs.domain)


def test_names_that_are_numbers_are_read_as_names(tmp_path: Path, phantom_pairs: PairSet) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    write_imagefolder(phantom_pairs, tmp_path / "set")
    path = tmp_path / "set" / "metadata.jsonl"
    rows = [json.loads(line) | {"id": i, "group": i // 2, "parents": [i], "parent_groups": [7 + i % 2]}
            for i, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "shards" / "data").mkdir(parents=True)
    cells = [{"bytes": (tmp_path / "set" / row["file_name"]).read_bytes()} for row in rows]
    pq.write_table(pa.table({"image": cells, "group": [row["group"] for row in rows]}),
                   tmp_path / "shards" / shard_name("train", 0, 1))
    found = load_pairs(tmp_path / "set")
    assert found.ids[:2] == ("0", "1")
    assert found.items[0].made.parent_groups == ("7",)
    assert found.groups == load_images(tmp_path / "shards").groups == tuple(str(i // 2) for i in range(len(rows)))
    assert len(found.without_group("0")) == len(rows) - 2
    assert len(found.without_group("7")) == len(rows) // 2


def test_a_length_that_is_none_is_named(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_imagefolder(phantom_pairs, tmp_path / "set")
    path = tmp_path / "set" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    for wrong in ({"row_mm": 0.5}, {"row_mm": 0.5, "column_mm": 0}, {"row_mm": "wide", "column_mm": 1}):
        path.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | wrong), *lines[2:]]))
        with pytest.raises(UserError, match=r"line 2.*not two lengths in mm"):
            load_pairs(tmp_path / "set")


def test_a_plain_folder_of_drawn_pairs_is_warned_of(tmp_path: Path, phantom_pairs: PairSet,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    write_folder(phantom_pairs, tmp_path / "real")
    assert not caplog.records
    made = [dataclasses.replace(item, made=drawn(pair, i).made)
            for i, (item, pair) in enumerate(zip(phantom_pairs.items, phantom_pairs, strict=True))]
    write_folder(PairSet(made[:3], phantom_pairs.info), tmp_path / "made")
    assert "3 of its pairs were drawn" in caplog.text
    assert "imagefolder" in caplog.text


def test_items_read_from_disk_each_time(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_folder(phantom_pairs, tmp_path / "set")
    loaded = load_pairs(tmp_path / "set")
    path = tmp_path / "set" / "images" / f"{loaded.ids[0]}.png"
    path.write_bytes(encode_png(np.full_like(loaded[0].image, 7)))
    assert (loaded[0].image == 7).all()


def test_without_dataset_json_the_files_decide(tmp_path: Path) -> None:
    pairs = make_phantom(10, size=40, bit_depth=16, n_classes=3)
    write_folder(pairs, tmp_path / "set")
    (tmp_path / "set" / "dataset.json").unlink()
    (tmp_path / "set" / "groups.csv").unlink()
    loaded = load_pairs(tmp_path / "set")
    assert loaded.info.classes == ("background", "class_1", "class_2")
    assert (loaded.info.channels, loaded.info.bit_depth) == (1, 16)
    values = np.sort(np.concatenate([p.image.ravel() for p in pairs]))
    low, high = loaded.info.intensity_range
    assert (values <= low).mean() >= 0.0005 > (values < low).mean()
    assert (values <= high).mean() >= 0.9995 > (values < high).mean()
    assert loaded.groups == loaded.ids


@pytest.mark.parametrize(("images", "masks"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_of_one_letter_or_two_are_the_same_name(tmp_path: Path, phantom_pairs: PairSet, images: str,
                                                        masks: str, caplog: pytest.LogCaptureFixture) -> None:
    items = [dataclasses.replace(item, id=f"\u00e9{i}", domain=f"d{i}") for i, item in enumerate(phantom_pairs.items)]
    for name, write in (("plain", write_folder), ("listed", write_imagefolder)):
        write(PairSet(items, phantom_pairs.info), tmp_path / name)
        for folder, form in (("images", images), ("masks", masks)):
            for path in sorted((tmp_path / name / folder).iterdir()):
                path.rename(path.with_name(unicodedata.normalize(form, path.name)))
        loaded = {unicodedata.normalize("NFC", item.id): item for item in load_pairs(tmp_path / name).items}
        assert len(loaded) == len(items) and not caplog.records
        for item in items:
            assert (loaded[item.id].group, loaded[item.id].domain) == (item.group, item.domain)
            np.testing.assert_array_equal(loaded[item.id].read()[1], item.read()[1])
    for form in ("NFC", "NFD"):
        (tmp_path / "plain" / "images" / unicodedata.normalize(form, "\u00e90.png")).write_bytes(b"")
    with pytest.raises(UserError, match="share this name"):
        load_pairs(tmp_path / "plain")


def test_like_takes_over_classes_and_range(tmp_path: Path) -> None:
    pairs = make_phantom(6, size=24, bit_depth=16, n_classes=4)
    write_folder(pairs, tmp_path / "set")
    (tmp_path / "set" / "dataset.json").unlink()
    info = load_pairs(tmp_path / "set", like=pairs.info).info
    assert (info.classes, info.intensity_range) == (pairs.info.classes, pairs.info.intensity_range)
    grey = dataclasses.replace(pairs.info, channels=3, bit_depth=8)
    with pytest.raises(UserError, match="channels=1 or channels=3"):
        load_images(tmp_path / "set", like=grey)


def test_a_plain_folder_of_images(tmp_path: Path, phantom_pairs: PairSet) -> None:
    for pair, suffix in zip(phantom_pairs, (".png", ".JPG", ".bmp", ".tif", ".jpeg"), strict=False):
        Image.fromarray(pair.image).save(tmp_path / (pair.id + suffix))
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / ".hidden").write_text("x")
    loaded = load_images(tmp_path)
    assert loaded.ids == phantom_pairs.ids[:5] == loaded.groups
    for i in (0, 2, 3):
        np.testing.assert_array_equal(loaded[i].image, phantom_pairs[i].image)
    with pytest.raises(UserError, match="only images without masks"):
        load_pairs(tmp_path)


def test_mask_map_is_applied_as_given(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_folder(phantom_pairs, tmp_path / "set")
    for path in (tmp_path / "set" / "masks").iterdir():
        path.write_bytes(encode_png(np.array(Image.open(path)) * np.uint8(255)))
    for mask_map in ("0:0,255:1", " 0 : 0 , 255 : 1 ", {0: 0, 255: 1}):
        assert_same(phantom_pairs, load_pairs(tmp_path / "set", mask_map=mask_map))
    flipped = load_pairs(tmp_path / "set", mask_map="0:1,255:0")
    np.testing.assert_array_equal(flipped[0].mask, 1 - phantom_pairs[0].mask)
    assert parse_mask_map("7:255") == {7: 255}


def test_channels_convert_only_when_asked(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_folder(phantom_pairs, tmp_path / "set")
    colour = load_pairs(tmp_path / "set", channels=3)
    assert colour.info.channels == 3
    np.testing.assert_array_equal(colour[0].image, np.stack([phantom_pairs[0].image] * 3, -1))
    write_folder(colour, tmp_path / "colour")
    assert_same(phantom_pairs, load_pairs(tmp_path / "colour", channels=1))


def test_that_colour_is_lost_is_said_once_for_a_folder(tmp_path: Path, phantom_pairs: PairSet,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    write_folder(phantom_pairs, tmp_path / "set")
    grey = load_pairs(tmp_path / "set", channels=3)
    write_folder(grey, tmp_path / "grey")
    load_pairs(tmp_path / "grey", channels=1)
    assert not caplog.records, "three equal channels are grey already"
    tinted = [p.image * np.array([1, 1, 0], np.uint8) for p in grey]
    write_folder(memory_set(tinted, [p.mask for p in grey], grey.info, ids=grey.ids, groups=grey.groups),
                 tmp_path / "tinted")
    load_pairs(tmp_path / "tinted", channels=1)
    assert [str(tmp_path / "tinted" / "images") in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.parametrize("pixels", [
    np.arange(256, dtype=np.uint8).reshape(16, 16), np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 255,
    np.arange(768, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3)])
def test_png_is_lossless(pixels: np.ndarray) -> None:
    back = decode_image(encode_png(pixels), "x")
    np.testing.assert_array_equal(back, pixels)
    assert back.dtype == pixels.dtype


def test_16_bit_files_of_both_byte_orders(tmp_path: Path) -> None:
    pixels = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 3
    Image.fromarray(pixels.astype(np.int32)).save(tmp_path / "wide.tif")  # mode I, values fit
    Image.frombytes("I;16B", (16, 16), pixels.astype(">u2").tobytes()).save(tmp_path / "big.tif")
    for name in ("wide.tif", "big.tif"):
        np.testing.assert_array_equal(decode_image(tmp_path / name, name), pixels)


def test_palette_masks_are_their_indices(tmp_path: Path) -> None:
    labels = (np.indices((12, 12)).sum(0) % 3).astype(np.uint8)
    image = Image.fromarray(labels).convert("P")
    image.putdata(labels.ravel().tolist())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    np.testing.assert_array_equal(decode_mask(tmp_path / "p.png", "p"), labels)


def test_nothing_is_left_when_the_device_is_full(tmp_path: Path, phantom_pairs: PairSet) -> None:
    import errno

    def full() -> tuple[np.ndarray, np.ndarray | None]:
        raise OSError(errno.ENOSPC, "No space left on device")

    items = [*phantom_pairs.items[:3], dataclasses.replace(phantom_pairs.items[3], read=full)]
    for write in (write_folder, write_imagefolder):
        with pytest.raises(UserError, match="no space left"):
            write(PairSet(items, phantom_pairs.info), tmp_path / "set")
        assert list(tmp_path.iterdir()) == []


def test_writers_keep_off_other_files(tmp_path: Path, phantom_pairs: PairSet) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for write in (write_folder, write_imagefolder):
        with pytest.raises(UserError, match="not an empty folder"):
            write(phantom_pairs, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    odd = dataclasses.replace(phantom_pairs.items[0], id="../up")
    with pytest.raises(UserError, match="file name"):
        write_folder(PairSet([odd], phantom_pairs.info), tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]

"""Bad input: one error that names the file, the rule and the repair."""

from __future__ import annotations

import json
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from phantom import make_phantom
from PIL import Image

from synth.core.checks import UserError
from synth.core.pairs import PairSet
from synth.formats import (
    encode_png,
    load_images,
    load_masks,
    load_pairs,
    parse_mask_map,
    shard_name,
    write_folder,
    write_imagefolder,
    write_shard,
)
from synth.formats.decode import MAX_PIXELS

NAME = "phantom_0002"


@pytest.fixture
def root(tmp_path: Path, phantom_pairs: PairSet) -> Path:
    """Returns a good folder, for tests to spoil."""
    write_folder(phantom_pairs, tmp_path / "set")
    return tmp_path / "set"


def image_path(root: Path) -> Path:
    return root / "images" / f"{NAME}.png"


def mask_path(root: Path) -> Path:
    return root / "masks" / f"{NAME}.png"


def refuses(root: Path, *texts: str, images_too: bool = False) -> None:
    loaders = (load_pairs, load_images) if images_too else (load_pairs,)
    for load in loaders:
        with pytest.raises(UserError) as caught:
            load(root)
        message = str(caught.value)
        for text in (*texts, "Repair: "):
            assert text in message, message
        assert "\n" not in message


def save(path: Path, mode: str, **options: object) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    noise.convert(mode).save(path, **options)


def test_the_folder_is_good_before_it_is_spoilt(root: Path, phantom_pairs: PairSet) -> None:
    assert load_pairs(root).arrays(32).fingerprint() == phantom_pairs.arrays(32).fingerprint()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK"])
def test_images_of_other_kinds(root: Path, mode: str) -> None:
    if mode == "CMYK":
        image_path(root).unlink()
        save(root / "images" / f"{NAME}.jpg", mode)
    else:
        save(image_path(root), mode)
    refuses(root, NAME, {"P": "palette", "1": "one bit", "CMYK": "CMYK"}.get(mode, "alpha channel"), images_too=True)


def test_zero_byte_file(root: Path) -> None:
    image_path(root).write_bytes(b"")
    refuses(root, NAME, "0 bytes", images_too=True)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_file(root: Path, suffix: str, share: float) -> None:
    image_path(root).unlink()
    path = root / "images" / f"{NAME}{suffix}"
    save(path, "L")
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    refuses(root, path.name, "decode", images_too=True)


@pytest.mark.filterwarnings("ignore:Truncated File Read", "ignore:Corrupt EXIF")
def test_damaged_bytes_never_escape_as_another_error(root: Path) -> None:
    rng = np.random.default_rng(1)
    for suffix in (".png", ".tif", ".jpg", ".bmp"):
        image_path(root).unlink(missing_ok=True)
        path = root / "images" / f"{NAME}{suffix}"
        save(path, "L")
        good = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(25):
            bad = good.copy()
            bad[rng.integers(0, min(len(bad), 200), 6)] = rng.integers(0, 256, 6)
            path.write_bytes(bad.tobytes())
            try:
                load_images(root)
            except UserError as error:
                assert path.name in str(error)
        path.unlink()


def test_not_an_image(root: Path) -> None:
    image_path(root).write_text("this is text")
    refuses(root, NAME, "does not decode", images_too=True)


def test_an_unknown_kind_of_file(root: Path) -> None:
    (root / "images" / "scan.webp").write_bytes(b"RIFF")
    refuses(root, "scan.webp", ".png", images_too=True)


def test_images_in_folders_below_are_not_left_out(root: Path, tmp_path: Path,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    for aside in (".ipynb_checkpoints", "thumbnails", "@eaDir"):
        (root / "images" / aside).mkdir()
        (root / "images" / aside / "x.png").write_bytes(image_path(root).read_bytes())
    assert len(load_pairs(root)) == 12 and not caplog.records
    below = root / "images" / "p2" / "slices"
    below.mkdir(parents=True)
    assert len(load_pairs(root)) == 12, "an empty folder takes nothing away"
    for name in ("a.png", "b.png"):
        (below / name).write_bytes(image_path(root).read_bytes())
    refuses(root, "p2/slices/a.png", "folders below images/ are not read, and 2", images_too=True)
    plain = tmp_path / "plain"
    (root / "images").rename(plain)
    assert len(load_images(plain)) == 12, "a folder of images may hold other things"
    assert "p2/slices/a.png" in caplog.text and "2 in all" in caplog.text


def test_links_to_nothing(root: Path) -> None:
    (root / "images" / "zz.png").symlink_to(root / "gone.png")
    refuses(root, "zz.png", "gone.png", "link", images_too=True)
    (root / "images" / "zz.png").unlink()
    mask_path(root).unlink()
    mask_path(root).symlink_to(root / "gone.png")
    refuses(root, mask_path(root).name, "gone.png", "link")


def test_masks_without_an_image_are_warned_of(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_path(root).unlink()
    (root / "groups.csv").unlink()
    assert len(load_pairs(root)) == 11
    assert [f"masks/{NAME}.png" in r.getMessage() and "1 of 12" in r.getMessage() for r in caplog.records] == [True]


def test_decompression_bomb(root: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (9000, 60000):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        image_path(root).write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
                                     + chunk(b"IEND", b""))
        refuses(root, NAME, str(MAX_PIXELS), images_too=True)


def test_bits_that_would_be_lost_or_scaled(root: Path) -> None:
    def png(bits: int, colour: int, row: bytes) -> bytes:
        parts = [(b"IHDR", struct.pack(">IIBBBBB", 32, 32, bits, colour, 0, 0, 0)),
                 (b"IDAT", zlib.compress((b"\0" + row) * 32)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)

    image_path(root).write_bytes(png(16, 2, bytes(32 * 6)))
    refuses(root, NAME, "16 bits per channel", images_too=True)
    image_path(root).write_bytes(encode_png(np.zeros((32, 32), np.uint8)))
    mask_path(root).write_bytes(png(2, 0, bytes(8)))
    refuses(root, NAME, "2 bits per pixel")


def test_several_pages(root: Path) -> None:
    image_path(root).unlink()
    page = Image.fromarray(np.zeros((32, 32), np.uint8))
    page.save(root / "images" / f"{NAME}.tif", save_all=True, append_images=[page, page])
    refuses(root, NAME, "3 pages", images_too=True)


def test_an_exif_turn(root: Path) -> None:
    image_path(root).unlink()
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in (".jpg", ".tif", ".png"):
        path = root / "images" / f"{NAME}{suffix}"
        save(path, "L", exif=exif)
        refuses(root, NAME, "EXIF", images_too=True)
        path.unlink()


def test_too_small(root: Path) -> None:
    image_path(root).write_bytes(encode_png(np.zeros((4, 32), np.uint8)))
    refuses(root, NAME, "8 px", images_too=True)


def test_missing_mask(root: Path) -> None:
    mask_path(root).unlink()
    refuses(root, f"{NAME}.png", "missing")
    save(mask_path(root).with_suffix(".jpg"), "L")
    refuses(root, f"found {NAME}.jpg", "JPEG")
    mask_path(root).with_suffix(".jpg").rename(mask_path(root).with_name(f"{NAME}_mask.png"))
    refuses(root, f"found {NAME}_mask.png, but a mask has the name of its image")


def test_no_masks_at_all(root: Path) -> None:
    (root / "masks").rename(root / "labels")
    refuses(root, "masks")


def test_mask_of_another_size(root: Path) -> None:
    mask_path(root).write_bytes(encode_png(np.zeros((32, 31), np.uint8)))
    refuses(root, NAME, "32x32", "32x31")


def test_mask_values_outside_the_classes(root: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:9, 4:9] = 7
    mask_path(root).write_bytes(encode_png(mask))
    refuses(root, NAME, "[7]", "0..1")


def test_0_and_255_are_explained_where_nobody_says_what_they_mean(root: Path, phantom_pairs: PairSet) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[4:9, 4:9] = 255
    Image.fromarray(mask).convert("1").save(mask_path(root))
    refuses(root, NAME, "mask_map='0:0,255:1'")
    mask_path(root).write_bytes(encode_png(mask))
    assert np.array_equal(load_pairs(root)[2].mask, mask) and np.array_equal(load_masks(root)[2], mask)
    for pair in phantom_pairs:
        (root / "masks" / f"{pair.id}.png").write_bytes(encode_png(pair.mask * np.uint8(255)))
    refuses(root, "no foreground anywhere", "mask_map='0:0,255:1'")
    for pair in phantom_pairs:
        (root / "masks" / f"{pair.id}.png").write_bytes(encode_png(pair.mask))
    mask_path(root).write_bytes(encode_png(mask))
    (root / "dataset.json").unlink()
    refuses(root, NAME, "mask_map='0:0,255:1'")
    for load in (load_masks, partial(load_pairs, like=phantom_pairs.info)):
        with pytest.raises(UserError, match=f"{NAME}.*mask_map='0:0,255:1'"):
            load(root)
    told = {"mask_map": "0:0,1:1,255:255"}  # a map that comes to 255 says so, too
    assert np.array_equal(load_pairs(root, **told)[2].mask, mask) and np.array_equal(load_masks(root, **told)[2], mask)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_masks_with_several_channels(root: Path, mode: str) -> None:
    save(mask_path(root), mode)
    refuses(root, NAME, "one channel", "mask_map")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_masks_saved_in_colours_are_read_by_a_mask_map(root: Path, phantom_pairs: PairSet, mode: str) -> None:
    for pair in phantom_pairs:
        grey = Image.fromarray(pair.mask * np.uint8(255))
        grey.convert(mode).save(root / "masks" / f"{pair.id}.png")
    refuses(root, "one channel", "mask_map such as '0:0,255:1'")
    loaded = load_pairs(root, mask_map="0:0,255:1")
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(loaded, phantom_pairs, strict=True))
    spoilt = np.array(Image.open(mask_path(root)))
    spoilt[0, 0, -1] = 7  # a colour, or alpha
    Image.fromarray(spoilt).save(mask_path(root))
    with pytest.raises(UserError, match=f"{NAME}.*one channel"):
        load_pairs(root, mask_map="0:0,255:1")


def test_16_bit_mask(root: Path) -> None:
    mask = np.zeros((32, 32), np.uint16)
    mask[3] = 1
    mask_path(root).write_bytes(encode_png(mask))
    np.testing.assert_array_equal(load_pairs(root)[2].mask, mask)
    mask[4] = 300
    mask_path(root).write_bytes(encode_png(mask))
    refuses(root, NAME, "300")


def test_grey_levels_are_not_classes(root: Path) -> None:
    (root / "dataset.json").unlink()
    mask = np.zeros((32, 32), np.uint8)
    mask[3], mask[5] = 128, 254
    mask_path(root).write_bytes(encode_png(mask))
    refuses(root, "254", "dataset.json")


def test_a_gap_in_the_mask_values_makes_no_classes(root: Path, phantom_pairs: PairSet) -> None:
    (root / "dataset.json").unlink()
    for pair in phantom_pairs:
        (root / "masks" / f"{pair.id}.png").write_bytes(encode_png(pair.mask * np.uint8(50)))
    refuses(root, "0 and 50, but 1 to 49 never occur", "mask_map='0:0,50:1' (data.mask_map", "dataset.json")
    with pytest.raises(UserError, match="1 to 49 never occur"):
        load_masks(root)
    assert load_pairs(root, mask_map="0:0,50:1").info.classes == ("background", "class_1")
    assert load_masks(root, mask_map="0:0,50:1").classes == ("background", "class_1")
    with pytest.raises(UserError, match=r"by mask_map are 0 and 2, but 1 never occurs.*without a gap"):
        load_pairs(root, mask_map="0:0,50:2")
    assert len(load_pairs(root, mask_map="0:0,50:2,7:1").info.classes) == 3, "the map says what class 1 would be"
    mask = phantom_pairs[0].mask * np.uint8(50)
    mask[0] = 255
    (root / "masks" / f"{phantom_pairs[0].id}.png").write_bytes(encode_png(mask))
    refuses(root, "mask_map='0:0,50:1,255:255'")


def test_a_class_that_a_set_lacks_is_no_gap_where_classes_are_declared(tmp_path: Path) -> None:
    pairs = make_phantom(6, size=24, n_classes=4)
    write_folder(pairs, tmp_path / "set")
    for path in (tmp_path / "set" / "masks").iterdir():
        mask = np.array(Image.open(path))
        path.write_bytes(encode_png(np.where(mask == 2, 0, mask).astype(np.uint8)))
    assert load_pairs(tmp_path / "set").info.classes == pairs.info.classes == load_masks(tmp_path / "set").classes
    (tmp_path / "set" / "dataset.json").unlink()
    assert load_pairs(tmp_path / "set", like=pairs.info).info.classes == pairs.info.classes
    refuses(tmp_path / "set", "0, 1 and 3, but 2 never occurs")


def test_values_outside_the_mask_map(root: Path) -> None:
    with pytest.raises(UserError, match=r"values \[1\] are not in mask_map '0:0,255:1'"):
        load_pairs(root, mask_map="0:0,255:1")


@pytest.mark.parametrize("text", ["", "0", "0:0,", "a:b", "0:0,0:1", "0:300", "0:0:0", 3])
def test_mask_maps_that_are_none(text: str | int) -> None:
    with pytest.raises(UserError, match="value:class pairs"):
        parse_mask_map(text)


def test_two_files_of_one_name(root: Path) -> None:
    save(root / "images" / f"{NAME}.jpg", "L")
    refuses(root, NAME, "share this name", images_too=True)


def test_grey_and_rgb_mixed(root: Path) -> None:
    (root / "dataset.json").unlink()
    save(image_path(root), "RGB")
    refuses(root, f"{NAME}.png: it is RGB, but 11 of the 12 images are grey", "channels=", images_too=True)
    assert load_pairs(root, channels=1).info.channels == 1


def test_bit_depths_mixed(root: Path) -> None:
    image_path(root).write_bytes(encode_png(np.zeros((32, 32), np.uint16)))
    refuses(root, f"{NAME}.png: it is 16 bit, but dataset.json says 8 bit", images_too=True)


def test_32_bit_that_does_not_fit(root: Path) -> None:
    image_path(root).unlink()
    for value in (70000, -1):
        Image.fromarray(np.full((32, 32), value, np.int32)).save(root / "images" / f"{NAME}.tif")
        refuses(root, NAME, "16 bit", images_too=True)


@pytest.mark.parametrize("classes", ["declared", "inferred"])
def test_no_foreground_anywhere(root: Path, classes: str) -> None:
    for i, path in enumerate(sorted((root / "masks").iterdir())):
        path.write_bytes(encode_png(np.full((32, 32), 255 if i == 0 else 0, np.uint8)))
    if classes == "inferred":
        (root / "dataset.json").unlink()
    refuses(root, "no foreground anywhere", "12 masks")


def test_one_image_only_loads(tmp_path: Path) -> None:
    write_folder(make_phantom(1, size=16), tmp_path / "one")
    assert len(load_pairs(tmp_path / "one")) == 1


def test_no_images_at_all(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    refuses(tmp_path, "no images found", images_too=True)
    refuses(tmp_path / "nowhere", "no such folder", images_too=True)


@pytest.mark.parametrize("spoil, says", [
    (lambda rows: [*rows, "stranger,patient_00"], "stranger"),
    (lambda rows: [r for r in rows if not r.startswith(NAME)], NAME),
    (lambda rows: [*rows, f"{NAME},patient_01"], "two lines name this image"),
    (lambda rows: [r if not r.startswith(NAME) else f"{NAME}," for r in rows], "its group is empty"),
    (lambda rows: ["file;patient", *rows[1:]], "name,group")])
def test_groups_that_disagree(root: Path, spoil: object, says: str) -> None:
    rows = (root / "groups.csv").read_text().splitlines()
    (root / "groups.csv").write_text("\n".join(spoil(rows)) + "\n")
    refuses(root, "groups.csv", says, images_too=True)


@pytest.mark.parametrize(("text", "encoding", "says"), [
    ("name,group\nMüller,a\n", "cp1252", "'name,group'"), ("name,group\nMüller,a\n", "utf-16", "UTF-16"),
    ("name,group\na,b\n", "utf-16-le", "another encoding"),
    ("name;group\na;b\n", "utf-8", "'name;group', not name,group"), ("\ufeff", "utf-8", "its first line is ''"),
    ("name\tgroup\na\tb\n", "utf-8", r"'name\tgroup'"), ("Name,Group\na,b\n", "utf-8", "'Name,Group'"),
    ("sep=,\nname,group\na,b\n", "utf-8", "'sep=,'"), ("", "utf-8", "''"),
    ('name,group\n"' + "a" * 140_000, "utf-8", "not comma-separated")])
def test_tables_as_spreadsheets_save_them(root: Path, text: str, encoding: str, says: str) -> None:
    (root / "groups.csv").write_bytes(text.encode(encoding))
    refuses(root, "groups.csv", says, "save it as comma-separated UTF-8 with the first line name,group",
            images_too=True)


def test_empty_lines_of_a_table_are_none(root: Path) -> None:
    groups, path = load_pairs(root).groups, root / "groups.csv"
    lines = [line + "," for line in path.read_text().splitlines()]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ",,", " , ,", ",,,,", ""]).encode())
    assert load_pairs(root).groups == groups


@pytest.mark.parametrize("name", ["Groups.csv", "group.csv", "groups.CSV", "gruops.csv", "images/groups.csv",
                                  "masks/groups.csv", "images/Groups.csv"])
def test_a_table_under_another_name_is_not_ignored(root: Path, name: str) -> None:
    (root / "groups.csv").rename(root / name)
    refuses(root, f"{root / name}: it is not read", "the file is called groups.csv", "rename", images_too=True)


@pytest.mark.parametrize("name", ["metadata.csv", "images/metadata.csv"])
def test_a_csv_in_the_place_of_metadata_is_warned_of(root: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (root / name).write_text("file_name,patient\n")
    assert len(set(load_pairs(root).groups)) == 3 and not caplog.records, "groups.csv says whose images these are"
    (root / "groups.csv").unlink()
    assert len(set(load_pairs(root).groups)) == 12
    assert [f"{name}: not read" in record.getMessage() for record in caplog.records] == [True]


def test_tables_of_nearly_the_name_that_are_let_alone(root: Path) -> None:
    for name in ("notes.csv", "groups_old.csv", "groups1.csv", "images/listing.csv"):
        (root / name).write_text("a,b\n")
    assert len(set(load_pairs(root).groups)) == 3
    for name in ("spacings.csv", "weight.csv", "Domains.csv"):
        (root / name).write_text("name,x\n")
        refuses(root, name, "the file is called")
        (root / name).unlink()


@pytest.mark.parametrize("key, value", [
    ("ignore_index", 0), ("version", 2), ("channels", 2), ("bit_depth", 12), ("intensity_range", [5, 5]),
    ("intensity_range", [0, float("nan")]), ("intensity_range", [0, float("inf")]),
    ("classes", []), ("classes", ["a", "a"])])
def test_dataset_json_that_cannot_be_honoured(root: Path, key: str, value: object) -> None:
    told = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**told, key: value}))
    refuses(root, "dataset.json", key, images_too=True)


def test_dataset_json_that_is_not_json(root: Path) -> None:
    (root / "dataset.json").write_text("{classes: [")
    refuses(root, "dataset.json", "not JSON", images_too=True)


@pytest.mark.parametrize("line, says", [
    ("{", "not JSON"), ("3", "JSON object"), ('{"id": "a"}', "file_name"), ('{"file_name": "/etc/passwd"}', "inside"),
    ('{"file_name": "../a.png"}', "inside"), ('{"file_name": "images/gone.png"}', "missing")])
def test_metadata_lines(tmp_path: Path, phantom_pairs: PairSet, line: str, says: str) -> None:
    write_imagefolder(phantom_pairs, tmp_path / "set")
    path = tmp_path / "set" / "metadata.jsonl"
    path.write_text(path.read_text() + line + "\n")
    refuses(tmp_path / "set", says, images_too=True)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"seed": "x"}, "seed"), ({"scores": "{"}, "scores"), ({"scores": "3"}, "scores"), ({"scores": 3}, "scores"),
    ({"parents": "phantom_0001"}, "no list")])
def test_metadata_of_drawn_pairs(tmp_path: Path, phantom_pairs: PairSet, wrong: dict[str, object], says: str) -> None:
    write_imagefolder(phantom_pairs, tmp_path / "set")
    path = tmp_path / "set" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"generator": "cafe"} | wrong), *lines[1:]]))
    refuses(tmp_path / "set", "metadata.jsonl, line 1", says, images_too=True)


def test_a_mask_that_is_a_jpeg_whatever_it_is_called(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_imagefolder(phantom_pairs, tmp_path / "set")
    path = tmp_path / "set" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0]) | {"mask_file_name": "masks/lossy.jpg"}
    path.write_text("\n".join([json.dumps(row), *lines[1:]]))
    mask = Image.fromarray(phantom_pairs[0].mask)
    mask.save(tmp_path / "set" / "masks" / "lossy.jpg")
    refuses(tmp_path / "set", "lossy.jpg", "class indices are not what they were")
    mask.save(tmp_path / "set" / "masks" / "lossy.png", format="JPEG")
    path.write_text(path.read_text().replace("lossy.jpg", "lossy.png"))
    refuses(tmp_path / "set", "lossy.png", "class indices are not what they were")


def test_tables_that_nobody_reads_beside_metadata(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_imagefolder(phantom_pairs, tmp_path / "set")
    write_shard(list(phantom_pairs), tmp_path / "shards" / shard_name("train", 0, 1))
    for folder in ("set", "shards"):
        (tmp_path / folder / "groups.csv").write_text("name,group\n")
        refuses(tmp_path / folder, "groups.csv", "not read", images_too=True)
    (tmp_path / "set" / "groups.csv").unlink()
    (tmp_path / "set" / "metadata.jsonl").rename(tmp_path / "set" / "images" / "metadata.jsonl")
    refuses(tmp_path / "set", "metadata.jsonl", "not read", images_too=True)


def test_metadata_of_another_encoding(tmp_path: Path, phantom_pairs: PairSet) -> None:
    write_imagefolder(phantom_pairs, tmp_path / "set")
    path = tmp_path / "set" / "metadata.jsonl"
    text = path.read_text().replace('"patient_00"', '"M\u00fcller\u2028"')
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert "M\u00fcller\u2028" in load_pairs(tmp_path / "set").groups
    for encoding in ("cp1252", "utf-16"):
        path.write_bytes(text.replace("\u2028", "").encode(encoding))
        refuses(tmp_path / "set", "metadata.jsonl", "another encoding than UTF-8", "UTF-8, one JSON", images_too=True)


def test_a_damaged_shard(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and nothing more")
    refuses(tmp_path, "train-00000-of-00001.parquet", "parquet", images_too=True)


def test_channels_and_split_that_do_not_exist(root: Path) -> None:
    with pytest.raises(UserError, match="channels=2"):
        load_pairs(root, channels=2)
    with pytest.raises(UserError, match="split=test"):
        load_images(root, split="test")


@pytest.mark.parametrize(("row", "says"), [
    ("{id},0.5,wide", "not two lengths in mm"), ("{id},0.5,0", "not two lengths"), ("{id},nan,1", "not two lengths"),
    ("{id},,1", "row_mm is empty"), ("stranger,1,1", "no such image"),
])
def test_spacings_that_are_no_lengths_are_refused(tmp_path: Path, row: str, says: str) -> None:
    pairs, root = make_phantom(2, size=32, n_groups=2), tmp_path / "set"
    write_folder(pairs, root)
    lines = ["name,row_mm,column_mm", row.format(id=pairs.ids[0]), f"{pairs.ids[1]},0.5,0.25"]
    (root / "spacing.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"spacing.csv.*{says}"):
        load_pairs(root)
    lines[1] = f"{pairs.ids[0]},1,2"
    (root / "spacing.csv").write_text("\n".join(lines) + "\n")
    assert [item.spacing for item in load_pairs(root).items] == [(1.0, 2.0), (0.5, 0.25)]

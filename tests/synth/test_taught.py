"""What a generator was fitted on: written beside it by every kind, and carried along by whatever is made with it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from test_curation import brightness_judge, soft_referee
from tiny import squares, tiny_appearance, tiny_pipeline, tiny_translator

import synth
from synth.core.checks import UserError
from synth.core.pairs import ImageSet, PairSet
from synth.core.taught import FILE, Taught
from synth.diffusion.fit import inpaint_taught
from synth.diffusion.settings import InpaintSettings
from synth.draw import draw_roundtrip
from synth.fit import KINDS
from synth.formats import encode_png, load_images, load_pairs, read_shards, write_folder, write_imagefolder
from synth.gan.restyle.settings import StyleSettings
from synth.generator import Generator
from synth.layouts import ShapeModel

PAIRS = squares(6)
PILE = ImageSet([dataclasses.replace(i, id=f"u{i.id}", group=f"u{i.group}") for i in squares(4, seed=5).items],
                PAIRS.info)
BOTH, FIRST, SECOND = (PAIRS, PILE), (PAIRS,), (PILE,)
SHAPE = {"kind": "shape", "size": 32, "widths": [8, 8], "latents": 4, "n_moves": 1, "loop": {"steps": 1}}
SOME = Taught(frozenset({"0" * 16}), frozenset({"1" * 16}))


@pytest.mark.parametrize(("settings", "sets"), [
    ({"kind": "inpaint"}, BOTH), ({"kind": "translate"}, BOTH), ({"kind": "appearance"}, BOTH),
    ({"kind": "spectral", "size": 32, "operation": {"name": "match_ratio"}}, FIRST),
    ({"kind": "spectral", "size": 32, "operation": {"name": "match_ratio"}, "prior": {"kind": "whole"}}, BOTH),
    ({"kind": "spectral", "size": 32, "operation": {"name": "fda", "strength": [0, 0.1]}}, SECOND),
    ({"kind": "spectral", "size": 32, "operation": {"name": "kspace"}}, ()),
])
def test_every_kind_says_what_it_learnt_from(settings: dict, sets: tuple[ImageSet, ...], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = {"inpaint": tiny_pipeline, "appearance": tiny_appearance, "translate": lambda: tiny_translator("spade")}
    if (kind := settings["kind"]) in stand_in:  # their training is not what is looked at
        monkeypatch.setitem(KINDS, kind, dataclasses.replace(KINDS[kind], fit=lambda *_: stand_in[kind]()))
    made = synth.fit(settings, PAIRS, PILE, out=tmp_path / "run")
    assert made.taught == Taught.load(tmp_path / "run") == Taught.of_sets(sets)
    for images in BOTH:
        assert made.taught.has_group(images.groups[0]) == made.taught.has_image(images[0].image[None]) == (
            images in sets)


def test_models_of_masks_say_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = synth.fit(SHAPE, PAIRS, out=tmp_path / "shape")
    assert shape.taught == ShapeModel.load(tmp_path / "shape").taught == Taught.of_sets(FIRST)
    (tmp_path / "masks").mkdir()
    for pair in PAIRS:
        (tmp_path / "masks" / f"{pair.id}.png").write_bytes(encode_png(pair.mask))
    stand_in = dataclasses.replace(KINDS["unpaired"], fit=lambda *_: tiny_translator("spade"))
    monkeypatch.setitem(KINDS, "unpaired", stand_in)
    made = synth.fit({"kind": "unpaired"}, None, PILE, masks=synth.load_masks(tmp_path / "masks"), out=tmp_path / "run")
    assert made.taught == Taught.of_sets(SECOND)


def test_a_given_autoencoder_brings_what_it_was_taught(tmp_path: Path) -> None:
    SOME.save(tmp_path)
    found = inpaint_taught(InpaintSettings(autoencoder={"pretrained": str(tmp_path / "vae")}), PAIRS, None)
    assert found.groups > SOME.groups and found.has_group(PAIRS.groups[0])


def taught(generator: Generator) -> Generator:
    """Returns the generator, which then knows SOME."""
    generator.taught = SOME
    return generator


def test_what_is_drawn_translated_curated_and_exported_says_it(tmp_path: Path) -> None:
    assert synth.draw(None, PAIRS, n=6, size=32, out=tmp_path / "copies").taught is None
    assert not (tmp_path / "copies" / FILE).exists()
    made = synth.draw(taught(tiny_pipeline()).with_sampler("fast"), PAIRS, n=2, out=tmp_path / "made")
    assert made.taught == read_shards(tmp_path / "made").taught == load_pairs(tmp_path / "made").taught == SOME
    assert draw_roundtrip(taught(tiny_pipeline()), PAIRS, n=2, out=tmp_path / "control").taught == SOME
    recoloured = synth.draw(None, PAIRS, n=2, size=32, out=tmp_path / "recoloured",
                            appearance=taught(tiny_appearance()))
    assert recoloured.taught == SOME
    style = taught(tiny_appearance())
    styled = style.with_sampler(StyleSettings(style=style.styles[0]))
    synth.translate_images(styled, PILE, out=tmp_path / "translated")
    assert load_images(tmp_path / "translated").taught == SOME
    for write in (write_folder, write_imagefolder):
        write(made, tmp_path / write.__name__)
        assert load_pairs(tmp_path / write.__name__).taught == SOME


def test_a_curated_set_says_it(tmp_path: Path) -> None:
    SOME.save(Path(synth.draw(None, PAIRS, n=6, size=32, out=tmp_path / "made").where))
    found = synth.curate(tmp_path / "made", brightness_judge, soft_referee, PAIRS, out=tmp_path / "out",
                         config={"budget": 3})
    assert found.taught == SOME


def test_a_generator_fitted_on_drawn_pairs_knows_what_theirs_did() -> None:
    made = PairSet(PAIRS.items, PAIRS.info, taught=SOME)
    assert SOME.groups < Taught.of_sets([made]).groups and SOME.images < Taught.of_sets([made]).images


def test_blank_images_tell_nothing_and_a_strange_file_is_refused(tmp_path: Path) -> None:
    assert not SOME.has_image(np.zeros((1, 8, 8), np.uint8))
    for text in ("{", "[]", '{"images": 3}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match="not the list of hashes"):
            Taught.load(tmp_path)

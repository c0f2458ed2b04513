"""Appearance translation: the generator's contract, looks and styles, edges, the judge's heads, what the coach sees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contract_generator import SEEDS, GeneratorContract, request
from PIL import Image
from tiny import APPEARANCE, squares, tiny_appearance, tiny_translator

import synth
from synth.audit import audit_seam
from synth.core.checks import IGNORE, UserError
from synth.core.config import load_config
from synth.draw.modes import sampler_changes, with_changes
from synth.gan.discriminators import PatchDiscriminator
from synth.gan.restyle.batches import Pool, restyle_batches
from synth.gan.restyle.looks import Styles, find_styles, look_distance, look_of
from synth.gan.restyle.pipeline import AppearancePipeline
from synth.gan.restyle.recipe import RestyleRecipe, build_restyle_nets, style_hinge, style_logits
from synth.gan.restyle.settings import AppearanceSettings, StylesSettings
from synth.gan.structure import edge_distance


class TestGrey(GeneratorContract):
    """For grey images it keeps the contract."""

    @pytest.fixture(scope="class")
    def generator(self) -> AppearancePipeline:
        """Returns it."""
        return tiny_appearance()


class TestColour16(GeneratorContract):
    """And for three channels."""

    @pytest.fixture(scope="class")
    def generator(self) -> AppearancePipeline:
        """Returns it."""
        return tiny_appearance(channels=3)


class TestSixteenBit(GeneratorContract):
    """And for 16-bit grey, in one style."""

    @pytest.fixture(scope="class")
    def generator(self) -> AppearancePipeline:
        """Returns it."""
        return tiny_appearance(value_range=(0, 4095))


def shapes(n: int = 4, *, channels: int = 1, seed: int = 0) -> torch.Tensor:
    """Returns unit images (n, C, 32, 32) of blurred noise."""
    noise = torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (32, 32), mode="bicubic").clamp(-2, 2) / 4


# Edges.

def test_edges_do_not_ask_how_strong_they_are_or_which_side_is_bright() -> None:
    images, others = shapes(), shapes(seed=1)
    for same in (images, 0.5 * images + 0.2, -0.8 * images, images.expand(-1, 3, -1, -1)):
        assert edge_distance(images, same) < 2e-3
    assert edge_distance(images, others) > 0.1
    assert edge_distance(images, images.roll(4, -1)) > 0.1, "moved"
    assert edge_distance(images, torch.zeros_like(images)) > 0.1, "gone"
    assert edge_distance(torch.zeros_like(images), images) == pytest.approx(
        float(edge_distance(images, torch.zeros_like(images))), rel=1e-5), "invented ones count like lost ones"


# Looks and styles.

def test_a_look_is_colours_and_how_strong_each_band_is() -> None:
    x = torch.arange(32) / 32
    coarse, fine = (torch.sin(2 * torch.pi * f * x).expand(1, 1, 32, 32) * 0.5 for f in (1, 15))
    a, b = look_of(coarse)[0], look_of(fine)[0]
    assert a[:2] == pytest.approx(torch.tensor([0.0, 0.5 / 2**0.5]), abs=0.01)
    assert int(a[2:].argmax()) == 0 and int(b[2:].argmax()) == 5, "the energy lies in the first and the last band"
    assert torch.allclose(look_of(coarse + 0.25)[0, 2:], a[2:], atol=1e-4), "brightness is no texture"
    assert torch.equal(look_of(torch.cat([coarse, fine]))[1], b)


def mixed() -> torch.Tensor:
    """Returns 18 images of three appearances, six of each: dark, middle, bright and rough."""
    grain = torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(3)) * 0.2
    return torch.cat([0.2 * shapes(6) - 0.6, shapes(6, seed=1), 0.2 * shapes(6, seed=2) + 0.5 + grain])


def test_clusters_are_found_the_same_each_time_and_the_darkest_is_the_first() -> None:
    looks, ids = look_of(mixed()), [str(i) for i in range(18)]
    found = find_styles(looks, [None] * 18, StylesSettings(), ids=ids, seed=0)
    assert found.clustered and found.names == ("cluster_0", "cluster_1", "cluster_2")
    assert found.of_image.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    order = torch.randperm(18, generator=torch.Generator().manual_seed(1))
    again = find_styles(looks[order], [None] * 18, StylesSettings(), ids=ids, seed=0)
    assert torch.equal(again.of_image, found.of_image[order]), "the order of images does not matter"
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - the global one is to stay as it is
    find_styles(looks, [None] * 18, StylesSettings(), ids=ids, seed=0)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_domains_are_taken_where_they_are_given_unless_clusters_are_asked_for() -> None:
    looks, ids, domains = look_of(mixed()), [str(i) for i in range(18)], ["b"] * 9 + ["a"] * 9
    given = find_styles(looks, domains, StylesSettings(), ids=ids, seed=0)
    assert given.names == ("a", "b") and given.of_image.tolist() == [1] * 9 + [0] * 9 and not given.clustered
    assert torch.allclose(given.centres[1], looks[:9].mean(0))
    assert find_styles(looks, domains, StylesSettings(by="clusters"), ids=ids, seed=0).clustered


@pytest.mark.parametrize(("domains", "words", "message"), [
    (["a"] * 18, {}, "one style alone.*data.unlabelled"),
    (["a"] * 17 + [None], {}, "image 17: 1 of 18 images have no domain.*domains.csv.*styles.by=clusters"),
    ([None] * 18, {"by": "domains"}, "18 of 18 images have no domain"),
    (["a"] * 16 + ["b"] * 2, {}, "style b: it has 2 training image.*styles.least=4"),
    ([None] * 18, {"n_clusters": 19}, "there are 18 images"),
    ([None] * 18, {"n_clusters": 9}, "style cluster_.*lower styles.n_clusters")])
def test_styles_that_cannot_be_learnt_are_refused(domains: list[str | None], words: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_styles(look_of(mixed()), domains, StylesSettings(**words), ids=[str(i) for i in range(18)], seed=0)


def test_domains_csv_is_read_and_may_serve_several_folders(tmp_path: Path) -> None:
    pairs = squares(3)
    synth.write_folder(pairs, tmp_path / "set")
    assert {i.domain for i in synth.load_pairs(tmp_path / "set").items} == {None}
    (tmp_path / "set" / "domains.csv").write_text("name,domain\ns0.png,left\ns2,right\nelsewhere,right\n")
    again = synth.load_pairs(tmp_path / "set")
    assert [i.domain for i in again.items] == ["left", None, "right"]
    synth.write_folder(again, tmp_path / "copy")
    assert [i.domain for i in synth.load_images(tmp_path / "copy").items] == ["left", None, "right"]
    (tmp_path / "set" / "domains.csv").write_text("name,domain\ns0,\n")
    with pytest.raises(UserError, match="s0: its domain is empty"):
        synth.load_pairs(tmp_path / "set")


# The judge and the coach.

def test_the_judge_has_a_head_for_each_style_and_knows_colours() -> None:
    judge = PatchDiscriminator(1, width=8, norm="spectral", n_out=3)
    logits = judge(shapes())
    assert logits.shape[1] == 3
    style = torch.tensor([2, 0, 1, 2])
    assert torch.equal(style_logits(logits, style)[3, 0], logits[3, 2])
    flat = torch.zeros(1, 1, 32, 32)
    assert (judge(flat + 0.5) - judge(flat - 0.5)).abs().mean() > 1e-3, "a brightness is seen"
    zero = torch.zeros(1)
    assert style_hinge(zero, zero, zero) == 1 and style_hinge(zero + 1, zero - 1, zero - 1) == 0
    assert style_hinge(zero + 1, zero - 1, zero) == 0.25, "a real image of another style counts"


def pool(*, n_labelled: int = 4) -> Pool:
    """Returns 12 images of three styles, the labelled ones of the first two."""
    images = mixed()[[0, 6, 1, 7, 2, 3, 8, 9, 12, 13, 14, 15]]
    of_image = torch.tensor([0, 1, 0, 1, 0, 0, 1, 1, 2, 2, 2, 2])
    looks = look_of(images)
    centres = torch.stack([looks[of_image == k].mean(0) for k in range(3)])
    labels = (images[:n_labelled, 0] > images[:n_labelled, 0].mean((1, 2), keepdim=True)).long()
    return Pool(images, labels, Styles(("a", "b", "c"), of_image, centres, looks.std(0), clustered=False))


def test_batches_are_half_labelled_balanced_in_style_and_never_ask_for_an_images_own() -> None:
    settings = load_config(AppearanceSettings, {**APPEARANCE, "batch_size": 8})
    batches = restyle_batches(pool(), settings)
    all_styles = []
    for step in range(30):
        batch = batches(step, 0, 1)
        assert batch["images"].shape == (8, 1, 32, 32) and batch["labels"].shape == (4, 32, 32)
        assert (batch["style"] != batch["target"]).all() and batch["style"][:4].max() <= 1
        assert torch.equal(batch["labels"], (batch["images"][:4, 0] > batch["images"][:4, 0].mean(
            (1, 2), keepdim=True)).long()), "labels go with their images"
        all_styles += batch["style"][4:].tolist()
    assert min(np.bincount(all_styles)) > 25, "a third each, though there are four of twelve images each"
    assert all(torch.equal(batches(3, 0, 1)[k], v) for k, v in batches(3, 0, 1).items())


def _recipe(**loss: float) -> tuple[RestyleRecipe, dict[str, torch.Tensor]]:
    settings = load_config(AppearanceSettings, {**APPEARANCE, "batch_size": 8, "loss": loss})
    nets = build_restyle_nets(settings, channels=1, n_classes=2, n_styles=3)
    return RestyleRecipe(nets, settings, known=pool().known), restyle_batches(pool(), settings)(0, 0, 1)


def test_the_coach_is_asked_only_where_it_can_know_and_its_weights_rest() -> None:
    recipe, batch = _recipe()
    assert recipe.known.tolist() == [True, True, False], "no labelled image is of style c"
    coach, fakes = recipe.nets["coach"], batch["images"].clone()
    asked = {**batch, "target": torch.tensor([2, 2, 2, 2, 0, 0, 0, 0])}
    assert recipe._mask_loss(coach, asked, fakes) == 0
    asked["target"] = torch.zeros(8, dtype=torch.long)
    assert recipe._mask_loss(coach, asked, fakes) > 0.1
    asked["labels"] = torch.full_like(batch["labels"], IGNORE)
    assert recipe._mask_loss(coach, asked, fakes) == 0
    # What the coach learns depends on real pairs alone: another translator changes nothing of it.
    other, _ = _recipe()
    with torch.no_grad():
        for p in other.nets["translator"].parameters():
            p.mul_(0.5)
    for one in (recipe, other):
        torch.manual_seed(0)
        one.step(batch, 0.5)
    mine, theirs = (list(r.nets["coach"].parameters()) for r in (recipe, other))
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert any(p.grad is not None for p in mine), "it learnt"


def test_the_coach_is_told_the_style_asked_for_of_translated_images_and_their_own_of_real_ones() -> None:
    recipe, batch = _recipe()
    seen: list[torch.Tensor] = []
    coach = recipe.nets["coach"]
    coach.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    recipe.step(batch, 0.5)
    told = [x[:, 1:, 0, 0].argmax(1) for x in seen]
    assert len(told) == 2 and all((x[:, 1:].sum(1) == 1).all() for x in seen)
    assert torch.equal(told[0], batch["target"][:4]) and torch.equal(told[1], batch["style"][:4])


def test_each_weight_switches_its_term() -> None:
    names = ("cycle", "own", "edges", "mask")
    recipe, batch = _recipe()
    torch.manual_seed(0)
    scalars = recipe.step(batch, 0.5)
    assert all(scalars[name] > 0 for name in names)
    off, _ = _recipe(**dict.fromkeys(names, 0.0))
    torch.manual_seed(0)
    without = off.step(batch, 0.5)
    assert all(without[name] == 0 for name in names) and without["fooling"] == scalars["fooling"]
    assert _recipe()[0].step(batch, 0.0)["mask"] == 0, "in the beginning the coach knows nothing"


# The pipeline.

def test_alone_and_in_a_batch_are_equal_bit_for_bit() -> None:
    pipeline = tiny_appearance()
    image, mask = request(pipeline)
    batch = pipeline.sample(image, mask, seeds=SEEDS)
    for i in range(3):
        assert torch.equal(batch[i:i + 1], pipeline.sample(image[i:i + 1], mask[i:i + 1], seeds=SEEDS[i:i + 1]))


def test_the_style_is_the_one_set_or_another_than_the_image_looks_like() -> None:
    pipeline = tiny_appearance()
    image, mask = request(pipeline)
    own = pipeline.looks_like(image)
    centres, scale = torch.tensor(pipeline.config.centres), torch.tensor(pipeline.config.spread)
    assert own == look_distance(look_of(image), centres, scale).argmin(1).tolist()
    drawn = [pipeline.styles_for(image, seeds=[s, s + 1, s + 2]) for s in range(40)]
    assert all(a != b for row in drawn for a, b in zip(row, own, strict=True))
    assert len({row[0] for row in drawn}) == 2, "both others occur"
    fixed = with_changes(pipeline, sampler_changes(None, ["style=site 1"]))
    assert fixed.styles_for(image, seeds=SEEDS) == [1, 1, 1] and fixed.sampler_settings()["style"] == "site 1"
    assert fixed.content_hash() == pipeline.content_hash(), "the same generator"
    other = with_changes(pipeline, {"style": "site 2"})
    assert (fixed.sample(image, mask, seeds=SEEDS) - other.sample(image, mask, seeds=SEEDS)).abs().mean() > 1e-3
    assert torch.equal(fixed.sample(image, mask, seeds=SEEDS), fixed.sample(image, 1 - mask, seeds=SEEDS)), \
        "labels are not seen"
    with pytest.raises(UserError, match="style=mars: .*site 0, site 1, site 2"):
        with_changes(pipeline, {"style": "mars"})


def test_a_set_style_is_saved_and_loaded(tmp_path: Path) -> None:
    with_changes(tiny_appearance(), {"style": "site 1"}).save_pretrained(tmp_path)
    assert synth.load_generator(tmp_path).sampler.style == "site 1"


def test_called_like_a_pipeline_of_diffusers() -> None:
    pipeline = tiny_appearance()
    image, mask = request(pipeline)
    seen: list[tuple[int, int]] = []
    drawn = pipeline(image, seeds=SEEDS, output_type="pt", callback_on_step_end=lambda *now: seen.append(now)).images
    assert torch.equal(drawn, pipeline.sample(image, mask, seeds=SEEDS)) and seen == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(pipeline(image, seeds=SEEDS).images[0], Image.Image)
    for words, message in (({"output_type": "jpg"}, "no such form"), ({"seeds": SEEDS[:1]}, "seed")):
        with pytest.raises(UserError, match=message):
            pipeline(image, **words)


def test_what_it_has_not_is_said_plainly(tmp_path: Path) -> None:
    pairs, pipeline = squares(6), tiny_appearance()
    with pytest.raises(UserError, match="n_steps=8: this generator has no such setting"):
        with_changes(pipeline, sampler_changes(None, ["n_steps=8"]))
    with pytest.raises(UserError, match="style=x: this generator has no sampler to set.*kind appearance"):
        with_changes(tiny_translator("oasis"), sampler_changes(None, ["style=x"]))
    with pytest.raises(UserError, match="keeps: nothing.*repaint_share=0"):
        synth.draw(pipeline, pairs, n=1, out=tmp_path / "a", config={"repaint_share": 0.5})
    with pytest.raises(UserError, match="mode=object"):
        synth.draw(pipeline, pairs, n=1, out=tmp_path / "b", hosts=pairs)
    with pytest.raises(UserError, match="no autoencoder"):
        synth.draw_roundtrip(pipeline, pairs, n=1, out=tmp_path / "c")
    with pytest.raises(UserError, match="keeps no pixels"):
        audit_seam(pipeline, pairs, n=4)
    assert not any(tmp_path.iterdir()), "nothing was begun"


def test_a_drawn_pair_has_its_parents_mask_and_is_no_new_picture(tmp_path: Path) -> None:
    pairs = squares(6)
    gates = synth.default_gates(None, pairs, size=32)
    made = synth.draw(tiny_appearance(), pairs, n=6, out=tmp_path / "made", gates=gates,
                      config={"batch_size": 2, "layout": {"flip": "none"}})
    masks = {p.id: p.mask for p in pairs}
    for pair in made:
        assert np.array_equal(pair.mask, masks[pair.made.parents[0]]) and pair.id.startswith("appearance-")
        assert pair.made.kept_sha256 == "" and '"mode": "appearance"' in pair.made.settings
    assert "correlation" in made[0].made.scores and len(made) == 6, "its novelty is noted and rejects nothing"


def test_it_changes_sources_before_they_are_painted(tmp_path: Path) -> None:
    pairs = squares(6)
    made = synth.draw(tiny_translator("oasis"), pairs, n=2, out=tmp_path / "made", appearance=tiny_appearance(),
                      config={"batch_size": 2})
    assert all(tiny_appearance().content_hash() in pair.made.layout for pair in made)


def test_the_style_of_changed_sources_is_in_their_provenance_and_another_one_is_another_run(tmp_path: Path) -> None:
    first, second = (with_changes(tiny_appearance(), {"style": f"site {k}"}) for k in (0, 1))

    def drawn(name: str, appearance: AppearancePipeline) -> synth.PairSet:
        return synth.draw(tiny_translator("oasis"), squares(6), n=2, out=tmp_path / name, appearance=appearance,
                          config={"batch_size": 2})

    made = drawn("made", first)
    with pytest.raises(UserError, match=r"another draw run \(differs in: appearance\)"):
        drawn("made", second)
    assert drawn("made", first).ids == made.ids
    for one, other in zip(made, drawn("other", second), strict=True):
        said, told = (json.loads(p.made.layout)["appearance_sampler"]["style"] for p in (one, other))
        assert (said, told) == ("site 0", "site 1") and one.made.seed == other.made.seed


# Real images without masks.

def test_images_are_translated_with_their_parents_and_groups(tmp_path: Path) -> None:
    images, pipeline = squares(6), tiny_appearance()
    found = synth.translate_images(pipeline, images, out=tmp_path / "a", n=2, seed=1)
    assert len(found) == 18 and found.info == synth.load_images(tmp_path / "a").info
    real = {p.id: p for p in images}
    for item, pair in zip(found.items, found, strict=True):
        parent = real[pair.id.partition("-")[0]]
        assert pair.group == parent.group
        if pair.origin == "real":
            assert np.array_equal(pair.image, parent.image) and item.made is None
        else:
            assert item.made.parents == (parent.id,) and item.made.parent_groups == (parent.group,)
            assert item.made.generator == pipeline.content_hash() and '"style": "site' in item.made.layout
            assert pair.image.shape == (32, 32)
    shuffled = images.select([3, 1, 5, 0])
    again = synth.translate_images(pipeline, shuffled, out=tmp_path / "b", n=2, seed=1, originals=False)
    first = {p.id: p.image for p in found}
    assert len(again) == 8 and all(np.array_equal(p.image, first[p.id]) for p in again), "by seed and id alone"
    assert not [p for p in found.without_group("g1") if p.group == "g1"]


def test_images_that_do_not_fit_or_would_be_painted_are_refused(tmp_path: Path) -> None:
    for generator, message in ((tiny_translator("oasis"), "kind translate: it paints"),
                               (tiny_appearance(channels=3), "images of 1 channel")):
        with pytest.raises(UserError, match=message):
            synth.translate_images(generator, squares(2), out=tmp_path / "x")
    with pytest.raises(UserError, match="n=0"):
        synth.translate_images(tiny_appearance(), squares(2), out=tmp_path / "x", n=0)
    assert not any(tmp_path.iterdir())

"""The spectral generator: its contract, what each operation does, fitting, drawing, and changes before painting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from contract_generator import GeneratorContract, request
from tiny import blind_judge, files_of, squares, tiny_pipeline

import synth
from synth.appearance import SpectralPipeline, SpectralSettings
from synth.appearance.amplitudes import Amplitudes, Lenders
from synth.appearance.pipeline import pipeline_of
from synth.appearance.settings import OperationSettings
from synth.cli import app
from synth.core.checks import UserError
from synth.core.pairs import PairSet, memory_set
from synth.core.shell import run
from synth.core.space import pixels_to_unit
from synth.draw import verify_shards
from synth.draw.painters import seeds_apart
from synth.fit import load_generator
from synth.formats import read_shards
from synth.gates import default_gates
from synth.spectral import Border, FrequencyPrior
from synth.spectral.swap import amplitude_to_lend, lend_amplitude

CONFIG = Path(__file__).parents[2] / "configs" / "spectral.yaml"
PAIRS = squares(6)
REACH = {"match_ratio": (0.1, 0.4), "match_coded": (0.1, 0.4), "fda": (0.0, 0.1), "mix": (0.2, 1.0),
         "reweight": (0.3, 1.0), "kspace": (0.05, 0.3)}
KEEPS_PHASE = ("match_ratio", "reweight")


def spectral(name: str, *, channels: int = 1, value_range: tuple[float, float] = (0, 255),
             strength: tuple[float, float] | None = None, border: Border | None = None) -> SpectralPipeline:
    """Returns a generator of 32 px whose prior or lenders come from noise with a falling spectrum."""
    rng = torch.Generator().manual_seed(0)
    some = torch.nn.functional.avg_pool2d(torch.rand(5, channels, 34, 34, generator=rng) * 2 - 1, 3, 1)
    border = border or Border()
    prior = lenders = None
    if name.startswith("match_"):
        pixels = ((some + 1) * 127).round().byte().permute(0, 2, 3, 1).numpy()
        images = [p[..., 0] if channels == 1 else p for p in pixels]
        info = dataclasses.replace(PAIRS.info, channels=channels)
        prior = FrequencyPrior.fit(memory_set(images, None, info, ids=list("abcde"), groups=list("vwxyz")),
                                   kind="whole", size=32)
    elif name in ("fda", "mix"):
        lenders = Lenders(tuple("abcde"), tuple("vwxyz"), amplitude_to_lend(some, border).half())
    amplitudes = Amplitudes.of(channels=channels, size=32, prior=prior, lenders=lenders)
    operation = OperationSettings(name=name, strength=strength or REACH[name], border=border)
    return pipeline_of(amplitudes, operation, intensity_range=value_range,
                       bit_depth=8 if value_range[1] <= 255 else 16)


class TestRatio(GeneratorContract):
    """A match keeps the contract."""

    @pytest.fixture(scope="class")
    def generator(self) -> SpectralPipeline:
        """Returns it."""
        return spectral("match_ratio")


class TestCodedRgb(GeneratorContract):
    """So does the coded one, on RGB."""

    @pytest.fixture(scope="class")
    def generator(self) -> SpectralPipeline:
        """Returns it."""
        return spectral("match_coded", channels=3)


class TestMix(GeneratorContract):
    """And one that lends amplitudes, in 12 bits of 16."""

    @pytest.fixture(scope="class")
    def generator(self) -> SpectralPipeline:
        """Returns it."""
        return spectral("mix", value_range=(0, 4095))


class TestFda(GeneratorContract):
    """And one that lends low amplitudes."""

    @pytest.fixture(scope="class")
    def generator(self) -> SpectralPipeline:
        """Returns it."""
        return spectral("fda")


class TestReweight(GeneratorContract):
    """And one that knows nothing of other images."""

    @pytest.fixture(scope="class")
    def generator(self) -> SpectralPipeline:
        """Returns it."""
        return spectral("reweight")


class TestKspace(GeneratorContract):
    """And one that adds noise."""

    @pytest.fixture(scope="class")
    def generator(self) -> SpectralPipeline:
        """Returns it."""
        return spectral("kspace")


@pytest.mark.parametrize("name", sorted(set(REACH) - {"fda"}))
def test_strength_0_returns_the_source(name: str) -> None:
    image, mask = request(spectral(name))
    still = spectral(name, strength=(0.0, 0.0))
    assert torch.allclose(still.sample(image, mask, seeds=(1, 2, 3)), image, atol=1e-5)


@pytest.mark.parametrize("name", KEEPS_PHASE)
def test_phases_and_brightness_stay(name: str) -> None:
    bare = spectral(name, border=Border(pad=0, field_of_view="all", clamp=False), strength=(0.1, 0.1))
    image, mask = request(bare)
    before, after = (torch.fft.rfft2(0.3 * x) for x in (image, bare.sample(0.3 * image, mask, seeds=(1, 2, 3)) / 0.3))
    big = before.abs() > 1e-2
    assert ((after / before)[big].angle().abs() < 1e-3).all() and (after.abs() - before.abs())[big].abs().max() > 1e-2


def test_the_image_and_never_the_mask_decides() -> None:
    generator = spectral("match_ratio")
    image, mask = request(generator)
    made, other = (generator.sample(image, labels, seeds=(1, 2, 3)) for labels in (mask, 1 - mask))
    assert torch.equal(made, other)
    assert generator.keeps == "nothing" and not generator.kept(mask).any()


def test_a_lender_is_named_and_its_amplitudes_are_what_the_row_gets() -> None:
    generator = spectral("mix", strength=(1.0, 1.0), border=Border(pad=0, field_of_view="all", clamp=False))
    image, mask = request(generator)
    made, names = generator.sample(0.2 * image, mask, seeds=(4, 5, 6)), generator.lenders((4, 5, 6))
    for row, (name, group) in enumerate(names):
        place = "abcde".index(name)
        assert group == "vwxyz"[place]
        own = torch.fft.rfft2((made[row] + 1) / 2, norm="ortho").abs()
        lent = generator.amplitudes.lent[place].float()
        assert (own - lent).abs().max() < 2e-2 * lent.max()
    assert spectral("kspace").lenders((1, 2)) == (None, None)


def test_lent_amplitudes_must_be_of_the_images_size() -> None:
    generator = spectral("mix")
    image, _ = request(generator)
    with pytest.raises(UserError, match="coefficient by coefficient"):
        lend_amplitude(image, generator.amplitudes.lent[:3, ..., :5].float(), None or _drawn(generator))


def _drawn(generator: SpectralPipeline):  # noqa: ANN202 - three shares for three images
    from synth.core.rng import sample_rng
    from synth.spectral import MixSettings, draw_mix

    return draw_mix([sample_rng(i) for i in range(3)], MixSettings(border=generator.border))


def pile() -> synth.ImageSet:
    """Returns unlabelled images of other groups."""
    return memory_set([p.image for p in squares(4, seed=9)], None, PAIRS.info, ids=[f"u{i}" for i in range(4)],
                      groups=[f"h{i}" for i in range(4)])


def fitted(out: Path, name: str = "match_ratio", **words: object) -> SpectralPipeline:
    """Returns a generator fitted on squares and, for those that lend, on the pile."""
    settings = {"kind": "spectral", "size": 32, "operation": {"name": name, "strength": list(REACH[name])}, **words}
    return synth.fit(settings, PAIRS, pile() if name in ("fda", "mix") else None, out=out)


def test_a_fit_is_a_folder_that_loads_and_is_the_same_when_run_again(tmp_path: Path) -> None:
    made = fitted(tmp_path / "run")
    assert isinstance(made, SpectralPipeline) and (made.size, made.channels, made.config.bit_depth) == (32, 1, 8)
    expected = FrequencyPrior.fit(PAIRS, size=32)
    assert made.amplitudes.prior.content_hash() == expected.content_hash()
    before = files_of(tmp_path / "run")
    assert fitted(tmp_path / "run").content_hash() == made.content_hash() and files_of(tmp_path / "run") == before
    assert load_generator(tmp_path / "run").content_hash() == made.content_hash()
    assert {p.suffix for p in (tmp_path / "run" / "amplitudes").iterdir()} == {".json", ".safetensors"}
    with pytest.raises(UserError, match="another spectral run"):
        fitted(tmp_path / "run", seed=1)
    wider = PairSet(PAIRS.items, dataclasses.replace(PAIRS.info, intensity_range=(0.0, 300.0)))
    with pytest.raises(UserError, match=r"fitted over the range \(0.0, 255.0\).*\(0.0, 300.0\) now"):
        synth.fit({"kind": "spectral", "size": 32, "operation": {"strength": list(REACH["match_ratio"])}}, wider,
                  out=tmp_path / "run")


def test_what_is_lent_comes_from_the_pile_and_is_stored_in_half_precision(tmp_path: Path) -> None:
    made = fitted(tmp_path / "run", "mix")
    lent = made.amplitudes.lent
    assert lent.dtype == torch.float16 and lent.shape[0] == 4
    assert set(made.amplitudes.config.lender_groups) == {"h0", "h1", "h2", "h3"}
    one = pixels_to_unit(pile()[0].image[None, None], PAIRS.info.intensity_range)
    row = list(made.amplitudes.config.lender_ids).index("u0")
    assert torch.allclose(lent[row].float(), amplitude_to_lend(one, Border())[0], rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("words", "says"), [
    ({"operation": {"name": "fda", "strength": [0, 0.8]}}, r"\[0, 0.5\]"),
    ({"operation": {"name": "mix", "strength": [0.5, 0.2]}}, "smaller number first"),
    ({"prior": {"size": 64}}, "leave prior.size out"), ({"operation": {"name": "blur"}}, "match_ratio"),
    ({"prior": {"bands": 17}}, "no more than 16 rings"),
    ({"prior": {"bands": 8}, "operation": {"name": "fda", "strength": [0, 0.1]}}, "does not read it"),
    ({"operation": {"n_references": 8}}, "leave operation.n_references= out"),
    ({"kind": "spectrum"}, "no such kind")])
def test_wrong_settings_are_refused(tmp_path: Path, words: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        synth.fit({"kind": "spectral", "size": 32, **words}, PAIRS, out=tmp_path / "run")
    assert not (tmp_path / "run").exists(), "a folder that nothing could be fitted in is not held"


def test_the_command_fits_and_draws_pairs_with_untouched_masks(tmp_path: Path) -> None:
    synth.write_folder(PAIRS, tmp_path / "labelled")
    data = f"data.labelled={tmp_path}/labelled"
    assert _cli("fit", CONFIG, "size=32", data, f"out={tmp_path}/run") == 0
    assert _cli("draw", "configs/draw.yaml", f"generator={tmp_path}/run", data, "n=8", "layout.flip=none",
                f"out={tmp_path}/made") == 0
    assert _cli("audit", tmp_path / "made") == 0
    made, real = synth.load_pairs(tmp_path / "made"), {p.id: p for p in PAIRS}
    assert len(made) == 8 and verify_shards(tmp_path / "made") == []
    for pair in made:
        parent = real[pair.made.parents[0]]
        assert np.array_equal(pair.mask, parent.mask) and pair.group == parent.group and pair.id.startswith("spectral-")
        assert not np.array_equal(pair.image, parent.image) and pair.made.kept_sha256 == ""
        assert json.loads(pair.made.settings)["mode"] == "appearance"
    card = (tmp_path / "made" / "README.md").read_text()
    assert "no picture is new" in card


def _cli(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(lambda: app([str(w) for w in words]))
    return int(stopped.value.code or 0)


def test_the_lenders_group_is_a_parent_and_its_children_can_be_recalled(tmp_path: Path) -> None:
    made = synth.draw(fitted(tmp_path / "run", "mix"), PAIRS, n=12, out=tmp_path / "made")
    for pair in made:
        assert pair.made.parent_groups[0] == pair.group and pair.made.parent_groups[1] in {"h0", "h1", "h2", "h3"}
    lender = made[0].made.parent_groups[1]
    left = made.without_group(lender)
    assert 0 < len(left) < 12 and all(lender not in p.made.parent_groups for p in left)


def test_a_translation_names_its_lender_and_is_recalled_with_it(tmp_path: Path) -> None:
    generator = fitted(tmp_path / "run", "mix")
    synth.translate_images(generator, PAIRS, out=tmp_path / "made", n=2, seed=5)
    made = synth.load_images(tmp_path / "made")
    drawn = [item for item in made.items if item.made]
    assert len(drawn) == 12 and all(item.made.parents[0] == item.id.partition("-")[0] for item in drawn)
    for item in drawn:
        assert item.made.parent_groups[0] == item.group
        assert (item.made.parents[1], item.made.parent_groups[1]) == generator.lenders([item.made.seed])[0]
    lender = drawn[0].made.parent_groups[1]
    left = made.without_group(lender)
    assert 6 < len(left) < 18 and not any(i.made and lender in i.made.parent_groups for i in left.items)


@pytest.mark.parametrize("name", ["match_ratio", "match_coded", "fda", "mix", "kspace", "reweight"])
def test_a_dark_frame_comes_out_as_it_went_in(name: str) -> None:
    rows, columns = np.mgrid[:32, :32]
    image = torch.from_numpy(np.where((rows - 15.5) ** 2 + (columns - 15.5) ** 2 < 150, 0.3, -1.0)).float()
    image = image + 0.2 * (image > 0) * torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    made = spectral(name).sample(image[None, None], torch.zeros(1, 32, 32, dtype=torch.long), seeds=[1])
    assert (made[0, 0, :4, :4] == -1).all() and not torch.equal(made[0, 0], image)


def test_no_image_is_lent_its_own_amplitudes(tmp_path: Path) -> None:
    found = synth.translate_images(spectral("fda"), pile_of_one("a", "v"), out=tmp_path / "made", n=12, originals=False)
    families = {(item.made.parents, item.made.parent_groups) for item in found.items}
    assert (("a",), ("v",)) not in families and (("a", "b"), ("v", "w")) in families
    made = synth.draw(spectral("fda"), named_as_the_lenders(), n=40, out=tmp_path / "drawn")
    assert all(len(set(item.made.parents)) == 2 for item in made.items)


def test_a_lender_of_another_group_comes_first_and_the_only_one_is_refused() -> None:
    generator = spectral("fda")
    seeds = range(60)
    apart = seeds_apart(generator, seeds, [("a", "v")] * 60)
    own = [(s, one) for s, one in zip(seeds, apart, strict=True) if generator.lenders([s])[0][0] != "a"]
    assert 20 < len(own) < 60 and all(s == one for s, one in own), "a seed that lends another's stays as it is"
    assert all(generator.lenders([one])[0][1] != "w" for one in seeds_apart(generator, seeds, [("x", "w")] * 60))
    generator.amplitudes.register_to_config(lender_ids=["a"] * 5, lender_groups=["v"] * 5)
    with pytest.raises(UserError, match="but this image's own"):
        seeds_apart(generator, [0], [("a", "v")])


def named_as_the_lenders() -> PairSet:
    """Returns labelled pairs of the ids and groups of those that `spectral` lends of, and one more."""
    return memory_set([p.image for p in PAIRS], [p.mask for p in PAIRS], PAIRS.info, ids=list("abcdef"),
                      groups=list("vwxyzu"))


def pile_of_one(name: str, group: str) -> synth.ImageSet:
    """Returns one unlabelled image called `name` of that group."""
    return memory_set([PAIRS[0].image], None, PAIRS.info, ids=[name], groups=[group])


def test_a_known_picture_passes_and_a_judge_that_does_not_know_it_rejects(tmp_path: Path) -> None:
    generator = fitted(tmp_path / "run")
    gates = default_gates(None, PAIRS, size=32)
    made = synth.draw(generator, PAIRS, n=6, gates=gates, out=tmp_path / "made")
    assert max(p.made.scores["correlation"] for p in made) > gates.max_correlation, "noted, not judged"
    blind = dataclasses.replace(default_gates(blind_judge, PAIRS, size=32), min_faithfulness=0.5)
    with pytest.raises(UserError, match="passed the gates"):
        synth.draw(generator, PAIRS, n=4, gates=blind, out=tmp_path / "none")
    rejected = read_shards(tmp_path / "none", "rejected")
    assert all("faithfulness" in i.made.reason and "correlation" not in i.made.reason for i in rejected.items)


def test_nothing_of_a_known_mask_becomes_ignore_whatever_the_judge_sees(tmp_path: Path) -> None:
    def eager(images: torch.Tensor) -> torch.Tensor:
        p = torch.full_like(images[:, 0], 0.99)
        return torch.stack([1 - p, p], 1)

    made = synth.draw(fitted(tmp_path / "run"), PAIRS, n=6, out=tmp_path / "made",
                      gates=dataclasses.replace(default_gates(eager, PAIRS, size=32), min_faithfulness=0.0))
    assert all(set(np.unique(p.mask)) <= {0, 1} for p in made)


# Before painting ------------------------------------------------------------------------------------------------------

def drawn(out: Path, *, share: float = 1.0, appearance: SpectralPipeline | None = None) -> PairSet:
    """Returns 8 painted pairs, the appearance of that share of their sources changed first."""
    return synth.draw(tiny_pipeline(), PAIRS, n=8, seed=3, out=out, appearance=appearance,
                      config={"appearance_share": share, "batch_size": 4})


def test_a_share_of_sources_needs_what_changes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="appearance_share=0.5"):
        drawn(tmp_path / "made", share=0.5)


def test_what_is_kept_is_that_of_the_changed_source(tmp_path: Path) -> None:
    lend = fitted(tmp_path / "run", "mix")
    made, plain = drawn(tmp_path / "made", appearance=lend), drawn(tmp_path / "plain")
    assert verify_shards(tmp_path / "made") == []
    for pair, before in zip(made, plain, strict=True):
        assert np.array_equal(pair.mask, before.mask) and pair.made.kept_sha256 != before.made.kept_sha256
        assert not np.array_equal(pair.image[pair.mask == 1], before.image[before.mask == 1])
        assert json.loads(pair.made.layout)["appearance"] == lend.content_hash()
        assert set(pair.made.parent_groups) & {"h0", "h1", "h2", "h3"}, "whose amplitudes they are"
    files = [p for p in (tmp_path / "made" / "data").glob("train-*")]
    files[0].write_bytes(files[0].read_bytes()[:-9] + b"x" * 9)
    assert verify_shards(tmp_path / "made")


def test_share_0_changes_nothing_and_a_half_some(tmp_path: Path) -> None:
    generator, plain = fitted(tmp_path / "run"), drawn(tmp_path / "plain")
    for pair, before in zip(drawn(tmp_path / "none", share=0.0, appearance=generator), plain, strict=True):
        assert np.array_equal(pair.image, before.image) and pair.made == before.made
    some = drawn(tmp_path / "some", share=0.5, appearance=generator)
    changed = [pair.made.layout != before.made.layout for pair, before in zip(some, plain, strict=True)]
    assert 0 < sum(changed) < 8
    for pair, before, is_changed in zip(some, plain, changed, strict=True):
        assert is_changed or pair.made.kept_sha256 == before.made.kept_sha256


def test_what_does_not_fit_the_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind spectral"):
        drawn(tmp_path / "a", appearance=tiny_pipeline())
    with pytest.raises(UserError, match="size=32"):
        drawn(tmp_path / "b", appearance=spectral("kspace", channels=3))


def test_settings_there_and_back() -> None:
    from synth.core.config import load_config

    settings = load_config(SpectralSettings, CONFIG)
    assert load_config(SpectralSettings, settings.model_dump(mode="json")) == settings

"""The translators' pipeline: the generator's contract for each model, what it is told, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from contract_generator import SEEDS, GeneratorContract, request
from PIL import Image
from tiny import launch, squares, tiny_translator

import synth
from synth.audit import audit_seam
from synth.core.checks import IGNORE, UserError
from synth.draw.modes import with_changes
from synth.gan.told import labels_to_told, signed_distance
from synth.gan.translate import TranslatePipeline


class TestPix2pix(GeneratorContract):
    """A U-Net for grey images keeps the contract."""

    @pytest.fixture(scope="class")
    def generator(self) -> TranslatePipeline:
        """Returns it."""
        return tiny_translator("pix2pix")


class TestSpade(GeneratorContract):
    """So does SPADE for RGB."""

    @pytest.fixture(scope="class")
    def generator(self) -> TranslatePipeline:
        """Returns it."""
        return tiny_translator("spade", channels=3)


class TestOasis(GeneratorContract):
    """And OASIS for 16-bit grey."""

    @pytest.fixture(scope="class")
    def generator(self) -> TranslatePipeline:
        """Returns it."""
        return tiny_translator("oasis", value_range=(0, 4095))


@pytest.fixture(scope="module", params=["pix2pix", "oasis"])
def pipeline(request: pytest.FixtureRequest) -> TranslatePipeline:
    """Returns an untrained translator of each network."""
    return tiny_translator(request.param)


@pytest.mark.parametrize("model", ["pix2pix", "spade", "oasis"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_channels_is_drawn(model: str, channels: int) -> None:
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    assert tiny_translator(model, channels=channels).draw(mask, seeds=[0]).shape == (1, channels, 32, 32)


def test_alone_and_in_a_batch_are_equal_bit_for_bit(pipeline: TranslatePipeline) -> None:
    image, mask = request(pipeline)
    batch = pipeline.sample(image, mask, seeds=SEEDS)
    for i in range(3):
        assert torch.equal(batch[i:i + 1], pipeline.sample(image[i:i + 1], mask[i:i + 1], seeds=SEEDS[i:i + 1]))


def test_the_label_and_the_frame_are_told_and_the_source_is_not(pipeline: TranslatePipeline) -> None:
    image, mask = request(pipeline)
    drawn = pipeline.sample(image, mask, seeds=[1, 1, 1])
    assert torch.equal(drawn, pipeline.sample(-image, mask, seeds=[1, 1, 1]))
    assert all((drawn[a] - drawn[b]).abs().mean() > 1e-3 for a, b in ((0, 1), (1, 2)))
    frame = torch.zeros_like(mask, dtype=torch.bool)
    frame[:, :4] = True
    assert (pipeline.sample(image, mask, seeds=[1, 1, 1], keep_in=frame) - drawn).abs().mean() > 1e-3
    assert not pipeline.kept(mask, frame).any() and pipeline.keeps == "nothing"


def test_called_like_a_pipeline_of_diffusers(pipeline: TranslatePipeline) -> None:
    image, mask = request(pipeline)
    seen: list[tuple[int, int]] = []
    drawn = pipeline(mask, seeds=SEEDS, output_type="pt", callback_on_step_end=lambda *now: seen.append(now)).images
    assert torch.equal(drawn, pipeline.sample(image, mask, seeds=SEEDS)) and seen == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(pipeline(mask, seeds=SEEDS).images[0], Image.Image)
    assert pipeline(mask, seeds=SEEDS, output_type="np").images.shape == (3, 32, 32, 1)
    two = [pipeline(mask, generator=torch.Generator().manual_seed(1), output_type="pt").images for _ in range(2)]
    assert torch.equal(*two)
    for words, message in (({"output_type": "jpg"}, "no such form"), ({"seeds": SEEDS[:1]}, "seed"),
                           ({"seeds": SEEDS, "generator": torch.Generator()}, "both")):
        with pytest.raises(UserError, match=message):
            pipeline(mask, **words)


def test_labels_that_it_never_learnt_are_refused(pipeline: TranslatePipeline) -> None:
    image, mask = request(pipeline)
    mask[0, 0, 0] = 3
    with pytest.raises(UserError, match="label 3: .*classes 0 to 2"):
        pipeline.sample(image, mask, seeds=SEEDS)
    mask[0, 0, 0] = IGNORE
    assert torch.isfinite(pipeline.sample(image, mask, seeds=SEEDS)).all()


def test_the_distance_is_signed_and_knows_no_border_of_the_image() -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 8:24] = 1
    distance = signed_distance(mask)
    assert distance[8, 12] == pytest.approx(1 / 8) and distance[7, 12] == pytest.approx(-1 / 8)
    assert distance[15, 15] == 1 and distance[0, 0] == -1, "beyond a quarter of the side nothing is farther"
    assert np.array_equal(signed_distance(np.rot90(mask)), np.rot90(distance))
    assert (signed_distance(np.zeros_like(mask)) == -1).all() and (signed_distance(np.ones_like(mask)) == 1).all()
    mask[:4] = IGNORE
    told = labels_to_told(torch.from_numpy(mask.astype(np.int64))[None], torch.zeros(1, 32, 32, dtype=torch.bool),
                          n_classes=2)
    assert told.shape == (1, 4, 32, 32) and not told[:, :, :4].any(), "nothing is told where nothing is known"


def test_what_it_has_not_is_said_plainly(tmp_path: Path) -> None:
    pairs, pipeline = squares(6), tiny_translator("oasis")
    with pytest.raises(UserError, match="no sampler to set"):
        with_changes(pipeline, {"n_steps": 8})
    with pytest.raises(UserError, match="keeps: nothing.*repaint_share=0"):
        synth.draw(pipeline, pairs, n=1, out=tmp_path / "a", config={"repaint_share": 0.5})
    with pytest.raises(UserError, match="no sampler to set"):
        synth.draw(pipeline, pairs, n=1, out=tmp_path / "b", hosts=pairs)
    with pytest.raises(UserError, match="no autoencoder"):
        synth.draw_roundtrip(pipeline, pairs, n=1, out=tmp_path / "c")
    with pytest.raises(UserError, match="keeps no pixels"):
        audit_seam(pipeline, pairs, n=4)
    assert not any(tmp_path.iterdir()), "nothing was begun"


def test_what_is_drawn_says_so_and_is_judged_everywhere(tmp_path: Path) -> None:
    pairs = squares(6)
    made = synth.draw(tiny_translator("oasis"), pairs, n=4, out=tmp_path / "made", gates=synth.default_gates(
        None, pairs, size=32), config={"shard_size": 4, "batch_size": 2})
    one = made[0]
    assert one.id.startswith("translate-") and one.made.kept_sha256 == "" and '"mode": "layout"' in one.made.settings
    assert set(one.made.scores) == {"correlation", "spectrum"} and one.made.parents[0] in pairs.ids


@pytest.mark.slow
def test_two_processes_draw_the_same_files(tmp_path: Path) -> None:
    pipeline = tiny_translator("oasis")
    pipeline.save_pretrained(tmp_path / "painter")
    synth.write_folder(squares(6), tmp_path / "labelled")
    words = ["-m", "synth.cli", "draw", Path(__file__).parents[2] / "configs" / "draw.yaml", "n=8", "shard_size=2",
             f"generator={tmp_path}/painter", f"data.labelled={tmp_path}/labelled"]
    for n in (1, 2):
        done = launch([*words, f"out={tmp_path}/{n}"], n_processes=n)
        assert done.returncode == 0, done.stderr
    files = [{p.name: p.read_bytes() for p in (tmp_path / str(n) / "data").iterdir()} for n in (1, 2)]
    assert files[0] == files[1] and len(files[0]) >= 4

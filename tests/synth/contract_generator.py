"""What every generator must do. A test module subclasses `GeneratorContract` and gives it a `generator` fixture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom
from tiny import files_of

import synth
from synth.core.checks import UserError
from synth.core.space import labels_to_keep
from synth.draw.painters import generator_painter
from synth.draw.sources import Sources
from synth.generator import Generator

SEEDS = (11, 12, 13)


def request(generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns three different images, unit (3, C, S, S), and their labels (3, S, S): a disc, a ring, nothing."""
    size = generator.size
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    radius = (x**2 + y**2).sqrt()
    mask = torch.stack([radius < 0.4, (radius > 0.5) & (radius < 0.6), torch.zeros_like(x, dtype=torch.bool)]).long()
    rng = torch.Generator().manual_seed(5)
    noise = torch.rand(3, generator.channels, size, size, generator=rng) * 0.6 - 0.8
    return torch.where(mask[:, None] > 0, 0.7, noise), mask


class GeneratorContract:
    """The contract; a subclass provides the fixture `generator`."""

    def test_samples_are_finite_unit_images_of_the_right_shape(self, generator: Generator) -> None:
        image, mask = request(generator)
        sample = generator.sample(image, mask, seeds=SEEDS)
        assert sample.shape == image.shape and sample.dtype == torch.float32 and sample.device.type == "cpu"
        assert torch.isfinite(sample).all() and sample.abs().max() <= 1

    def test_one_seed_gives_one_image(self, generator: Generator) -> None:
        image, mask = request(generator)
        before = image.clone(), mask.clone(), torch.get_rng_state()
        first = generator.sample(image, mask, seeds=SEEDS)
        assert torch.equal(first, generator.sample(image, mask, seeds=SEEDS))
        assert torch.equal(image, before[0]) and torch.equal(mask, before[1])
        assert torch.equal(torch.get_rng_state(), before[2]), "drew from torch's global generator"

    def test_another_seed_gives_another_surrounding(self, generator: Generator) -> None:
        image, mask = request(generator)
        first = generator.sample(image, mask, seeds=SEEDS)
        other = generator.sample(image, mask, seeds=[s + 1 for s in SEEDS])
        outside = ~labels_to_keep(mask)[:, None].expand_as(image)
        for row in range(3):
            assert (first[row] - other[row])[outside[row]].abs().mean() > 1e-3

    def test_an_image_is_the_same_alone_and_in_a_batch(self, generator: Generator) -> None:
        image, mask = request(generator)
        batch = generator.sample(image, mask, seeds=SEEDS)
        for row in range(3):
            alone = generator.sample(image[row:row + 1], mask[row:row + 1], seeds=SEEDS[row:row + 1])
            assert torch.allclose(alone[0], batch[row], atol=2e-4)

    def test_what_it_is_said_to_keep_of_what_is_written_is_the_sources(self, generator: Generator) -> None:
        _, mask = request(generator)
        rng, low_high = np.random.default_rng(0), generator.intensity_range
        dtype = np.uint8 if low_high[1] <= 255 else np.uint16
        # All of the type's values, so beyond the unit range too: kept pixels are copied, not converted and back.
        shape = (3, generator.channels, generator.size, generator.size)
        pixels = rng.integers(0, int(np.iinfo(dtype).max) + 1, shape)
        labels = mask.numpy().astype(np.uint8)
        sources = Sources(("a", "b", "c"), (0, 1, 2), SEEDS, pixels.astype(dtype), labels, ("{}",) * 3,
                          np.tile(np.arange(generator.size) < 3, (3, generator.size, 1)), (None,) * 3)
        painted = generator_painter(generator)(sources)
        keep = generator.kept(torch.from_numpy(labels).long(), torch.from_numpy(sources.keep_in)).numpy()
        assert generator.keeps != "foreground" or keep[labels > 0].all()
        keep = np.broadcast_to(keep[:, None], pixels.shape)
        assert painted.pixels.dtype == dtype and np.array_equal(painted.pixels[keep], pixels[keep])
        assert np.array_equal(painted.labels, labels)
        assert (painted.pixels[~keep] != pixels[~keep]).mean() > 0.5, "painted nothing"

    def test_files_are_the_same_for_any_processes_and_batches(self, generator: Generator, tmp_path: Path) -> None:
        pairs = make_phantom(6, size=generator.size, channels=generator.channels, seed=3,
                             bit_depth=8 if generator.intensity_range[1] <= 255 else 16)
        pairs.info = dataclasses.replace(pairs.info, intensity_range=generator.intensity_range)
        kept = {}
        for name, batch_size in (("a", 2), ("again", 2), ("b", 4)):
            synth.draw(generator, pairs, n=4, seed=1, out=tmp_path / name,
                       config={"shard_size": 4, "batch_size": batch_size})
            kept[name] = {k: v for k, v in files_of(tmp_path / name).items() if k.startswith("data/")}
        assert kept["a"] == kept["again"] and kept["a"].keys() == kept["b"].keys()
        made = [synth.load_pairs(tmp_path / name) for name in ("a", "b")]
        for one, other in zip(*made, strict=True):
            assert one.id == other.id and np.array_equal(one.mask, other.mask)
            assert np.abs(one.image.astype(int) - other.image).max() <= generator.intensity_range[1] / 255
            assert one.made.kept_sha256 == other.made.kept_sha256
            assert (one.made.kept_sha256 == "") == (generator.keeps == "nothing")
        assert not synth.verify_shards(tmp_path / "a")

    def test_saved_and_loaded_it_is_the_same_generator(self, generator: Generator, tmp_path: Path) -> None:
        image, mask = request(generator)
        generator.save_pretrained(tmp_path)
        loaded = type(generator).from_pretrained(tmp_path)
        assert loaded.content_hash() == generator.content_hash() and len(loaded.content_hash()) == 16
        assert loaded.sampler_settings() == generator.sampler_settings()
        assert (loaded.size, loaded.channels) == (generator.size, generator.channels)
        assert loaded.intensity_range == generator.intensity_range
        assert torch.equal(loaded.sample(image, mask, seeds=SEEDS), generator.sample(image, mask, seeds=SEEDS))
        assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pkl")], "only safetensors"

    def test_other_weights_have_another_hash(self, generator: Generator, tmp_path: Path) -> None:
        generator.save_pretrained(tmp_path)
        changed = type(generator).from_pretrained(tmp_path)
        network = next(c for c in changed.components.values() if isinstance(c, torch.nn.Module))
        with torch.no_grad():
            next(network.parameters()).flatten()[0].add_(1e-3)
        assert changed.content_hash() != generator.content_hash()

    @pytest.mark.parametrize("wrong", ["one seed", "image size", "mask size", "channels", "no batch"])
    def test_what_does_not_fit_is_refused(self, generator: Generator, wrong: str) -> None:
        image, mask = request(generator)
        seeds = SEEDS[:1] if wrong == "one seed" else SEEDS
        if wrong == "image size":
            image = image[..., : generator.size // 2]
        elif wrong == "mask size":
            mask = mask[:, ::2, ::2]
        elif wrong == "channels":
            image = image.repeat(1, 2, 1, 1)
        elif wrong == "no batch":
            image, mask = image[0], mask[0]
        with pytest.raises(UserError, match="seed"):
            generator.sample(image, mask, seeds=seeds)

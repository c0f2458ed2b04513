"""Small recipes and steps on the phantom, for tests of methods and of what their slots do."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from phantom import make_phantom

from segtrain.method import Method, load_method
from segtrain.models import build_model
from segtrain.priors import find_prior
from segtrain.recipe import SegmentRecipe
from segtrain.scene import Scene, Supervised
from segtrain.settings import AugmentSettings, ModelSettings, SegmentSettings
from segtrain.streams import Streams
from segtrain.streams.extras import Extras
from segtrain.targets import Target, from_labels
from segtrain.topology import Topology
from segtrain.train import make_extras
from segtrain.views import PERTURBATIONS
from synth.core.config import load_config
from synth.core.loop import LoopSettings
from synth.core.pairs import DataInfo, PairSet, memory_set
from synth.core.rng import sample_rng
from synth.formats import write_folder
from synth.spectral import FrequencyPrior

SETTINGS = SegmentSettings(size=32, batch_size=4, unlabelled_batch_size=4, loop=LoopSettings(steps=6),
                           model=ModelSettings(name="tiny", channels=(8, 16)))
PAIRS = make_phantom(6, size=32, n_groups=3)


def changed(name: str, **changes: object) -> Method:
    """Returns the packaged method `name` with some fields replaced."""
    return load_method(load_config(Method, {**load_method(name).model_dump(mode="json"), **changes}))


def extras_of(method: Method) -> Extras:
    """Returns what a method wants of the streams; masks beside the set are the phantom's own, in a folder."""
    folder = masks_folder()
    return make_extras(method, stored=folder if method.needs("stored") else None,
                       observers=(folder,) if method.needs("observers") else ())


@lru_cache(maxsize=1)
def masks_folder() -> Path:
    """Returns a folder with masks/ID.png of every phantom pair."""
    folder = Path(tempfile.mkdtemp())
    write_folder(PAIRS, folder)
    return folder


def run(method: Method | str, n_steps: int = 3, *, unlabelled: bool = True, settings: SegmentSettings = SETTINGS
        ) -> tuple[SegmentRecipe, list[dict[str, torch.Tensor]]]:
    """Returns the recipe after some steps on the phantom, and what each step logged."""
    method = load_method(method)
    recipe = SegmentRecipe(settings, method, info=PAIRS.info, has_synthetic=False,
                           prior=find_prior(settings, method, PAIRS))
    streams = Streams.read(settings, PAIRS, unlabelled=PAIRS if unlabelled else None, extras=extras_of(method))
    steps = settings.loop.steps
    return recipe, [recipe.step(streams.batches(i, 0, 1), i / steps) for i in range(n_steps)]


def weights(recipe: SegmentRecipe, name: str | None = None) -> list[torch.Tensor]:
    """Returns the parameters of the network `name`; without one, of the first."""
    return list(recipe.nets[name or next(iter(recipe.nets))].parameters())


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """Returns whether two lists of parameters are equal, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def make_scene(n: int = 3, *, size: int = 16, channels: int = 1, n_classes: int = 2, seed: int = 0) -> Scene:
    """Returns one step's scene: `n` labelled and `n` unlabelled smooth images, a tiny network, nothing perturbed."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2 * n, channels, 4, 4, generator=rng) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=True)
    labels = (images.mean(1) > 0).long() + (n_classes > 2) * (images.mean(1) > 0.5).long()
    model = ModelSettings(name="tiny", channels=(8, 16))
    topology = Topology({"student": build_model("tiny", channels, n_classes, model)})
    given = Supervised(images[:n], labels[:n], torch.zeros(n, dtype=torch.bool), torch.arange(n), tuple(range(n)))
    batch = {"images": images[:n], "labels": labels[:n], "unlabelled": images[n:],
             "unlabelled_seeds": torch.arange(n) + 100, "unlabelled_rows": torch.arange(n)}
    scene = Scene(0, 0.0, 10, n_classes, topology, {}, {}, batch, given, prior=prior_at(size))
    scene.show_clean(AugmentSettings().geometry)
    return scene


@lru_cache(maxsize=4)
def prior_at(size: int) -> FrequencyPrior:
    """Returns the frequency prior of phantoms at a size, for images of any number of channels."""
    return FrequencyPrior.fit(make_phantom(3, size=size), size=size, channels="grey")


def hard_target(labels: torch.Tensor, n_classes: int = 2) -> Target:
    """Returns the target that says `labels` (B, H, W)."""
    return from_labels(labels, n_classes)


def perturbed(name: str, scene: Scene, **settings: object) -> tuple[torch.Tensor, object]:
    """Returns what the perturbation `name` makes of the scene's clean images."""
    return PERTURBATIONS[name](**settings)(scene.clean, scene.rngs("test"), scene)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns normal numbers of a shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disc(size: int, row: int, column: int, radius: int) -> torch.Tensor:
    """Returns labels (size, size): a disc of class 1."""
    grid = torch.arange(size)
    return ((grid[:, None] - row).square() + (grid[None] - column).square() <= radius**2).long()


def named_rngs(n: int, name: str = "t") -> list[torch.Generator]:
    """Returns one generator for each of n rows."""
    return [sample_rng(7, name, i) for i in range(n)]


def random_images(n: int = 3, channels: int = 1, size: int = 16) -> torch.Tensor:
    """Returns random unit images (B, C, S, S)."""
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(6)) * 1.8 - 0.9


def native_pairs(shapes: tuple[tuple[int, int], ...] = ((50, 40), (36, 64), (20, 30)), channels: int = 1) -> PairSet:
    """Returns pairs of various sizes; the pixels of the object, a corner of 3 x 4 px, are brighter, and vary."""
    rng, images, masks = np.random.default_rng(0), [], []
    for height, width in shapes:
        mask = np.zeros((height, width), np.uint8)
        mask[-3:, -4:] = 1
        image = rng.integers(0, 100, (height, width, channels)).astype(np.uint8) + 100 * mask[..., None]
        images.append(image[..., 0] if channels == 1 else image)
        masks.append(mask)
    info = DataInfo(("background", "object"), channels, 8, (0.0, 255.0))
    names = [f"n{i}" for i in range(len(shapes))]
    return memory_set(images, masks, info, ids=names, groups=names)


def latent_settings(**model: object) -> SegmentSettings:
    """Returns the settings of a latent mapping around an untrained autoencoder, which is enough to see it work."""
    vae = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8, 8],
           "norm_num_groups": 8, "down_block_types": ["DownEncoderBlock2D"] * 2,
           "up_block_types": ["UpDecoderBlock2D"] * 2, "layers_per_block": 1, "mid_block_add_attention": False}
    settings = ModelSettings(name="gms", channels=(8, 16), autoencoder=json.dumps(vae), **model)
    return SETTINGS.model_copy(update={"model": settings})


def for_phantom(method: Method) -> tuple[Method, SegmentSettings]:
    """Returns the method and settings that it can run a few steps with: GMS wants an autoencoder, however bad."""
    if method.name != "gms":
        return method, SETTINGS
    terms = [{"use": {"latent_map": {"min_codec": 0}}, "ramp": False}]
    return changed("gms", regularisers=terms), latent_settings()

"""The latent mapping: colours of classes, frozen halves, a codec that cannot hold masks, a judge's folder by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from scenes import PAIRS, for_phantom, latent_settings, make_scene, run

import segtrain
from segtrain.method import load_method
from segtrain.models import build_model
from segtrain.models.gms import describe_autoencoder, palette
from segtrain.models.segnet import Seen
from segtrain.models.weights import identify
from segtrain.regularisers.latents import LatentMap, codec_dice
from segtrain.segmenter import Segmenter
from segtrain.settings import ModelSettings
from segtrain.topology import Topology
from synth.core.checks import IGNORE, UserError


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of an untrained autoencoder, as part of a pipeline's."""
    folder = tmp_path_factory.mktemp("painter")
    config = json.loads(latent_settings().model.autoencoder)
    torch.manual_seed(0)
    AutoencoderKL(**config, scaling_factor=0.7, shift_factor=0.1).save_pretrained(folder / "vae")
    return folder


@pytest.mark.parametrize(("n_classes", "channels"), [(2, 1), (2, 3), (5, 1), (8, 3), (20, 3)])
def test_classes_have_colours_of_their_own_background_black(n_classes: int, channels: int) -> None:
    colours = palette(n_classes, channels)
    assert colours.shape == (n_classes, channels) and colours.abs().max() <= 1
    assert (colours[0] == -1).all() and (colours[1] == 1).all() and len(colours.unique(dim=0)) == n_classes


class Mirror(torch.nn.Module):
    """A codec that gives back what it is given."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns x (B, C, H, W), as mean and log-variance for an encoder."""
        return torch.cat([x, torch.zeros_like(x)], dim=1) if self.first else x


def test_a_perfect_codec_gives_masks_back_and_the_nearest_colour_wins() -> None:
    net = build_model("gms", 3, 4, latent_settings().model)
    encoder, painter = net.encoder, net.heads[0]
    encoder.encoder, encoder.quant, encoder.scale = Mirror(first=True), None, 2.0
    painter.decoder, painter.quant, painter.scale = Mirror(first=False), None, 2.0
    labels = torch.randint(4, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    labels[0, 0] = IGNORE
    assert float(codec_dice(encoder, painter, labels)) == 1
    assert float(codec_dice(encoder, painter, torch.zeros_like(labels))) == 1
    logits = painter(2.0 * painter.paint(labels.clamp(max=3)))
    top = logits.topk(2, dim=1).values
    assert float((top[:, 0] - top[:, 1]).min()) >= 8 - 1e-4, "a pure colour leads by at least the sharpness"


def test_the_autoencoder_is_frozen_and_the_mapping_learns() -> None:
    method, settings = for_phantom(load_method("gms"))
    recipe, _ = run(method, 1, unlabelled=False, settings=settings)
    net = recipe.nets["student"]
    frozen = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("decoders")}
    moving = net.decoders[0].layers[0].weight.detach().clone()
    again, logs = run(method, 3, unlabelled=False, settings=settings)
    state = again.nets["student"].state_dict()
    assert all(torch.equal(value, state[key]) for key, value in frozen.items())
    assert not torch.equal(moving, again.nets["student"].decoders[0].layers[0].weight)
    assert all(float(line["loss_latent_map"]) > 0 for line in logs)


def test_half_of_the_latents_are_drawn_in_training_and_none_in_evaluation() -> None:
    net = build_model("gms", 1, 2, latent_settings().model)
    images = torch.rand(64, 1, 16, 16)
    mean = net.eval().encoder(images)[0]
    assert torch.equal(mean, net.encoder(images)[0])
    torch.manual_seed(0)
    same = (net.train().encoder(images)[0] - mean).abs().amax(dim=(1, 2, 3)) < 1e-6
    assert 16 < int(same.sum()) < 48


def test_masks_that_the_codec_cannot_hold_stop_the_run_before_it_trains() -> None:
    with pytest.raises(UserError, match="gives masks back with a Dice of"):
        run("gms", 1, unlabelled=False, settings=latent_settings())
    with pytest.raises(UserError, match="model.name=gms"):
        run("gms", 1, unlabelled=False)


def test_an_autoencoder_that_is_not_there_is_named(vae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is none"):
        build_model("gms", 1, 2, ModelSettings(name="gms", channels=(8,), autoencoder=str(tmp_path)))
    with pytest.raises(UserError, match="there is none"):
        identify(ModelSettings(name="gms", channels=(8,)))
    assert json.loads(describe_autoencoder(str(vae)))["scaling_factor"] == 0.7
    with pytest.raises(UserError, match="reads 3 channel"):
        build_model("gms", 2, 2, ModelSettings(name="gms", channels=(8,), autoencoder=str(vae)))
    with pytest.raises(UserError, match="images as they are"):
        build_model("gms", 3, 2, ModelSettings(name="gms", channels=(8,), autoencoder=str(vae)), standard="image")


def fitted(vae: Path, out: Path, steps: int = 4) -> Segmenter:
    """Returns a latent mapping fitted for a few steps on the phantom."""
    config = {"size": 32, "batch_size": 4, "loop": {"steps": steps, "checkpoint_every": 2, "log_every": 1},
              "model": {"name": "gms", "channels": [8, 16], "autoencoder": str(vae)}}
    method = out.parent / "loose.yaml"
    method.write_text((Path(segtrain.__file__).parents[1] / "configs/methods/gms.yaml").read_text().replace(
        "use: latent_map", "use: {latent_map: {min_codec: 0}}"))
    return segtrain.fit(config, PAIRS, method=method, out=out)


def test_its_folder_is_a_judge_without_the_autoencoder_it_came_from(vae: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (vae / "vae").rename(copy / "vae")
    model = fitted(copy, tmp_path / "run")
    (copy / "vae").rename(vae / "vae")
    loaded = segtrain.load_segmenter(tmp_path / "run")
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    assert torch.equal(loaded.predict(images), model.predict(images))
    assert loaded.content_hash() == model.content_hash()
    assert json.loads(loaded.config.model.autoencoder)["_weights"], "which autoencoder it was stands in its settings"
    assert loaded.net.heads[0].scale == 0.7


def test_a_cut_run_resumes_to_the_same_bytes(vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from segtrain.recipe import SegmentRecipe

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = fitted(vae, tmp_path / "a" / "run")
    step, n = SegmentRecipe.step, []

    def dies(self: SegmentRecipe, *args: object) -> object:
        n.append(1)
        if len(n) == 4:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(SegmentRecipe, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        fitted(vae, tmp_path / "b" / "run")
    monkeypatch.setattr(SegmentRecipe, "step", step)
    resumed = fitted(vae, tmp_path / "b" / "run")
    logs = [(tmp_path / one / "run" / "stats.jsonl").read_bytes() for one in "ab"]
    assert logs[0] == logs[1] and resumed.content_hash() == whole.content_hash()


def test_importing_the_trainer_brings_no_diffusers_in() -> None:
    code = "import sys, segtrain, segtrain.models, segtrain.recipe; assert 'diffusers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_ignored_cells_teach_the_mapping_nothing() -> None:
    scene = make_scene(2, size=16)
    net = build_model("gms", 1, 2, latent_settings().model)
    labels = scene.supervised.labels.clone()
    labels[:, :, :8] = IGNORE
    scene.topology, scene.step = Topology({"student": net}), 1
    scene.supervised = replace(scene.supervised, labels=labels)
    wanted = net.encoder.latents(net.heads[0].paint(labels.masked_fill(labels == IGNORE, 0)))
    term, left, right = LatentMap(), wanted.clone(), wanted.clone()
    left[..., :4] += 1
    right[..., 4:] += 1
    losses = []
    for hidden in (wanted, left, right):
        scene.seen = {"student": Seen(hidden, hidden, hidden)}
        losses.append(float(term(scene)))
    assert losses == pytest.approx([0, 0, 1], abs=1e-5)

"""Judges and referees from the shell, end to end on the phantom: segtrain fit, then synth draw and synth curate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from phantom import make_phantom
from synth_shell import CONFIGS, mistake, synth_cli
from tiny import files_of, tiny_translator

import segtrain
import synth
from segtrain.cli import app as segtrain_app
from synth.core.checks import IGNORE
from synth.core.pairs import PairSet
from synth.core.shell import run
from synth.core.space import pixels_to_unit
from synth.draw.curated import BUDGET
from synth.draw.curation import pixel_loss, real_pairs
from synth.formats import read_shards
from synth.gates.gates import Predict
from synth.gates.scores import faithfulness
from synth.generator import CURATED

REAL = make_phantom(12, size=32, n_groups=4, seed=1)
FIT = {"size": 32, "batch_size": 8, "optim": {"lr": 0.005}, "augment": {"geometry": {"p": 0}},
       "loop": {"steps": 120, "checkpoint_every": 120}}
MODELS = {
    "tiny": ("supervised", {"name": "tiny", "channels": [8, 16]}),
    "unetpp": ("supervised", {"name": "unetpp", "channels": [8, 16]}),
    "pulaski": ("pulaski", {"name": "prob_tiny", "channels": [8, 16], "latent": 3, "n_samples": 4}),
    "gms": ("gms", {"name": "gms", "channels": [16, 32]}),
}
"""Method and network of each segmenter."""


def segtrain_cli(*words: object) -> int:
    """Returns the exit code of `segtrain WORDS`, run in this process."""
    with pytest.raises(SystemExit) as stopped:
        run(lambda: segtrain_app([str(w) for w in words]))
    return int(stopped.value.code or 0)


def others() -> PairSet:
    """Returns pairs of patients that nothing was fitted on."""
    pairs = make_phantom(8, size=32, n_groups=2, seed=5)
    return PairSet([dataclasses.replace(i, id=f"h{i.id}", group=f"h{i.group}") for i in pairs.items], pairs.info)


def write_autoencoder(folder: Path) -> None:
    """Writes an autoencoder fitted for seconds on the phantom's images and masks, as part of a pipeline's folder."""
    images, labels = real_pairs(REAL, 32)
    shown = torch.cat([images, 2.0 * (labels > 0)[:, None] - 1])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(in_channels=1, out_channels=1, latent_channels=4, block_out_channels=(8, 8),
                            norm_num_groups=8, down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1,
                            up_block_types=("UpDecoderBlock2D",) * 2, mid_block_add_attention=False)
    optimizer = torch.optim.Adam(vae.parameters(), 5e-3)
    for _ in range(100):
        loss = (vae.decode(vae.encode(shown).latent_dist.mean).sample - shown).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        vae.register_to_config(scaling_factor=1 / float(vae.encode(shown).latent_dist.mean.std()))
    vae.save_pretrained(folder / "vae")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with labelled/, held_out/, spectral/ and made/, six pairs that it drew, and draw.yaml."""
    home = tmp_path_factory.mktemp("judged")
    synth.write_folder(REAL, home / "labelled")
    synth.write_folder(others(), home / "held_out")
    (home / "draw.yaml").write_text(json.dumps({"shard_size": 3, "batch_size": 4}))  # JSON is YAML
    (home / "fit.yaml").write_text(json.dumps(FIT))
    assert synth_cli("fit", CONFIGS / "spectral.yaml", "size=32", "operation.strength=[0.0,0.6]",
                     f"data.labelled={home}/labelled", f"out={home}/spectral") == 0
    assert synth_cli(*draw_words(home), f"out={home}/made") == 0
    return home


@pytest.fixture(scope="module")
def fitted(home: Path) -> dict[str, Path]:
    """Returns the folders of the segmenters by name, each fitted by the command when it is first asked for."""
    class Fitted(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            method, model = MODELS[name]
            if name == "gms":
                write_autoencoder(home / "autoencoder")
                model = {**model, "autoencoder": str(home / "autoencoder")}
            assert segtrain_cli("fit", home / "fit.yaml", f"data.labelled={home}/labelled", f"method={method}",
                                f"model={json.dumps(model)}", f"out={home}/{name}") == 0
            self[name] = home / name
            return self[name]

    return Fitted()


def draw_words(home: Path, *words: str, generator: str = "spectral", n: int = 6) -> list[str]:
    """Returns the words of `synth draw` with the real pairs of `home`."""
    return ["draw", f"{home}/draw.yaml", f"generator={home}/{generator}", f"data.labelled={home}/labelled", f"n={n}",
            "seed=4", *words]


def said_by(predict: Predict, pairs: PairSet) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what a segmenter says of drawn pairs, (B, K, H, W), and their labels (B, H, W)."""
    unit = pixels_to_unit(np.stack([p.image[None] for p in pairs]), pairs.info.intensity_range)
    return predict(unit), torch.from_numpy(np.stack([p.mask for p in pairs]).astype(np.int64))


@pytest.mark.parametrize("name", ["pulaski", "gms"])
def test_a_generative_segmenter_judges(name: str, home: Path, fitted: dict[str, Path], tmp_path: Path,
                                       capsys: pytest.CaptureFixture) -> None:
    words = draw_words(home, f"judge={fitted[name]}")
    assert synth_cli(*words, f"out={tmp_path}/a") == 0 and synth_cli(*words, f"out={tmp_path}/b") == 0
    assert "6 pairs kept of 6" in capsys.readouterr().out and files_of(tmp_path / "a") == files_of(tmp_path / "b")
    made = read_shards(tmp_path / "a")
    expected = faithfulness(*said_by(segtrain.load_segmenter(fitted[name]).predict, made))
    assert [i.made.scores["faithfulness"] for i in made.items] == pytest.approx(expected.tolist(), abs=1e-4)
    assert expected.min() > 0.3, "it knows the phantom's objects"
    tiny_translator("oasis").save_pretrained(tmp_path / "untrained")
    assert synth_cli("draw", home / "draw.yaml", f"generator={tmp_path}/untrained", f"data.labelled={home}/labelled",
                     "n=3", f"judge={fitted[name]}", f"out={tmp_path}/noise") == 2
    assert "passed the gates" in capsys.readouterr().err
    rejected = read_shards(tmp_path / "noise", "rejected")
    assert len(rejected) > 3 and all("faithfulness" in i.made.reason for i in rejected.items)


def test_several_samples_are_masks_for_layouts(home: Path, fitted: dict[str, Path], tmp_path: Path,
                                               capsys: pytest.CaptureFixture) -> None:
    words = ("predict", fitted["pulaski"], f"images={home}/labelled/images", "samples=3")
    assert segtrain_cli(*words, "--dry-run", f"out={tmp_path}/said") == 0 and not (tmp_path / "said").exists()
    assert "samples: 3" in capsys.readouterr().out
    assert segtrain_cli(*words, f"out={tmp_path}/said") == 0
    said = synth.load_pairs(tmp_path / "said")
    assert "36 pairs of plausible masks" in capsys.readouterr().out and len(said) == 36
    assert any((said[3 * i].mask != said[3 * i + 1].mask).any() for i in range(12)), "they differ"
    assert synth_cli("draw", home / "draw.yaml", f"generator={home}/spectral", f"data.labelled={tmp_path}/said", "n=4",
                     "layout.flip=none", "layout.recombine=0", f"out={tmp_path}/made") == 0
    masks = {p.id: p.mask for p in said}
    assert all(np.array_equal(p.mask, masks[p.made.parents[0]]) for p in read_shards(tmp_path / "made"))
    capsys.readouterr()
    for more, message in ((("--align", f"{home}/labelled"), "leave --align out"), ((), "draws no masks")):
        model = fitted["pulaski"] if more else fitted["tiny"]
        assert segtrain_cli("predict", model, f"images={home}/labelled/images", "samples=2", f"out={tmp_path}/x",
                            *more) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def curate_words(home: Path, fitted: dict[str, Path], *words: str) -> list[str]:
    """Returns the words of `synth curate` with two judges of two designs."""
    return ["curate", f"{home}/made", f"judge={fitted['tiny']}", f"referee={fitted['unetpp']}",
            f"data.labelled={home}/labelled", f"data.held_out={home}/held_out", *words]


def test_the_command_curates_a_drawn_set(home: Path, fitted: dict[str, Path], tmp_path: Path,
                                         capsys: pytest.CaptureFixture) -> None:
    words = curate_words(home, fitted, "curate.ignore=1.25", "curate.min_agreement=0.5", "budget=3", "rank.clip=1")
    capsys.readouterr()
    assert synth_cli(*words, f"out={tmp_path}/out", "--dry-run") == 0 and not (tmp_path / "out").exists()
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["curate"]["ignore"] == 1.25 and printed["budget"] == 3
    assert printed["data"]["held_out"] == f"{home}/held_out"
    assert synth_cli(*words, f"out={tmp_path}/out") == 0
    assert "3 pairs stay" in capsys.readouterr().out
    made, found = read_shards(home / "made"), read_shards(tmp_path / "out")
    left = read_shards(tmp_path / "out", "rejected")
    assert len(found) == 3 and sorted([*found.ids, *left.ids]) == sorted(made.ids)
    assert any(i.made.reason == BUDGET for i in left.items) and synth.verify_shards(tmp_path / "out") == []
    facts = json.loads((tmp_path / "out" / "curation.json").read_text())
    limits = 1.25 * torch.tensor(facts["class_losses"])
    before = {p.id: p for p in made}
    probabilities, labels = said_by(segtrain.load_segmenter(fitted["tiny"]).predict, found)
    drawn = torch.from_numpy(np.stack([before[i].mask for i in found.ids]).astype(np.int64))
    wanted = drawn.masked_fill(pixel_loss(probabilities, drawn) > limits[drawn.clamp(max=1)], IGNORE)
    assert torch.equal(labels, wanted) and (labels == IGNORE).any() and facts["class_losses_of"] == "held out"
    agreed = faithfulness(*said_by(segtrain.load_segmenter(fitted["unetpp"]).predict, found))
    assert [i.made.scores["agreement"] for i in found.items] == pytest.approx(agreed.tolist(), abs=1e-4)
    assert agreed.min() >= facts["min_agreement"] > 0.1
    first = files_of(tmp_path / "out")
    assert synth_cli(*words, f"out={tmp_path}/out") == 0 and files_of(tmp_path / "out") == first


def test_what_cannot_be_curated_is_one_line(home: Path, fitted: dict[str, Path], tmp_path: Path,
                                            capsys: pytest.CaptureFixture) -> None:
    out = f"out={tmp_path}/out"
    assert "nothing to do" in mistake(capsys, *curate_words(home, fitted, out))
    assert "always agrees with itself" in mistake(capsys, *curate_words(
        home, fitted, "curate.ignore=1.25", f"referee={fitted['tiny']}", out))
    assert "curate.ignore" in mistake(capsys, *curate_words(home, fitted, "curate.ignor=1", out))
    assert "out=" in mistake(capsys, *curate_words(home, fitted, "curate.ignore=1.25"))
    assert "budget" in mistake(capsys, *curate_words(home, fitted, "budget=0", out))
    assert "curate.ignore: it asks the judge" in mistake(capsys, "curate", f"{home}/made", "curate.ignore=1.25",
                                                         f"data.labelled={home}/labelled", out)
    assert not (tmp_path / "out").exists()


def test_the_same_rules_hold_while_drawing(home: Path, fitted: dict[str, Path], tmp_path: Path,
                                           capsys: pytest.CaptureFixture) -> None:
    rules = ["curate.ignore=1.25", f"judge={fitted['tiny']}", f"data.held_out={home}/held_out"]
    words = draw_words(home, *rules, "gates.faithfulness=0")
    capsys.readouterr()
    assert synth_cli(*words, f"out={tmp_path}/ruled", "--dry-run") == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["curate"]["ignore"] == 1.25 and printed["data"]["held_out"] == f"{home}/held_out"
    assert synth_cli(*words, f"out={tmp_path}/ruled") == 0
    assert synth_cli(*curate_words(home, fitted, "curate.ignore=1.25", f"out={tmp_path}/after")) == 0
    after = {p.id: p for p in read_shards(tmp_path / "after")}
    shared = [p for p in read_shards(tmp_path / "ruled") if p.id in after]
    assert len(shared) > 3 and any((p.mask == IGNORE).any() for p in shared)
    for pair in shared:
        assert np.array_equal(pair.image, after[pair.id].image) and np.array_equal(pair.mask, after[pair.id].mask)
        assert CURATED in json.loads(pair.made.settings)
    capsys.readouterr()
    for more, message in ((["curate.ignore=1.25"], "it asks the judge"),
                          ([f"data.held_out={home}/held_out"], "no rule of curation is on"),
                          ([f"judge={fitted['tiny']}", f"referee={fitted['unetpp']}"], "nothing to choose")):
        assert message in mistake(capsys, *draw_words(home, *more), f"out={tmp_path}/x")
    assert not (tmp_path / "x").exists()


def test_a_referee_rejects_while_drawing(home: Path, fitted: dict[str, Path], tmp_path: Path) -> None:
    words = draw_words(home, f"judge={fitted['tiny']}", f"referee={fitted['gms']}", "curate.min_agreement=1", n=3)
    assert synth_cli(*words, f"out={tmp_path}/made") == 0
    kept, rejected = read_shards(tmp_path / "made"), read_shards(tmp_path / "made", "rejected")
    least = min(i.made.scores["agreement"] for i in kept.items)
    reasons = [i.made.reason for i in rejected.items if "agreement" in i.made.reason]
    assert reasons and least > max(i.made.scores["agreement"] for i in rejected.items if "agreement" in i.made.reason)

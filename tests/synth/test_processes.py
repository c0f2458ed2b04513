"""Two processes: every kind of fit ends as one run, with one process's counts, and draws what one process draws."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from phantom import make_phantom
from synth_shell import CONFIGS, synth_cli
from test_judged import FIT, REAL, segtrain_cli, write_autoencoder
from test_restyle_fit import PAIRS as SCANNERS
from tiny import APPEARANCE, TRANSLATE, UNPAIRED, files_of, launch, tiny_pipeline, tiny_translator

import synth
from synth.formats import encode_png

HERE = Path(__file__).parent
LOOP = {"steps": 4, "log_every": 2, "checkpoint_every": 2}
GENERATORS = {
    "pix2pix": {**TRANSLATE, "model": "pix2pix", "collapse": {"features": "random", "min_diversity": 0}},
    "spade": {**TRANSLATE, "model": "spade", "collapse": {"features": "random", "min_diversity": 0}},
    "oasis": {**TRANSLATE, "model": "oasis", "collapse": {"features": "random", "min_diversity": 0}},
    "appearance": APPEARANCE,
    "cycle": {**UNPAIRED, "translation": "cycle"},
    "contrastive": {**UNPAIRED, "translation": "contrastive"},
    "shape": {"kind": "shape", "size": 32, "widths": [8, 16], "latents": 4, "n_moves": 2, "batch_size": 4},
}
"""Settings of fits that take a second."""
SEGMENTERS: dict[str, Mapping[str, object]] = {
    "gms": {"name": "gms", "channels": [8, 16]},
    "pulaski": {"name": "prob_tiny", "channels": [8, 16], "latent": 3, "n_samples": 4},
    "annotation_efficient": {"name": "tiny", "channels": [8, 16]},
}
"""The network of each method."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with sets, autoencoder/ and two untrained generators: painter/ and layouts/."""
    home = tmp_path_factory.mktemp("processes")
    synth.write_folder(REAL, home / "labelled")
    synth.write_folder(SCANNERS, home / "scanners")
    synth.write_folder(make_phantom(8, size=32, seed=9), home / "pile")
    (home / "masks").mkdir()
    for pair in make_phantom(8, size=32, seed=7):
        (home / "masks" / f"{pair.id}.png").write_bytes(encode_png(pair.mask))
    write_autoencoder(home / "autoencoder")
    tiny_pipeline().save_pretrained(home / "painter")
    tiny_translator("oasis").save_pretrained(home / "layouts")
    return home


def folders_of(home: Path, name: str) -> list[str]:
    """Returns the words that name what a fit learns from."""
    if name == "appearance":
        return [f"data.labelled={home}/scanners"]
    if name in ("cycle", "contrastive"):
        return [f"data.unlabelled={home}/pile/images", f"data.masks={home}/masks"]
    if name == "annotation_efficient":
        return [f"data.unlabelled={home}/pile/images", f"data.stored={home}/pile"]
    return [f"data.labelled={home}/labelled"]


def counts_of(folder: Path) -> dict[str, dict[str, int]]:
    """Returns how many images each training run below `folder` saw."""
    return {str(p.parent.relative_to(folder)): json.loads(p.read_text())["counts"] for p in folder.rglob("done.json")}


def fit_twice(package: str, home: Path, name: str, words: list[str]) -> Path:
    """Returns the folder that two processes fitted, after a look at whether it is as one process leaves it."""
    words = ["fit", f"{home}/{name}.yaml", *words]
    assert (synth_cli if package == "synth" else segtrain_cli)(*words, f"out={home}/{name}-1") == 0
    done = launch([HERE / "ranks_worker.py", package, *words, f"out={home}/{name}-2"], n_processes=2)
    assert done.returncode == 0, done.stderr
    assert "networks agree" in done.stdout and done.stdout.count(f"{home}/{name}-2: ") == 1, "one voice"
    one, two = home / f"{name}-1", home / f"{name}-2"
    assert set(files_of(one)) == set(files_of(two))
    assert counts_of(one) == counts_of(two) != {}
    lines = [[json.loads(x) for x in next(p.rglob("stats.jsonl")).read_text().splitlines()] for p in (one, two)]
    assert [x["step"] for x in lines[0]] == [x["step"] for x in lines[1]] and set(lines[0][-1]) == set(lines[1][-1])
    return two


def check_drawing(home: Path, folder: Path, *words: str) -> None:
    """Draws with one process and with two, and compares every file."""
    words = ("draw", f"{CONFIGS}/draw.yaml", "n=6", "seed=3", "shard_size=2", "batch_size=2", "max_tries=2", *words)
    code = synth_cli(*words, f"out={folder}-drawn-1")
    done = launch(["-m", "synth.cli", *words, f"out={folder}-drawn-2"], n_processes=2)
    assert (done.returncode == 0) == (code == 0), done.stderr
    one, two = files_of(Path(f"{folder}-drawn-1")), files_of(Path(f"{folder}-drawn-2"))
    assert one == two and sum(name.startswith("data/") for name in one) >= 3


@pytest.mark.parametrize("name", GENERATORS)
def test_two_processes_fit_one_generator_and_draw_as_one_does(name: str, home: Path) -> None:
    (home / f"{name}.yaml").write_text(json.dumps({**GENERATORS[name], "loop": LOOP}))  # JSON is YAML
    folder = fit_twice("synth", home, name, folders_of(home, name))
    data = f"data.labelled={home}/{'scanners' if name == 'appearance' else 'labelled'}"
    if name == "shape":
        check_drawing(home, folder, data, f"generator={home}/layouts", f"shape={folder}", "layout.source=shape")
    else:
        check_drawing(home, folder, data, f"generator={folder}")


def test_two_processes_fit_one_spectral_generator_and_draw_as_one_does(home: Path) -> None:
    (home / "spectral.yaml").write_text(json.dumps({"kind": "spectral", "size": 32}))
    words = ["fit", f"{home}/spectral.yaml", f"data.labelled={home}/labelled"]
    one, two = home / "spectral-1", home / "spectral-2"
    assert synth_cli(*words, f"out={one}") == 0
    done = launch([HERE / "ranks_worker.py", "synth", *words, f"out={two}"], n_processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{two}: ") == 1, "one voice"
    files = [{k: v for k, v in files_of(folder).items() if k != "config.yaml"} for folder in (one, two)]
    assert files[0] == files[1] and not (two / ".pipeline").exists()
    check_drawing(home, two, f"data.labelled={home}/labelled", f"generator={two}")


def test_a_batch_that_two_processes_cannot_share_evenly_is_refused(home: Path) -> None:
    (home / "odd.yaml").write_text(json.dumps({**GENERATORS["shape"], "batch_size": 3, "loop": LOOP}))
    done = launch(["-m", "synth.cli", "fit", home / "odd.yaml", f"data.labelled={home}/labelled", f"out={home}/odd"],
                  n_processes=2)
    assert done.returncode != 0 and "batch_size=3: it is no multiple of the 2 processes" in done.stderr
    assert not (home / "odd").exists()


@pytest.mark.parametrize("name", SEGMENTERS)
def test_two_processes_fit_one_segmenter_and_judge_as_one_does(name: str, home: Path) -> None:
    model = {**SEGMENTERS[name], **({"autoencoder": f"{home}/autoencoder"} if name == "gms" else {})}
    settings = {**FIT, "batch_size": 4, "unlabelled_batch_size": 4, "model": model, "method": name, "loop": LOOP}
    (home / f"{name}.yaml").write_text(json.dumps(settings))
    folder = fit_twice("segtrain", home, name, folders_of(home, name))
    counts = counts_of(folder)["."]
    assert counts == ({"images_seen": 0, "unlabelled_seen": 16} if name == "annotation_efficient" else
                      {"images_seen": 16, "unlabelled_seen": 0})
    check_drawing(home, folder, f"data.labelled={home}/labelled", f"generator={home}/painter", f"judge={folder}")

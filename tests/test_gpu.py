"""Fits, draws and predictions on a pretended GPU: no tensor is made, mixed or read on the wrong device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from phantom import make_phantom
from pretend_gpu import OnGpu, pretend_gpu

import segtrain
import synth
from synth.core.pairs import ImageSet, memory_set
from synth.core.space import pixels_to_unit
from synth.draw.modes import with_changes
from synth.gates import GateSettings

PAIRS = make_phantom(8, size=32, n_groups=4)
SEGMENT = {"size": 32, "batch_size": 4, "unlabelled_batch_size": 4, "model": {"name": "tiny", "channels": [8, 16]},
           "augment": {"spectrum": {"frequency": {}}, "random_net": {"p": 0.5}},
           "loop": {"steps": 2, "log_every": 1, "checkpoint_every": 1}}
INPAINT = {
    "size": 32, "sampler": {"n_steps": 2},
    "autoencoder": {"kind": "kl", "widths": [8, 16, 16], "batch_size": 4,
                    "loop": {"steps": 2, "log_every": 1, "checkpoint_every": 1}},
    "denoiser": {"labels": True, "widths": [8, 16], "attention": [False, True], "layers": 1, "n_views": 2,
                 "batch_size": 4, "loop": {"steps": 2, "log_every": 1, "checkpoint_every": 1}},
    "health": {"max_border_error": 99, "max_gradient_error": 99, "min_latent_std": 0, "max_latent_std": 99}}
TRANSLATE = {
    "kind": "translate", "size": 32, "batch_size": 4, "translator": {"widths": [8, 8, 16], "hidden": 8, "n_code": 4},
    "discriminator": {"width": 4, "widths": [8, 8, 16]}, "collapse": {"features": "random", "min_diversity": 0},
    "loop": {"steps": 2, "log_every": 1, "checkpoint_every": 1}}


@pytest.fixture(autouse=True)
def gpu() -> Iterator[None]:
    """Lets torch find a GPU; skips where a real one is, or torch's insides are others than the pretence knows."""
    if torch.cuda.is_available():
        pytest.skip("there is a real GPU: nothing need be pretended")
    AcceleratorState._reset_state(reset_partial_state=True)  # what other tests found: no GPU
    with pretend_gpu():
        try:
            net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)).to("cuda")
            optimizer = torch.optim.AdamW(net.parameters())
            net(torch.randn(2, 1, 8, 8, device="cuda:0")).square().mean().backward()
            optimizer.step()
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            pytest.skip(f"torch {torch.__version__} does not take the pretence: {error}")
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def pile(n: int = 6) -> ImageSet:
    """Returns unlabelled phantom images of other patients."""
    pairs = make_phantom(n, size=32, n_groups=3, seed=9)
    return memory_set([p.image for p in pairs], None, pairs.info, ids=[f"u{i}" for i in range(n)],
                      groups=[f"pile_{g}" for g in pairs.groups])


def on_gpu(net: torch.nn.Module) -> bool:
    """Returns whether all of a network is there."""
    return all(isinstance(p, OnGpu) for p in net.parameters())


def test_the_pretence_refuses_what_a_gpu_refuses() -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda:0")
    assert there.device.type == "cuda" and torch.equal((there + there).cpu(), here + 1)
    for wrong in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[there > 0]):
        with pytest.raises(RuntimeError, match="cuda:0"):
            wrong()
    with pytest.raises(RuntimeError, match="generator that is elsewhere"):
        torch.randn(3, device="cuda:0", generator=torch.Generator())
    drawn = torch.randn(3, device="cuda:0", generator=torch.Generator("cuda:0").manual_seed(0))
    assert isinstance(drawn, OnGpu)
    with pytest.raises(TypeError, match="NumPy"):
        there.numpy()


LONGER = ("bcp", "cfc_net", "contrastive_gl", "cps", "dsaif", "fpgm", "mgd", "tracoco", "u2pl", "unimatch_v2")


@pytest.mark.parametrize("method", ["supervised", "fixmatch_ema", *(pytest.param(name, marks=pytest.mark.slow)
                                                                    for name in LONGER)])
def test_a_segmenter_is_trained_resumed_and_asked(method: str, tmp_path: Path) -> None:
    given = {} if method == "supervised" else {"unlabelled": pile()}
    made = segtrain.fit(SEGMENT, PAIRS, method=method, out=tmp_path, **given)
    assert on_gpu(made.net)
    (tmp_path / "done.json").unlink()  # what is left is a checkpoint
    again = segtrain.fit(SEGMENT, PAIRS, method=method, out=tmp_path, **given)
    images = pixels_to_unit(PAIRS.arrays(32).images, PAIRS.info.intensity_range)
    said = made.predict(images).cpu()
    assert torch.isfinite(said).all() and torch.equal(said, again.predict(images).cpu())
    native = segtrain.predict(tmp_path, PAIRS, out=tmp_path / "masks")
    assert len(native) == len(PAIRS)


def test_a_painter_is_fitted_and_draws_what_its_gates_let_through(tmp_path: Path) -> None:
    painter = synth.fit(INPAINT, PAIRS, pile(), out=tmp_path / "painter")
    assert on_gpu(painter.unet) and on_gpu(painter.vae)
    judge = segtrain.fit(SEGMENT, PAIRS, out=tmp_path / "judge")
    loose = GateSettings(faithfulness=0, max_false_foreground=1, novelty_quantile=1)
    gates = synth.default_gates(judge.predict, PAIRS, training=pile(), size=32, settings=loose)
    for mode in ("surroundings", "object", "layout"):
        paints = with_changes(synth.load_generator(tmp_path / "painter"), {"mode": mode})
        made = synth.draw(paints, PAIRS, n=2, gates=gates, out=tmp_path / mode)
        assert len(made) == 2 and synth.verify_shards(tmp_path / mode) == []


@pytest.mark.parametrize("model", ["oasis", pytest.param("pix2pix", marks=pytest.mark.slow),
                                   pytest.param("spade", marks=pytest.mark.slow)])
def test_a_translator_is_fitted_and_draws(model: str, tmp_path: Path) -> None:
    made = synth.fit({**TRANSLATE, "model": model}, PAIRS, out=tmp_path / "run")
    assert on_gpu(made.translator)
    assert len(synth.draw(made, PAIRS, n=2, out=tmp_path / "made")) == 2

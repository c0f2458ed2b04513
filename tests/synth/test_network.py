"""How the machine runs the network: precision, compilation, what stays float32, and what a set says of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from contract_generator import request
from tiny import squares, tiny_pipeline

import synth
from synth.core.checks import UserError
from synth.core.space import labels_to_keep
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.network import Network, precision_on
from synth.diffusion.samplers import SAMPLERS
from synth.diffusion.settings import SamplerSettings

SEEDS = (1, 2, 3)
KINDS = pytest.mark.parametrize("kind", ["pixels", "kl"])


def pipeline_of(kind: str = "pixels", **changes: str | int | bool) -> InpaintPipeline:
    """Returns the tiny pipeline with other sampler settings than its own."""
    return tiny_pipeline(kind=kind, sampler=SamplerSettings(**{"n_steps": 20, "margin_cells": (1, 1), **changes}))


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_bf16_where_a_gpu_has_it_and_float32_elsewhere(able: bool,  # noqa: FBT001
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    # What a card without bf16 says when emulation counts is yes.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: able or including_emulation)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert precision_on("auto", gpu) == ("bf16" if able else "no") and precision_on("auto", cpu) == "no"
    assert {(p, precision_on(p, d)) for p in ("no", "bf16", "fp16") for d in (gpu, cpu)} == {
        ("no", "no"), ("bf16", "bf16"), ("fp16", "fp16")}


@KINDS
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_in_half_precision_kept_pixels_are_exact_and_the_rest_is_near(kind: str, precision: str) -> None:
    plain, half = pipeline_of(kind, precision="no"), pipeline_of(kind, precision=precision)
    image, mask = request(plain)
    expected, found = (p.sample(image, mask, seeds=SEEDS) for p in (plain, half))
    keep = labels_to_keep(mask)[:, None]
    assert found.dtype == torch.float32 and torch.equal(found[keep], image[keep])
    assert torch.equal(found, half.sample(image, mask, seeds=SEEDS))
    bound = {"bf16": 0.03, "fp16": 0.004}[precision]
    assert 0 < float((found - expected).abs().max()) < bound
    alone = torch.cat([half.sample(image[i:i + 1], mask[i:i + 1], seeds=SEEDS[i:i + 1]) for i in range(3)])
    assert float((alone - found).abs().max()) < bound, "in a batch of another size it is near, not the same"


@KINDS
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_the_solvers_state_is_float32_in_any_precision(kind: str, sampler: str) -> None:
    """A network that says 0 has no error of its own, so a state, level or known region in bf16 would show at once."""
    drawn = []
    for precision in ("no", "bf16"):
        pipeline = pipeline_of(kind, sampler=sampler, eta=0.5, precision=precision, guidance=2.0)
        torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
        torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
        image, mask = request(pipeline)
        drawn.append(pipeline.sample(image, mask, seeds=SEEDS))
    assert torch.equal(*drawn)


def test_the_network_alone_runs_in_autocast() -> None:
    pipeline, seen = pipeline_of("kl", precision="bf16", n_steps=2), []
    for name, net in (("unet", pipeline.unet), ("conv", pipeline.unet.conv_in), ("decoder", pipeline.vae.decoder)):
        net.register_forward_hook(lambda _, args, out, name=name: seen.append(
            (name, torch.is_autocast_enabled("cpu"), args[0].dtype, getattr(out, "sample", out).dtype)))
    pipeline.sample(*request(pipeline), seeds=SEEDS)
    full, half = torch.float32, torch.bfloat16
    assert set(seen) == {("unet", True, full, half), ("conv", True, full, half), ("decoder", False, full, full)}


def test_larger_images_are_painted_in_half_precision_too() -> None:
    pipeline = pipeline_of(n_steps=2, precision="bf16")
    image, keep = torch.zeros(1, 1, 48, 40), torch.zeros(1, 48, 40, dtype=torch.bool)
    keep[:, 20:24, 20:24] = True
    painted = pipeline.paint(image, keep, seeds=[1])
    near = pipeline.with_sampler(SamplerSettings(n_steps=2, margin_cells=(1, 1))).paint(image, keep, seeds=[1])
    assert torch.equal(painted[keep[:, None]], image[keep[:, None]]) and 0 < (painted - near).abs().max() < 0.03


def test_provenance_says_what_changes_numbers_and_the_generator_stays_the_same(tmp_path: Path) -> None:
    plain = tiny_pipeline()
    assert plain.sampler.precision == "auto" and not {"precision", "compile"} & set(plain.sampler_settings())
    half = plain.with_sampler(plain.sampler.model_copy(update={"precision": "bf16", "compile": True}))
    assert half.sampler_settings() == {**plain.sampler_settings(), "precision": "bf16", "compile": True}
    assert half.content_hash() == plain.content_hash()
    assert half.with_sampler("fast").sampler.precision == "bf16", "a preset says nothing of the machine"
    half.save_pretrained(tmp_path)
    assert not {"precision", "compile"} & set(json.loads((tmp_path / "model_index.json").read_text()))
    assert InpaintPipeline.from_pretrained(tmp_path).sampler == plain.sampler


def test_no_set_is_drawn_half_in_one_precision_half_in_another(tmp_path: Path) -> None:
    pairs, half = squares(), pipeline_of(n_steps=2, precision="bf16")
    made = synth.draw(half, pairs, n=2, out=tmp_path / "made", config={"batch_size": 2})
    assert {json.loads(pair.made.settings)["precision"] for pair in made} == {"bf16"}
    with pytest.raises(UserError, match="another draw run .*sampler"):
        synth.draw(pipeline_of(n_steps=2), pairs, n=2, out=tmp_path / "made", config={"batch_size": 2})


@pytest.mark.slow
def test_compiled_it_draws_nearly_the_same_with_one_kernel_for_similar_batches() -> None:
    torch._dynamo.reset()
    plain = pipeline_of(n_steps=3)
    plain.unet.to(memory_format=torch.channels_last)
    compiled = plain.with_sampler(SamplerSettings(n_steps=3, margin_cells=(1, 1), compile=True))
    image, mask = request(plain)
    expected, found = (p.sample(image, mask, seeds=SEEDS) for p in (plain, compiled))
    keep = labels_to_keep(mask)[:, None]
    assert torch.equal(found[keep], image[keep]) and float((found - expected).abs().max()) < 1e-4
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    twice = [torch.cat([x, x[:1]]) for x in (image, mask)]
    again = compiled.with_sampler("fast").with_sampler(compiled.sampler).sample(*twice, seeds=(*SEEDS, SEEDS[0]))
    assert torch.equal(again[:3], found) and torch.equal(again[3], found[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs == 1
    assert plain.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    unet = tiny_pipeline().unet
    with pytest.raises(UserError, match="compile=true: this machine cannot compile .*write compile=false"):
        Network(unet, precision="no", compiled=True)(torch.zeros(1, unet.config.in_channels, 8, 8), torch.zeros(1))

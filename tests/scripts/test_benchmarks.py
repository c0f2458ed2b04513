"""The benchmarks: rows and their file, fair timing, the two ways of painting that ours is held against."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from phantom import make_phantom

from synth.core.checks import IGNORE, UserError
from synth.core.pairs import Pair
from synth.diffusion.autoencoder import build_autoencoder, encode_statistics, standardise
from synth.diffusion.codec import PixelCodec, unit_to_latents
from synth.diffusion.denoiser import build_denoiser, build_scheduler
from synth.diffusion.inpaint import InpaintPipeline
from synth.diffusion.settings import AutoencoderSettings, DenoiserSettings
from synth.formats import write_folder
from synth.gates.seam import as_given

BENCHMARKS = Path(__file__).parents[2] / "scripts" / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import common  # noqa: E402
import engines  # noqa: E402
import painting  # noqa: E402
import scale  # noqa: E402
import spectral  # noqa: E402
import where_it_helps  # noqa: E402

DENOISER = DenoiserSettings(widths=(8, 16), attention=(False, True), layers=1)
AUTOENCODER = AutoencoderSettings(widths=(8, 16, 16))


def make_pipeline(*, codec: str, size: int = 32) -> InpaintPipeline:
    """Returns an untrained pipeline in pixel space or in latents of an untrained autoencoder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if codec == "pixels":
            vae, channels, side = PixelCodec(in_channels=1, sample_size=size, patch=2), 4, size // 2
        else:
            vae, channels, side = build_autoencoder(AUTOENCODER, channels=1, size=size).eval(), 4, size // 4
            standardise(vae, encode_statistics(vae, torch.rand(8, 1, size, size) * 2 - 1))
        unet = build_denoiser(DENOISER, latent_channels=channels, latent_size=side, n_classes=2).eval()
        for weights in (unet.conv_out.weight, unet.conv_out.bias):
            torch.nn.init.normal_(weights, std=0.3)
    return InpaintPipeline(vae, unet, build_scheduler(DENOISER), n_steps=4)


def request(n: int = 2, size: int = 32) -> painting.Request:
    """Returns random images with a square to keep, and a corner that is kept too."""
    image = torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    keep, corner = torch.zeros(n, size, size, dtype=torch.bool), torch.zeros(n, size, size, dtype=torch.bool)
    keep[:, 9:17, 10:19], corner[:, :3, :3] = True, True
    return painting.Request(image, keep, range(n), keep.long(), corner)


# Rows and arguments ---------------------------------------------------------------------------------------------------

def test_rows_are_written_as_the_design_says(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    args = common.begin(common.parser("x"), ["--json", str(tmp_path / "rows.json"), "--threads", "1", "draws=1"])
    assert args.overrides == ["draws=1"]
    rows = [common.Row("ratio/a_over_b", 3.1, 3.0, 3.3), common.Row("seconds/x", float("nan"), unit="s")]
    common.write(rows, args, [0, 7])
    assert "ratio/a_over_b" in capsys.readouterr().out
    held = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert held["rows"] == [{"name": "ratio/a_over_b", "value": 3.1, "lo": 3.0, "hi": 3.3, "unit": ""},
                            {"name": "seconds/x", "value": None, "lo": None, "hi": None, "unit": "s"}]
    assert set(held["context"]) == {"commit", "versions", "cpu", "threads", "seeds", "seconds", "command"}
    assert held["context"]["seeds"] == [0, 7] and held["context"]["threads"] == 1
    assert held["context"]["command"].endswith("--threads 1 draws=1") and "torch" in held["context"]["versions"]


def test_a_folder_is_one_set_or_three(tmp_path: Path) -> None:
    for name in ("labelled", "unlabelled", "test"):
        (tmp_path / "three" / name).mkdir(parents=True)
    (tmp_path / "one").mkdir()
    args = common.begin(common.parser("x"), ["--data", str(tmp_path / "one"), "--data", str(tmp_path / "three")])
    one, three = common.data_sets(args)
    assert one.overrides == (f'data.root="{tmp_path / "one"}"',)
    assert [o.partition("=")[0] for o in three.overrides] == ["data.labelled", "data.unlabelled", "data.test"]
    with pytest.raises(UserError, match="takes one"):
        common.only_set(args)


def test_the_quick_settings_are_settings(tmp_path: Path) -> None:
    args = common.begin(common.parser("x"), ["--quick", "synthetic.n=5"])
    settings = common.settings_for(common.DataSet("x", ("data.root=x",)), args, ["n_labelled=7"])
    assert (settings.synthetic.n, settings.n_labelled, settings.draws) == (5, 7, 1)
    for cell in where_it_helps.CELLS:
        common.settings_for(common.DataSet("x", ()), args, [*cell.overrides, "arms=[real]"])


# Timing ---------------------------------------------------------------------------------------------------------------

def test_callables_are_timed_in_turn_and_there_and_back() -> None:
    order: list[tuple[str, int]] = []
    calls: dict[str, Callable[[int], object]] = {n: (lambda k, n=n: order.append((n, k))) for n in "abc"}
    timings = common.alternate(calls, rounds=3)
    assert "".join(n for n, _ in order) == "abccbaabc" and [k for _, k in order] == [0] * 3 + [1] * 3 + [2] * 3
    assert all(len(t.seconds) == 3 for t in timings.values())


def test_a_ratio_is_that_of_its_own_round() -> None:
    # Each round is twice as slow as the one before, for both alike: the ratio stays what it is.
    row = common.ratio_row("r", common.Timing((2.0, 4.0, 8.0)), common.Timing((1.0, 2.0, 4.0)))
    assert (row.value, row.lo, row.hi) == (2, 2, 2)
    assert common.Timing((1.0, 9.0, 2.0)).row("s", per=2) == common.Row("s", 1.0, 0.5, 4.5, "s")


# Painting -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("alpha", [0.999, 0.5, 0.01])
def test_the_noise_in_variance_preserving_latents_is_found(alpha: float) -> None:
    rng = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=rng) for _ in range(2))
    noisy = alpha**0.5 * clean + (1 - alpha)**0.5 * noise
    seen = []

    def denoise(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append((latents, sigma))
        return clean

    torch.testing.assert_close(painting.predict_noise(denoise, noisy, alpha), noise, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen[0][0], clean + seen[0][1] * noise, rtol=1e-3, atol=1e-3)


def test_repaint_with_a_perfect_denoiser_returns_what_it_knows_and_what_it_is_told() -> None:
    clean, source = torch.full((2, 4, 8, 8), 0.7), torch.full((2, 4, 8, 8), -0.4)
    held = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    held[..., :3] = True
    scheduler = painting.repaint_scheduler(n_steps=10, jump_length=2, jump_repeats=2)
    rngs = [torch.Generator().manual_seed(s) for s in (1, 2)]
    painted = painting.run_repaint(scheduler, lambda latents, sigma: clean, source, held, rngs)
    torch.testing.assert_close(painted, torch.where(held, source, clean), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("codec", ["pixels", "kl"])
def test_both_paint_what_is_not_kept_and_keep_the_rest_exactly(codec: str) -> None:
    pipeline, asked = make_pipeline(codec=codec), request()
    for paint in (painting.naive_ddim(pipeline, n_steps=5),
                  painting.repaint(pipeline, n_steps=5, jump_length=2, jump_repeats=2)):
        painted = paint(asked)
        shown = asked.shown[:, None]
        assert torch.equal(painted[shown], asked.image[shown])
        assert (painted - asked.image).abs()[~shown].mean() > 0.05 and painted.isfinite().all()
        assert torch.equal(painted, paint(asked))  # seeds alone decide
        assert paint.shown is as_given
        whole = painting.Request(asked.image, torch.ones_like(asked.keep), asked.seeds)
        assert torch.equal(paint(whole), whole.image)


def test_kept_latents_are_held_at_every_level_and_the_network_is_told_nothing() -> None:
    pipeline, asked = make_pipeline(codec="pixels"), request()
    told, noisy = [], []

    def look(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        noisy.append(inputs[0][:, :4])
        told.append(float(inputs[0][:, 4:].abs().max()))

    hook = pipeline.unet.register_forward_pre_hook(look)
    painting.naive_ddim(pipeline, n_steps=5)(asked)
    hook.remove()
    assert len(told) == 5 and max(told) == 0
    held = painting.keep_to_latent(asked.shown, factor=2).expand(-1, 4, -1, -1)
    source, sigma = unit_to_latents(pipeline.vae, asked.image), pipeline.levels(5)[1]
    last = noisy[-1] * (1 + sigma**2)**0.5  # undo c_in: the lowest level, where what is held is nearly clean
    assert (last - source)[held].abs().max() < 6 * sigma


def test_evaluations_are_counted_per_pair() -> None:
    pipeline, asked = make_pipeline(codec="pixels"), request(3)
    ways = painting.methods(pipeline)
    # Pixels need no codec, so there is no second texture.
    assert tuple(ways) == tuple(name for name in painting.METHODS if name != "default_codec")
    assert tuple(painting.methods(make_pipeline(codec="kl"))) == painting.METHODS
    for name, n in (("default", 4), ("fast", 8), ("ddim50", 50), ("repaint_50_5_3", 140)):
        with painting.counted(pipeline.unet) as calls:
            ways[name](asked)
        assert calls == [3] * n, name
    down = np.diff(painting.repaint_scheduler(n_steps=250, jump_length=10, jump_repeats=10).timesteps.numpy())
    assert (down < 0).sum() + 1 == 2410  # the first time step is an evaluation too


def test_a_method_is_a_generator() -> None:
    pipeline, asked = make_pipeline(codec="kl"), request()
    ways = {name: painting.MethodGenerator(pipeline, name, paint) for name, paint in painting.methods(pipeline).items()}
    assert len({g.content_hash() for g in ways.values()}) == len(ways)
    drawn = ways["ddim50"].sample(asked.image, asked.labels, seeds=asked.seeds, keep_in=asked.keep_in)
    assert torch.equal(drawn, painting.naive_ddim(pipeline)(asked))
    assert torch.equal(ways["ddim50"].transformed(asked.image), asked.image)
    assert (ways["default"].keeps, ways["default_redrawn_1"].keeps) == ("foreground", "nothing")
    assert torch.equal(ways["fast"].transformed(asked.image), pipeline.with_sampler("fast").transformed(asked.image))


# Exactness and cells --------------------------------------------------------------------------------------------------

def test_every_changed_kept_pixel_is_counted() -> None:
    def pairs(prefix: str) -> list[Pair]:
        return [Pair(f"{prefix}-{i}", "g", np.full((4, 4, 3), i, np.uint8), np.eye(4, dtype=np.uint8)) for i in (1, 2)]

    sources, made = pairs("source-0"), pairs("inpaint-0")
    made[0].image[0, 1] = 9  # not kept
    assert scale.changed_pixels(made, sources) == (0, 8, 2)
    made[1].image[2, 2, 1] = 9
    assert scale.changed_pixels(made, sources) == (1, 8, 2)
    made[1].mask[0, 3] = 1
    assert scale.changed_pixels(made, sources) == (2, 8, 2)
    sources[0].mask[3, 0] = IGNORE  # unknown there, for it was mirrored in; painted over here
    assert scale.changed_pixels(made, sources) == (2, 8, 2)
    made[0].mask[3, 0] = 1
    assert scale.changed_pixels(made, sources) == (3, 8, 2)


def test_cells_are_chosen_by_question_or_name() -> None:
    assert [c.name for c in where_it_helps.chosen(["share", "gates-off"])] == ["share-0.1", "share-0.25", "share-0.5",
                                                                              "gates-off"]
    assert len({c.name for c in where_it_helps.CELLS}) == len(where_it_helps.CELLS) == len(where_it_helps.chosen([]))
    with pytest.raises(UserError, match="no such cell"):
        where_it_helps.chosen(["shares"])


def test_the_numpy_loop_is_our_fda_without_a_margin() -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rngs = [torch.Generator().manual_seed(i) for i in range(2)]
    border = spectral.Border(pad=0, field_of_view="all", clamp=False)
    drawn = spectral.draw_swap(rngs, spectral.SwapSettings(beta=(0.05, 0.05), border=border))
    ours = (spectral.swap_amplitude(images, images.flip(0), drawn) + 1) / 2
    shares = (images.numpy() + 1) / 2
    theirs = [spectral.numpy_fda(a, b, beta=0.05) for a, b in zip(shares, shares[::-1], strict=True)]
    assert np.allclose(ours, np.stack(theirs), atol=1e-4)


def test_a_ratio_of_dice_is_resampled_by_group_on_both_sides() -> None:
    made = engines.Scores(np.array([0.4, 0.4, 0.8]), ("a", "a", "b"))
    real = engines.Scores(np.array([0.8, 0.8]), ("c", "d"))
    row = engines.ratio_of("r", made, real)
    assert row.value == pytest.approx(1.6 / 3 / 0.8) and (row.lo, row.hi) == pytest.approx((0.5, 1.0))


# End to end -----------------------------------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("script, words, names", [
    ("sampling", ("--method", "default", "--method", "fast", "--method", "ddim50"),
     ("pairs_per_s/default", "evals/ddim50", "ratio/fast_over_ddim50", "seam_auc/fast", "faithfulness/ddim50",
      "diversity/default", "ceiling_share/default", "decoder_share/default")),
    ("spectral", (), ("ratio/match_over_fft", "ratio/ours_over_numpy_fda", "rss_mb/1000", "rss_mb/10000")),
    ("scale", ("--sizes", "8,16"),
     ("s_per_pair/8", "rss_mb/16", "ratio/two_processes", "changed_kept_pixels/16", "audit_faults/16")),
    ("utility", (), tuple(f"dice_diff/phantom/{pair}" for pair in (
        "real+copypaste-real", "real+inpaint-real", "real+inpaint-real+copypaste",
        "real+inpaint_shuffled-real+inpaint", "real+roundtrip-real", "real+translate-real+affine",
        "real+inpaint+translate-real"))),
    ("engines", ("--labels", "8", "--n", "4"),
     ("dice_real/phantom", "faithfulness/phantom/inpaint", "shuffled/phantom/translate",
      "ratio/translate_cost_over_inpaint/phantom")),
    ("where_it_helps", ("--only", "share-0.1"), ("dice_diff/phantom/share-0.1",)),
    ("schedules", ("--samplers", "ddim,heun"), ("faithfulness/heun-4", "seam_auc/ddim-2", "seconds/ddim-4")),
    ("training", (), ("ratio/supervised_over_bare", "ratio/fixmatch_ema_over_bare", "data_wait_share/fixmatch_ema",
                      "cpu_ratio/fixmatch_ema_over_bare_augmented", "s_per_step/supervised/bare")),
])
def test_quick_run(tmp_path: Path, script: str, words: tuple[str, ...], names: tuple[str, ...]) -> None:
    write_folder(make_phantom(40, size=32, n_groups=8), tmp_path / "phantom")
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{script}.py"), "--quick", "--threads", "1", *words, "--data",
         str(tmp_path / "phantom"), "--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows.json"), "size=32",
         "n_labelled=8", "segment.loop.steps=10", "inpaint.denoiser.loop.steps=10"],
        capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))["rows"]}
    assert set(names) <= set(rows)
    if script == "scale":
        assert all(rows[f"{name}/16"]["value"] == 0 for name in ("changed_kept_pixels", "audit_faults"))

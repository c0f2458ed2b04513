"""The samplers' mathematics: their walk, what stays, both halves at one noise level, order, and law."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from synth.core.rng import sample_rng
from synth.diffusion.samplers import (
    SAMPLERS,
    Denoise,
    Known,
    karras_sigmas,
    n_evaluations,
    plain_walk,
    resampling_walk,
)

ALL = pytest.mark.parametrize("name", list(SAMPLERS))
WALK = resampling_walk(8, jump_length=2, jump_repeats=2)
SIGMAS = karras_sigmas(8, sigma_min=0.02, sigma_max=20).double()


def gaussian(*, mean: float, std: float) -> Denoise:
    """Returns the exact denoiser of data that are normal, independent, with this mean and std."""
    return lambda x, sigma: (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)


def rngs(n: int, name: str = "noise") -> list[torch.Generator]:
    """Returns n fresh generators."""
    return [sample_rng(i, name) for i in range(n)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Returns normal noise of any shape in double precision."""
    return torch.randn(shape, generator=sample_rng(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n_steps", "length", "repeats", "evaluations"), [
    (250, 10, 10, 2410), (100, 10, 10, 910), (50, 10, 10, 410), (50, 10, 5, 210), (50, 5, 3, 140), (50, 5, 2, 95),
    (25, 5, 2, 45), (50, 10, 1, 50), (7, 3, 1, 7), (1, 5, 4, 1), (3, 5, 4, 3)])
def test_the_walk_makes_as_many_evaluations_as_the_papers(n_steps: int, length: int, repeats: int,
                                                          evaluations: int) -> None:
    walk = resampling_walk(n_steps, jump_length=length, jump_repeats=repeats)
    assert n_evaluations(walk) == evaluations
    assert walk[0][0] == n_steps and walk[-1] == (1, 0)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(walk))
    ups = [(a, b) for a, b in walk if b > a]
    assert all(b - a == length for a, b in ups) and all(a - b == 1 for a, b in walk if a > b)
    assert len(walk) == evaluations + len(ups) and len(ups) * length == evaluations - n_steps


@ALL
def test_evaluations_are_counted_as_they_are_made(name: str) -> None:
    for walk in (plain_walk(8), WALK):
        calls = []

        def counted(x: torch.Tensor, sigma: float, calls: list[float] = calls) -> torch.Tensor:
            calls.append(sigma)
            return gaussian(mean=0, std=1)(x, sigma)

        SAMPLERS[name](counted, 20 * noise(1, 1, 2, 2), SIGMAS, walk=walk, rngs=rngs(1))
        assert len(calls) == n_evaluations(walk, sampler=name)


def test_the_levels_are_those_of_edm() -> None:
    sigmas = karras_sigmas(5, sigma_min=0.002, sigma_max=80)
    assert sigmas[0] == 0 and sigmas[1] == pytest.approx(0.002) and sigmas[-1] == pytest.approx(80)
    middle = ((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7
    assert float(sigmas[3]) == pytest.approx(middle, rel=1e-5) and (sigmas.diff() > 0).all()
    assert karras_sigmas(1, sigma_min=0.1, sigma_max=3).tolist() == [0, 3]


@ALL
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_what_is_kept_everywhere_comes_out_exactly(name: str, eta: float) -> None:
    clean = noise(2, 4, 8, 8)
    for walk in (plain_walk(8), WALK):
        out = SAMPLERS[name](gaussian(mean=-3, std=0.2), noise(2, 4, 8, 8, seed=1), SIGMAS, walk=walk, rngs=rngs(2),
                             eta=eta, known=Known(clean, torch.ones(2, 1, 8, 8, dtype=torch.bool), rngs(2, "known")))
        assert torch.equal(out, clean)


@ALL
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_nothing_to_keep_it_is_the_plain_sampler_bit_for_bit(name: str, eta: float) -> None:
    start, denoise = 20 * noise(2, 4, 8, 8, seed=1), gaussian(mean=1, std=0.5)
    known = Known(torch.full_like(start, 9), torch.zeros(2, 1, 8, 8, dtype=torch.bool), rngs(2, "known"))
    plain = SAMPLERS[name](denoise, start, SIGMAS, walk=WALK, rngs=rngs(2), eta=eta)
    assert torch.equal(plain, SAMPLERS[name](denoise, start, SIGMAS, walk=WALK, rngs=rngs(2), eta=eta, known=known))


@ALL
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_row_is_the_same_alone_and_in_a_batch(name: str, eta: float) -> None:
    start, denoise = 20 * noise(3, 1, 4, 4, seed=1), gaussian(mean=1, std=0.5)
    together = SAMPLERS[name](denoise, start, SIGMAS, walk=WALK, rngs=rngs(3), eta=eta)
    for i in range(3):
        alone = SAMPLERS[name](denoise, start[i:i + 1], SIGMAS, walk=WALK, rngs=rngs(3)[i:i + 1], eta=eta)
        assert torch.equal(alone[0], together[i])


@ALL
@pytest.mark.parametrize(("eta", "repeats"), [(1.0, 1), (0.0, 1), (1.0, 3), (0.0, 3)])
def test_both_halves_are_at_one_noise_level_before_every_evaluation(name: str, eta: float, repeats: int) -> None:
    side, kept, std = 96, 3.0, 0.5  # far beyond 1: a clamp of the clean latents would show
    exact, seen = gaussian(mean=-1.0, std=std), []

    def recording(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append((sigma, x.clone()))
        return exact(x, sigma)

    keep = torch.zeros(1, 1, side, side, dtype=torch.bool)
    keep[..., : side // 2] = True
    clean = torch.full((1, 1, side, side), kept, dtype=torch.float64)
    sigmas = karras_sigmas(160, sigma_min=0.05, sigma_max=20).double()
    walk = resampling_walk(160, jump_length=3, jump_repeats=repeats)
    out = SAMPLERS[name](recording, 20 * noise(1, 1, side, side, seed=2), sigmas, rngs=rngs(1), eta=eta, walk=walk,
                         known=Known(clean, keep, rngs(1, "known")))
    half = side * side // 2
    for sigma, x in seen:
        known = x[keep]
        assert abs(float(known.mean()) - kept) < 5 * sigma / half**0.5
        assert abs(float(known.var()) / sigma**2 - 1) < 5 * (2 / half) ** 0.5
        painted = x[~keep]
        assert float(painted.var()) == pytest.approx(std**2 + sigma**2, rel=0.15)
    assert torch.equal(out[keep], clean[keep])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_both_looks_of_heun_see_the_known_region_with_one_noise(eta: float) -> None:
    clean, exact, seen = noise(1, 1, 16, 16), gaussian(mean=-3, std=0.2), []

    def recording(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append((x - clean) / sigma)
        return exact(x, sigma)

    known = Known(clean, torch.ones(1, 1, 16, 16, dtype=torch.bool), rngs(1, "known"))
    SAMPLERS["heun"](recording, noise(1, 1, 16, 16, seed=1), SIGMAS, walk=plain_walk(8)[:-1], rngs=rngs(1), eta=eta,
                     known=known)
    assert len(seen) == 14 and all(torch.allclose(a, b, atol=1e-9) for a, b in zip(seen[::2], seen[1::2], strict=True))


def ode_error(name: str, n: int, *, uneven: bool) -> float:
    """Returns how far `name` ends from the exact solution of the probability-flow ODE after n steps.

    Args:
        uneven: whether every other step (in log sigma) is three times as long as the one before.
    """
    mean, std, high, low = 0.7, 0.6, 10.0, 0.05
    lengths = torch.tensor([1.0, 3.0 if uneven else 1.0], dtype=torch.float64).repeat(n // 2).cumsum(0)
    share = torch.cat([torch.zeros(1, dtype=torch.float64), lengths / lengths[-1]])
    sigmas = low * (high / low) ** share
    start = mean + high * noise(1, 1, 8, 8, seed=3)
    end = SAMPLERS[name](gaussian(mean=mean, std=std), start, sigmas, walk=plain_walk(n), rngs=rngs(1))
    exact = mean + (start - mean) * math.sqrt((std**2 + low**2) / (std**2 + high**2))
    return float((end - exact).abs().max())


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_each_solver_converges_with_its_order(name: str, order: int, uneven: bool) -> None:  # noqa: FBT001
    errors = [ode_error(name, n, uneven=uneven) for n in (64, 128, 256)]
    measured = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(m - order) < 0.2 for m in measured), (measured, errors)


def test_without_noise_of_their_own_ddim_and_euler_are_one() -> None:
    start, denoise = 20 * noise(1, 1, 8, 8), gaussian(mean=1, std=0.5)
    results = [SAMPLERS[n](denoise, start, SIGMAS, walk=plain_walk(8), rngs=rngs(1)) for n in ("ddim", "euler")]
    assert torch.allclose(*results, atol=1e-12)


@ALL
@pytest.mark.parametrize("repeats", [1, 2])
def test_with_noise_of_its_own_it_draws_from_the_law_of_the_data(name: str, repeats: int) -> None:
    mean, std, n = -0.5, 0.6, 400 if name == "euler" else 96  # churn makes its first-order error the largest
    sigmas = karras_sigmas(n, sigma_min=0.01, sigma_max=40).double()
    out = SAMPLERS[name](gaussian(mean=mean, std=std), 40 * noise(1, 1, 160, 160, seed=4), sigmas, rngs=rngs(1),
                         eta=1.0, walk=resampling_walk(n, jump_length=8, jump_repeats=repeats))
    assert abs(float(out.mean()) - mean) < 0.03
    assert float(out.std()) == pytest.approx(std, rel=0.06)


def test_after_a_jump_the_multistep_solver_remembers_nothing() -> None:
    exact, seen = gaussian(mean=0.3, std=0.8), []

    def recording(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append(x.clone())
        return exact(x, sigma)

    walk = [(4, 3), (3, 2), (2, 4), (4, 3), (3, 2)]
    whole = SAMPLERS["dpmpp_2m"](recording, noise(1, 1, 4, 4), SIGMAS, walk=walk, rngs=rngs(1))
    fresh = SAMPLERS["dpmpp_2m"](exact, seen[2], SIGMAS, walk=walk[3:], rngs=rngs(1))
    assert torch.equal(whole, fresh)
    first_order = SAMPLERS["ddim"](exact, seen[2], SIGMAS, walk=walk[3:], rngs=rngs(1))
    assert not torch.allclose(whole, first_order), "the second move after the jump is of second order again"


@ALL
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_known_region_has_new_noise_wherever_the_sampler_has(name: str, eta: float) -> None:
    """Deterministic moves keep the noise of the known region; every move that draws noise, or goes up, draws anew."""
    clean, exact, seen = noise(1, 1, 64, 64), gaussian(mean=0, std=1), []

    def recording(x: torch.Tensor, sigma: float) -> torch.Tensor:
        seen.append((sigma, x.clone()))
        return exact(x, sigma)

    walk = [(8, 7), (7, 6), (6, 8), (8, 7)]
    known = Known(clean, torch.ones(1, 1, 64, 64, dtype=torch.bool), rngs(1, "known"))
    SAMPLERS[name](recording, noise(1, 1, 64, 64, seed=1), SIGMAS, walk=walk, rngs=rngs(1), eta=eta, known=known)
    looks = seen[::2] if name == "heun" else seen  # the first of each move
    first, second, third = (((x - clean) / sigma).flatten() for sigma, x in looks)

    def alike(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    assert alike(first, second) == pytest.approx(1, abs=1e-6) if eta == 0 else abs(alike(first, second)) < 0.08
    assert abs(alike(second, third)) < 0.08 and abs(alike(first, third)) < 0.08

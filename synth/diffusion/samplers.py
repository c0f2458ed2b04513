"""Samplers as plain functions of one signature: from noise to clean latents, with an optional known region.

Everything is in the coordinates of Karras et al. 2022 (EDM): a noisy latent is x = clean + sigma * noise, and the
probability-flow ODE is dx/dsigma = (x - D(x, sigma)) / sigma (eq. 1 with sigma(t) = t). Level 0 of `sigmas` is the
clean end, the last one the noisiest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from synth.core.rng import randn_each

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""(latents (B, c, h, w) at level sigma, sigma) -> expected clean latents (B, c, h, w). One call is one evaluation."""

Walk = Sequence[tuple[int, int]]
"""Moves (from level, to level); down = towards clean."""


@dataclass(frozen=True)
class Known:
    """What must stay: clean latents (B, c, h, w), where (B, 1, h, w) bool, and the generators of its own noise.

    Its noise has generators of its own, so that an empty keep mask draws exactly what the plain sampler draws.
    """

    latents: torch.Tensor
    keep: torch.Tensor
    rngs: Sequence[torch.Generator]


def plain_walk(n_steps: int) -> Walk:
    """Returns the moves from level n_steps to 0, one level at a time."""
    return [(level, level - 1) for level in range(n_steps, 0, -1)]


def resampling_walk(n_steps: int, *, jump_length: int, jump_repeats: int) -> Walk:
    """Returns the moves of RePaint's schedule, n_steps = pure noise, 0 = clean.

    Every `jump_length` levels the walk goes back up by that many, `jump_repeats - 1` times (Lugmayr et al. 2022,
    algorithm 1). A move down is one network evaluation (two for Heun); a move up is one draw of noise.
    """
    left = {level: jump_repeats - 1 for level in range(0, n_steps - jump_length, jump_length)}
    moves, level = [], n_steps
    while level > 0:
        moves.append((level, level - 1))
        level -= 1
        if left.get(level, 0) > 0:
            left[level] -= 1
            moves.append((level, level + jump_length))
            level += jump_length
    return moves


def n_evaluations(walk: Walk, *, sampler: str = "ddim") -> int:
    """Returns the network evaluations that `sampler` needs for `walk`: one a move down; Heun two, one to level 0."""
    down = [target for source, target in walk if source > target]
    return len(down) + (sum(target > 0 for target in down) if sampler == "heun" else 0)


def karras_sigmas(n_steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> torch.Tensor:
    """Returns levels (n_steps + 1,) from 0 (clean), sigma_min, up to sigma_max. Karras et al. 2022, eq. 5."""
    if n_steps == 1:
        return torch.tensor([0.0, sigma_max])
    ramp = torch.linspace(0, 1, n_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([torch.zeros(1), ((low + ramp * (high - low)) ** rho).float()])


class _Hold:
    """Keeps the known region at the sample's own noise level.

    Deterministic samplers move along x = clean + sigma * noise with one noise, and so does the known region; wherever
    the sampler draws fresh noise, the known region gets fresh noise too.
    """

    def __init__(self, known: Known | None) -> None:
        self.known, self.noise = known, None

    def refresh(self) -> None:
        self.noise = None

    def __call__(self, latents: torch.Tensor, sigma: float) -> torch.Tensor:
        if self.known is None:
            return latents
        fixed = self.known.latents
        if sigma > 0:
            if self.noise is None:
                self.noise = randn_each(latents.shape[1:], self.known.rngs, latents.device)
            fixed = fixed + sigma * self.noise
        return torch.where(self.known.keep, fixed, latents)


Step = Callable[[torch.Tensor, float, float, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]]
"""(latents, sigma, next sigma, estimate of the last move down or None) -> (latents, this move's clean estimate)."""


def _travel(step: Step, latents: torch.Tensor, sigmas: torch.Tensor, *, walk: Walk,  # noqa: PLR0913
            rngs: Sequence[torch.Generator], known: Known | None, fresh: bool) -> torch.Tensor:
    levels = sigmas.tolist()
    hold, last = _Hold(known), None
    latents = hold(latents, levels[walk[0][0]])
    for source, target in walk:
        here, there = levels[source], levels[target]
        if target > source:
            noise = randn_each(latents.shape[1:], rngs, latents.device)
            latents, last = latents + (there**2 - here**2) ** 0.5 * noise, None
            hold.refresh()
        else:
            latents, last = step(latents, here, there, last)
            if fresh:
                hold.refresh()
        latents = hold(latents, there)
    return latents


def sample_ddim(denoise: Denoise, latents: torch.Tensor, sigmas: torch.Tensor, *, walk: Walk,  # noqa: PLR0913
                rngs: Sequence[torch.Generator], known: Known | None = None, eta: float = 0.0) -> torch.Tensor:
    """Returns clean latents (B, c, h, w) from `latents` at the first level of `walk`, by DDIM.

    Both halves are always at one noise level: after each move the known region is its clean latents plus noise of
    that same level; at level 0 it is clean.

    Args:
        sigmas: noise levels 0..n, (n + 1,).
        rngs: generators of the sampler's own noise, one per image.
        eta: 0 = deterministic, 1 = ancestral (Song et al. 2021, eq. 16, in these coordinates). At 0 a step is Euler's.
    """
    def _step(x: torch.Tensor, here: float, there: float, _last: object) -> tuple[torch.Tensor, torch.Tensor]:
        clean = denoise(x, here)
        up = eta * there * (1 - (there / here) ** 2) ** 0.5
        down = (there**2 - up**2) ** 0.5
        x = clean + (down / here) * (x - clean)
        if up > 0:
            x = x + up * randn_each(x.shape[1:], rngs, x.device)
        return x, clean

    return _travel(_step, latents, sigmas, walk=walk, rngs=rngs, known=known, fresh=eta > 0)


def _churn(eta: float, n_steps: int) -> float:
    """Returns gamma of Karras et al. 2022, algorithm 2, for S_churn = 40 eta (their value for ImageNet-64 at eta 1)."""
    return min(40 * eta / n_steps, 2**0.5 - 1)


def _churned(x: torch.Tensor, sigma: float, *, gamma: float, rngs: Sequence[torch.Generator]
             ) -> tuple[torch.Tensor, float]:
    """Returns latents (B, c, h, w) of level sigma with fresh noise up to sigma (1 + gamma), and that level."""
    if gamma == 0:
        return x, sigma
    high = sigma * (1 + gamma)
    return x + (high**2 - sigma**2) ** 0.5 * randn_each(x.shape[1:], rngs, x.device), high


def sample_euler(denoise: Denoise, latents: torch.Tensor, sigmas: torch.Tensor, *, walk: Walk,  # noqa: PLR0913
                 rngs: Sequence[torch.Generator], known: Known | None = None, eta: float = 0.0) -> torch.Tensor:
    """Returns clean latents (B, c, h, w), by Euler steps with churn: first order. Arguments as `sample_ddim`.

    Karras et al. 2022, algorithm 2 without its correction: noise is added first, up to sigma * (1 + gamma), then one
    step is taken down.
    """
    gamma = _churn(eta, len(sigmas) - 1)

    def _step(x: torch.Tensor, here: float, there: float, _last: object) -> tuple[torch.Tensor, torch.Tensor]:
        x, high = _churned(x, here, gamma=gamma, rngs=rngs)
        clean = denoise(x, high)
        return x + (there - high) * (x - clean) / high, clean

    return _travel(_step, latents, sigmas, walk=walk, rngs=rngs, known=known, fresh=eta > 0)


def sample_heun(denoise: Denoise, latents: torch.Tensor, sigmas: torch.Tensor, *, walk: Walk,  # noqa: PLR0913
                rngs: Sequence[torch.Generator], known: Known | None = None, eta: float = 0.0) -> torch.Tensor:
    """Returns clean latents (B, c, h, w), by Heun's method: second order, two evaluations a step.

    Karras et al. 2022, algorithm 1 (2 with churn, as `sample_euler`); the move to level 0 is Euler's. Both evaluations
    see the known region at their own level, with one noise. Arguments as `sample_ddim`.
    """
    gamma = _churn(eta, len(sigmas) - 1)

    def _step(x: torch.Tensor, here: float, there: float, _last: object) -> tuple[torch.Tensor, torch.Tensor]:
        x, high = _churned(x, here, gamma=gamma, rngs=rngs)
        clean = denoise(x, high)
        slope = (x - clean) / high
        ahead = x + (there - high) * slope
        if there > 0:
            if known is not None:  # the network's guess is not what it is
                ahead = torch.where(known.keep, known.latents + there / high * (x - known.latents), ahead)
            slope = 0.5 * (slope + (ahead - denoise(ahead, there)) / there)
            ahead = x + (there - high) * slope
        return ahead, clean

    return _travel(_step, latents, sigmas, walk=walk, rngs=rngs, known=known, fresh=eta > 0)


def sample_dpmpp_2m(denoise: Denoise, latents: torch.Tensor, sigmas: torch.Tensor, *, walk: Walk,  # noqa: PLR0913
                    rngs: Sequence[torch.Generator], known: Known | None = None, eta: float = 0.0) -> torch.Tensor:
    """Returns clean latents (B, c, h, w), by DPM-Solver++(2M): second order, one evaluation a step.

    Lu et al. 2022 (DPM-Solver++), algorithm 2, with lambda = -log sigma; with `eta` its SDE form (their appendix on
    SDE-DPM-Solver++). The first move, the move to level 0 and the first one after a jump are of first order. Arguments
    as `sample_ddim`.
    """
    lengths: list[float] = []

    def _step(x: torch.Tensor, here: float, there: float, last: torch.Tensor | None
             ) -> tuple[torch.Tensor, torch.Tensor]:
        clean = denoise(x, here)
        if there == 0:
            return clean, clean
        h = torch.tensor(here / there, dtype=torch.float64).log().item()
        guess = clean
        if last is not None:
            ratio = lengths[-1] / h
            guess = clean + (clean - last) / (2 * ratio)
        lengths.append(h)
        # exp(-h) = there / here; eta adds noise and shrinks the remembered part by exp(-eta h) besides.
        shrink = (there / here) * (there / here) ** eta
        x = shrink * x + (1 - shrink) * guess
        if eta > 0:
            x = x + there * (1 - (there / here) ** (2 * eta)) ** 0.5 * randn_each(x.shape[1:], rngs, x.device)
        return x, clean

    return _travel(_step, latents, sigmas, walk=walk, rngs=rngs, known=known, fresh=eta > 0)


SAMPLERS = {"ddim": sample_ddim, "euler": sample_euler, "heun": sample_heun, "dpmpp_2m": sample_dpmpp_2m}
"""By the names that settings use."""

"""One torch.Generator per sample, a pure function of (run seed, what it is for): the ground of determinism."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """Returns a 63-bit seed that depends on nothing but `seed` and `names` (BLAKE2b of their text)."""
    text = "\x1f".join(str(n) for n in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def sample_rng(seed: int, *names: str | int) -> torch.Generator:
    """Returns a CPU generator for one sample, the same on every machine, process and batch size."""
    return torch.Generator("cpu").manual_seed(derive_seed(seed, *names))


@contextmanager
def one_thread() -> Iterator[None]:
    """Returns a context in which torch computes on one CPU thread.

    Sums shared out among threads round differently for each number of them, so files that must be the same for one
    process and for several cannot be made with whatever number each of them happens to have.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Returns a context in which torch's global CPU generator starts from (seed, names); after it, it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, *names))
        yield


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    """Returns one number in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=rng, dtype=torch.float64))


def choice(rng: torch.Generator, n: int) -> int:
    """Returns one index in [0, n)."""
    return int(torch.randint(n, (), generator=rng))


def randn_each(
    shape: Sequence[int], rngs: Sequence[torch.Generator], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Returns noise (B, *shape), row i drawn from `rngs[i]` alone, so that batch and single agree bit for bit."""
    return torch.stack([torch.randn(tuple(shape), generator=r) for r in rngs]).to(device)

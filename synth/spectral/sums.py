"""Running sums of a frequency prior: one image at a time, flat memory, and the same whatever the order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from synth.core.pairs import Pair
from synth.spectral.regions import Measured

N_BUCKETS = 4096
"""Groups are kept apart by a hash of their name, in so many places: memory stays flat however many there are."""
HASH_BITS = 128

SUMS = ("n", "radial", "radial_square", "polar", "polar_square")


@dataclass(frozen=True)
class Seen:
    """Which images a prior was fitted on.

    Attributes:
        n_images: how many. groups: their groups, sorted. ids_hash, fingerprint: 32 hexadecimal digits each, over the
            ids, and over ids, groups, pixels and labels; sums of one hash per image, so that order is of no account.
    """

    n_images: int
    groups: tuple[str, ...]
    ids_hash: str
    fingerprint: str

    def joined(self, other: Seen) -> Seen:
        """Returns what both saw together; an image that both saw counts twice."""
        return Seen(self.n_images + other.n_images, tuple(sorted({*self.groups, *other.groups})),
                    _add(self.ids_hash, other.ids_hash), _add(self.fingerprint, other.fingerprint))


def _add(a: str, b: str) -> str:
    return f"{(int(a, 16) + int(b, 16)) % (1 << HASH_BITS):0{HASH_BITS // 4}x}"


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=HASH_BITS // 8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def bucket_of(group: str) -> int:
    """Returns the place of a group among `N_BUCKETS`, the same on every machine."""
    return int(_digest(group.encode())[:8], 16) % N_BUCKETS


def seen_of(pair: Pair) -> Seen:
    """Returns the provenance of one image, pixels (H, W[, 3]), with its labels."""
    arrays = [pair.image] if pair.mask is None else [pair.image, pair.mask]
    content = [part for a in arrays for part in (repr((a.shape, a.dtype.str)).encode(),
                                                 np.ascontiguousarray(a).tobytes())]
    name = pair.id.encode()
    return Seen(1, (pair.group,), _digest(name), _digest(name, pair.group.encode(), *content))


@dataclass
class Sums:
    """Sums over images of amplitudes and of their squares, float64, while a prior is being fitted.

    Attributes:
        n: images that have each region (K,), by bucket. radial: sums (K, C, R), by bucket.
        totals: over all images: "radial_square" (K, C, R), "polar" and "polar_square" (K, C, R, A).
        n_images, groups, hashes: what `Seen` says of them.
    """

    n: dict[int, torch.Tensor] = field(default_factory=dict)
    radial: dict[int, torch.Tensor] = field(default_factory=dict)
    totals: dict[str, torch.Tensor] = field(default_factory=dict)
    n_images: int = 0
    groups: set[str] = field(default_factory=set)
    hashes: tuple[str, str] = ("0", "0")

    def add(self, pair: Pair, measured: Measured) -> None:
        """Adds one image's amplitudes and provenance."""
        there = measured.present.double()
        radial = measured.radial * there[:, None, None]
        polar = measured.polar * there[:, None, None, None]
        bucket = bucket_of(pair.group)
        _count(self.n, bucket, there)
        _count(self.radial, bucket, radial)
        for name, value in (("radial_square", radial.square()), ("polar", polar), ("polar_square", polar.square())):
            _count(self.totals, name, value)
        seen = seen_of(pair)
        self.n_images += 1
        self.groups.add(pair.group)
        self.hashes = _add(self.hashes[0], seen.ids_hash), _add(self.hashes[1], seen.fingerprint)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns the sums by the names in `SUMS`, and `buckets` (G,); n and radial gain a first axis of buckets."""
        buckets = sorted(self.n)
        return {"buckets": torch.tensor(buckets), "n": torch.stack([self.n[b] for b in buckets]),
                "radial": torch.stack([self.radial[b] for b in buckets]), **self.totals}

    def seen(self) -> Seen:
        """Returns the provenance of all images added."""
        return Seen(self.n_images, tuple(sorted(self.groups)), *self.hashes)


def _count(table: dict, key: int | str, value: torch.Tensor) -> None:
    if key in table:
        table[key] += value
    else:
        table[key] = value.clone()


def joined(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the sums of two fits, each as `Sums.tensors` gives them, (G, ...) and (...), as those of one fit."""
    buckets, where = torch.cat([a["buckets"], b["buckets"]]).unique(return_inverse=True)
    out = {"buckets": buckets}
    for name in SUMS:
        if name in ("n", "radial"):
            both = torch.cat([a[name], b[name]])
            out[name] = both.new_zeros(len(buckets), *both.shape[1:]).index_add_(0, where, both)
        else:
            out[name] = a[name] + b[name]
    return out

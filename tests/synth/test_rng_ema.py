"""Random numbers are pure functions of their names; the moving average follows its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from synth.core.ema import Ema
from synth.core.rng import choice, derive_seed, one_thread, randn_each, sample_rng, uniform


def test_a_seed_depends_on_every_name_and_on_nothing_else() -> None:
    names = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "ab"), (0, "a", 1), (0, "a", 11), (0, 1)]
    seeds = [derive_seed(*n) for n in names]
    assert len(set(seeds)) == len(names) and all(0 <= s < 2**63 for s in seeds)
    torch.manual_seed(123)
    assert [derive_seed(*n) for n in names] == seeds


def test_the_seed_is_the_same_in_every_version() -> None:
    # A changed derivation would silently redraw every data set: this figure may only change on purpose.
    assert derive_seed(0, "paint") == 6554722410891585656


def test_noise_of_a_batch_is_the_noise_of_each_alone() -> None:
    def rngs() -> list[torch.Generator]:
        return [sample_rng(s, "x") for s in (3, 4, 5)]

    batch = randn_each((4, 8, 8), rngs())
    assert batch.shape == (3, 4, 8, 8)
    for i, rng in enumerate(rngs()):
        assert torch.equal(randn_each((4, 8, 8), [rng])[0], batch[i])
    assert not torch.equal(batch[0], batch[1])
    big = randn_each((100_000,), [sample_rng(1, "big")])
    assert abs(float(big.mean())) < 0.02 and abs(float(big.std()) - 1) < 0.01


def test_uniform_and_choice_stay_in_range_and_reach_all_of_it() -> None:
    rng = sample_rng(0, "u")
    values = torch.tensor([uniform(rng, -2, 3) for _ in range(4000)])
    assert values.min() >= -2 and values.max() < 3
    assert abs(float(values.mean()) - 0.5) < 0.1 and abs(float(values.var()) - 25 / 12) < 0.15
    assert {choice(rng, 5) for _ in range(200)} == set(range(5))


def test_one_thread_gives_back_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with pytest.raises(RuntimeError, match="inside"), one_thread():
            raise RuntimeError("inside")
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def constant(value: float) -> nn.Module:
    """Returns a network with a parameter and running statistics that all equal `value`."""
    net = nn.BatchNorm1d(2)
    for tensor in (net.weight.data, net.bias.data, net.running_mean, net.running_var):
        tensor.fill_(value)
    return net


def test_the_first_updates_are_a_plain_mean() -> None:
    ema = Ema(constant(0.0), decay=0.999)
    for k in range(1, 6):
        ema.update(constant(float(k)))
        assert torch.allclose(ema.net.weight, torch.full((2,), sum(range(k + 1)) / (k + 1)))


def test_then_the_average_forgets_at_the_rate_of_its_decay() -> None:
    ema = Ema(constant(0.0), decay=0.9)
    ema.updates = 1000  # past the warm-up
    for _ in range(7):
        ema.update(constant(1.0))
    assert torch.allclose(ema.net.weight, torch.full((2,), 1 - 0.9**7))


def test_running_statistics_are_copied_and_the_average_is_apart_from_its_source() -> None:
    net = constant(1.0)
    ema = Ema(net, decay=0.9)
    net.running_mean.fill_(5.0)
    assert ema.net.running_mean[0] == 1
    ema.update(net)
    assert torch.equal(ema.net.running_mean, torch.full((2,), 5.0))
    assert not ema.net.training and not any(p.requires_grad for p in ema.net.parameters())
    assert net.training and all(p.requires_grad for p in net.parameters())


def test_a_wrapped_network_is_looked_through_and_the_state_survives() -> None:
    class Wrapped(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    ema = Ema(constant(0.0), decay=0.9)
    ema.update(Wrapped(constant(2.0)))
    other = Ema(constant(7.0), decay=0.9)
    other.load_state_dict(ema.state_dict())
    for net in (ema, other):
        net.update(constant(3.0))
    assert torch.equal(ema.net.weight, other.net.weight) and ema.updates == other.updates == 2

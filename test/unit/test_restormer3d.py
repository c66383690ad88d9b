"""Restormer3D against its published sizes and an independent, plain computation."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.architectures import blocks, build
from model.architectures.blocks import depthwise_conv3d, is_channels_last, pointwise_conv3d
from model.architectures.restormer3d import (
    ChannelAttention,
    ChannelNorm,
    GatedFeedForward,
    Restormer3D,
    Restormer3DConfig,
    _ChannelProducts,
    _GeluGate,
    channels_to_space,
    expand_and_mix,
    space_to_channels,
)
from model.config import Precision
from model.device import in_precision, pick_device, place


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.fixture(params=["channels_last", "default"])
def features(request: pytest.FixtureRequest) -> torch.Tensor:
    x = torch.randn(2, 8, 5, 6, 4, generator=torch.Generator().manual_seed(0))
    if request.param == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    return x


def test_the_published_configuration_has_3636502_parameters_and_163_tensors() -> None:
    net = Restormer3D(Restormer3DConfig())
    assert num_parameters(net) == 3_636_502
    assert len(net.state_dict()) == 163


def test_no_convolution_has_a_bias() -> None:
    convolutions = [m for m in Restormer3D(Restormer3DConfig()).modules() if hasattr(m, "padding")]
    assert len(convolutions) > 50
    assert all(convolution.bias is None for convolution in convolutions)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"norm": "with_bias"}, 3_640_214),
        ({"residual": True}, 3_636_502),
        ({"down_factor": (2, 2, 2), "down_kernel": (1, 1, 1)}, 3_717_142),  # and time
        ({"down_kernel": (1, 1, 1)}, 3_550_486),
        ({"down_kernel": (3, 3, 3), "up_kernel": (3, 3, 3)}, 8_302_870),
    ],
)
def test_the_open_choices_have_the_parameters_of_the_specification(
    change: dict[str, object], expected: int
) -> None:
    assert num_parameters(Restormer3D(replace(Restormer3DConfig(), **change))) == expected


def test_the_small_configuration_keeps_shape_and_has_130551_parameters() -> None:
    net = Restormer3D(Restormer3DConfig.tiny())
    assert num_parameters(net) == 130_551
    assert net(torch.zeros(1, 1, 5, 16, 24)).shape == (1, 1, 5, 16, 24)


def test_unshuffle_orders_channels_by_row_then_column() -> None:
    frame = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]])[None, None, None]
    folded = space_to_channels(frame, (1, 2, 2))
    assert folded[0, :, 0, 0].tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_unshuffle_equals_the_library_on_every_frame_and_shuffle_undoes_it() -> None:
    x = torch.randn(2, 3, 4, 6, 8)
    folded = space_to_channels(x, (1, 2, 2))
    frames = functional.pixel_unshuffle(x.transpose(1, 2), 2).transpose(1, 2)
    assert torch.equal(folded, frames)
    assert torch.equal(channels_to_space(folded, (1, 2, 2)), x)
    assert torch.equal(channels_to_space(space_to_channels(x, (2, 2, 2)), (2, 2, 2)), x)


@pytest.mark.parametrize("multiplies_slowly", [False, True])
def test_convolutions_equal_the_library_and_so_do_their_gradients(
    features: torch.Tensor, multiplies_slowly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "MULTIPLIES_SLOWLY", multiplies_slowly)
    point = torch.randn(5, 8, 1, 1, 1, requires_grad=True)
    depth = torch.randn(8, 1, 3, 3, 3, requires_grad=True)
    for ours, theirs, weight in (
        (pointwise_conv3d, functional.conv3d, point),
        (depthwise_conv3d, lambda x, w: functional.conv3d(x, w, padding=1, groups=8), depth),
    ):
        x = features.clone().requires_grad_()
        pull = torch.randn_like(theirs(x, weight))
        found = torch.autograd.grad((ours(x, weight) * pull).sum(), (x, weight))
        expected = torch.autograd.grad((theirs(x, weight) * pull).sum(), (x, weight))
        torch.testing.assert_close(ours(x, weight), theirs(x, weight), rtol=1e-5, atol=1e-5)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vendor", ["GenuineIntel", "AuthenticAMD"])
def test_matrix_products_are_avoided_where_mkl_is_slow(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.mkl.is_available", lambda: True)
    monkeypatch.setattr(Path, "read_text", lambda _: f"processor: 0\nvendor_id: {vendor}\n")
    assert blocks._multiplies_slowly() == (vendor == "AuthenticAMD")


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_few_frames_have_the_librarys_gradients(num_frames: int) -> None:
    x = torch.randn(2, 4, num_frames, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(4, 1, 3, 3, 3, requires_grad=True)
    x.requires_grad_()
    found = torch.autograd.grad(depthwise_conv3d(x, weight).square().sum(), (x, weight))
    plain = functional.conv3d(x, weight, padding=1, groups=4)
    for a, b in zip(found, torch.autograd.grad(plain.square().sum(), (x, weight)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_every_convolution_gets_the_fast_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """One input channel has no layout of its own, and what follows took the slow one from it."""
    layouts = []

    def noted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        layouts.append(is_channels_last(x))
        return depthwise_conv3d(x, weight)

    monkeypatch.setattr("model.architectures.restormer3d.depthwise_conv3d", noted)
    net = place(Restormer3D(Restormer3DConfig.tiny()), pick_device("cpu"))
    net(torch.rand(1, 1, 4, 16, 24))
    assert len(layouts) == 40  # eight blocks, five convolutions each
    assert all(layouts)


def test_the_norm_divides_by_the_standard_deviation_and_keeps_the_mean() -> None:
    x = torch.randn(2, 8, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    norm = ChannelNorm(8, "bias_free").double()
    nn.init.uniform_(norm.gain, 0.5, 2.0)
    plain = x / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * norm.gain.view(-1, 1, 1, 1)
    torch.testing.assert_close(norm(x), plain)
    pull = torch.randn_like(x)
    expected = torch.autograd.grad((plain * pull).sum(), (x, norm.gain))
    found = torch.autograd.grad((norm(x) * pull).sum(), (x, norm.gain))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_equals_the_written_out_formula(features: torch.Tensor) -> None:
    attention = ChannelAttention(8, 2)
    nn.init.uniform_(attention.temperature, 0.5, 3.0)
    qkv = functional.conv3d(features, attention.to_qkv.weight)
    qkv = functional.conv3d(qkv, attention.mix_qkv.weight, padding=1, groups=24)
    query, key, value = (part.reshape(2, 2, 4, -1) for part in qkv.chunk(3, dim=1))
    query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
    temperature = attention.temperature.view(1, 2, 1, 1)
    mixed = ((query @ key.transpose(-1, -2)) * temperature).softmax(-1) @ value
    expected = functional.conv3d(mixed.reshape(features.shape), attention.project.weight)
    torch.testing.assert_close(attention(features), expected, rtol=1e-4, atol=1e-5)


def test_feed_forward_equals_the_written_out_formula(features: torch.Tensor) -> None:
    block = GatedFeedForward(8, 2.0)
    hidden = functional.conv3d(features, block.expand.weight)
    hidden = functional.conv3d(hidden, block.mix.weight, padding=1, groups=32)
    gate, content = hidden[:, :16], hidden[:, 16:]
    expected = functional.conv3d(functional.gelu(gate) * content, block.project.weight)
    torch.testing.assert_close(block(features), expected, rtol=1e-4, atol=1e-5)


def test_products_of_channels_have_the_librarys_gradients(features: torch.Tensor) -> None:
    def written_out(query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return query @ key.transpose(-1, -2), query.square().sum(-1), key.square().sum(-1)

    query, key = (features.flatten(2).unflatten(1, (2, 4)) * by for by in (1.0, -0.3))
    query.requires_grad_()
    key.requires_grad_()
    pulls = [torch.randn_like(each) for each in written_out(query, key)]

    def gradients(of: Callable[..., tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
        loss = sum((a * b).sum() for a, b in zip(of(query, key), pulls, strict=True))
        return torch.autograd.grad(loss, (query, key))

    for a, b in zip(gradients(_ChannelProducts.apply), gradients(written_out), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert a.stride(-2) == query.stride(-2)


def test_the_gate_has_the_librarys_gradients(features: torch.Tensor) -> None:
    gate, content = features.clone().requires_grad_(), (1 - features).detach().requires_grad_()
    pull = torch.randn_like(features)
    found = torch.autograd.grad((_GeluGate.apply(gate, content) * pull).sum(), (gate, content))
    plain = functional.gelu(gate) * content
    expected = torch.autograd.grad((plain * pull).sum(), (gate, content))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_both_memory_layouts_give_the_same_function() -> None:
    torch.manual_seed(0)
    net = build("restormer3d")
    x = torch.rand(1, 1, 4, 16, 16)
    expected = net(x)
    found = net.to(memory_format=torch.channels_last_3d)(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision, tolerance", [("bf16", 0.05), ("fp16", 0.01)])
def test_lower_precision_holds_sums_over_all_voxels(precision: Precision, tolerance: float) -> None:
    """They are beyond what fp16 has numbers for."""
    torch.manual_seed(0)
    attention = ChannelAttention(8, 2)
    attention.to_qkv.weight.data *= 100
    x = torch.randn(1, 8, 8, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    query, key, _ = expand_and_mix(x, attention.to_qkv, attention.mix_qkv, 3)
    assert min(query.square().sum(), key.square().sum()) > 100 * torch.finfo(torch.float16).max
    expected = attention(x)
    with in_precision(pick_device("cpu"), precision):
        found = attention(x)
    assert (found - expected).square().mean().sqrt() < tolerance * expected.square().mean().sqrt()


def test_training_in_bf16_has_nearly_the_same_gradients() -> None:
    torch.manual_seed(0)
    net = place(build("restormer3d", dim=8, num_blocks=(1, 1, 1, 1)), pick_device("cpu"))
    x = torch.rand(1, 1, 4, 16, 16)

    def gradients(precision: Precision) -> torch.Tensor:
        with in_precision(pick_device("cpu"), precision):
            result = net(x)
        found = torch.autograd.grad(result.float().square().mean(), list(net.parameters()))
        return torch.cat([gradient.flatten() for gradient in found])

    cosine = functional.cosine_similarity(gradients("bf16"), gradients("fp32"), dim=0)
    assert cosine > 0.99


def test_recomputed_levels_keep_less_and_give_the_same_gradients() -> None:
    net = place(Restormer3D(Restormer3DConfig.tiny()), pick_device("cpu"))
    noisy = torch.rand(1, 1, 4, 16, 16)
    kept, gradients = [], []
    for levels in range(net.num_levels + 1):
        net.recomputed_levels = levels
        net.zero_grad()
        storages: dict[int, int] = {}

        def note(tensor: torch.Tensor, seen: dict[int, int] = storages) -> torch.Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = net(noisy).square().mean()
        kept.append(sum(storages.values()))
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(more > less for more, less in itertools.pairwise(kept))
    assert kept[1] < 0.6 * kept[0]
    for others in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], others, strict=True))


def test_a_patch_that_cannot_be_halved_three_times_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"\(4, 12, 16\) is no multiple of \(1, 8, 8\)"):
        Restormer3D(Restormer3DConfig.tiny())(torch.zeros(1, 1, 4, 12, 16))


def test_heads_that_do_not_divide_the_channels_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"heads\[1\]=3 must divide 64 channels"):
        Restormer3DConfig(heads=(1, 3, 4, 8))

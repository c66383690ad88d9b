"""UNet-Att and its ablations against their published sizes and an independent computation."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.architectures import ARCHITECTURES, Architecture
from model.architectures.unet_att import DecoderBlock, Gate, UNetAtt, UNetAttConfig, Variant
from model.checkpoint import load_network, read_checkpoint, save_checkpoint

VARIANTS = get_args(Variant)
BIG_ENOUGH = (16, 32, 24)  # no gate has to fill up a side; all sides differ


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def tiny(variant: str) -> UNetAtt:
    torch.manual_seed(0)
    return UNetAtt(replace(UNetAttConfig.tiny(), variant=variant))


def lively(variant: str) -> UNetAtt:
    """In evaluation mode and float64, no weight or running statistic near its trivial value."""
    net = tiny(variant).double().eval()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if tensor.dim() > 1:  # a convolution: keep the signal's size from layer to layer
            nn.init.kaiming_uniform_(tensor, nonlinearity="relu", generator=generator)
        elif "norm" in name:
            nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
        else:
            nn.init.uniform_(tensor, -0.5, 0.5, generator=generator)
    return net


def noise(*sides: int, batch: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, 1, *sides, generator=generator, dtype=dtype)


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    ("variant", "encoder", "decoder", "gates", "total"),
    [
        ("unet_att", 439_488, 795_232, 381_046, 1_615_783),
        ("unet_pp", 439_488, 795_232, 0, 1_234_737),
        ("attention_unet", 439_488, 580_832, 393_171, 1_413_508),
        ("without_da", 439_488, 795_232, 381_046, 1_615_783),
    ],
)
def test_every_variant_has_the_published_number_of_parameters(
    variant: str, encoder: int, decoder: int, gates: int, total: int
) -> None:
    net = UNetAtt(UNetAttConfig(variant=variant))
    assert num_parameters(net.encoders) == encoder
    assert num_parameters(net.decoders) == decoder
    assert num_parameters(net.gates) == gates
    assert num_parameters(net.out) == 17
    assert num_parameters(net) == total


def test_the_small_configuration_keeps_shape_and_has_101335_parameters() -> None:
    net = UNetAtt(UNetAttConfig.tiny())
    assert num_parameters(net) == 101_335
    assert net(noise(8, 16, 24)).shape == (1, 1, 8, 16, 24)


# The forward pass once more, from the published node table: plain functions of the weights.


def resampled(x: Tensor, sides: tuple[int, ...], corners: bool) -> Tensor:
    """Trilinear resampling, one matrix of hat functions per axis."""
    for axis, (old, new) in enumerate(zip(x.shape[2:], sides, strict=True), start=2):
        target = torch.arange(new, dtype=x.dtype)
        if corners:
            position = target * (old - 1) / max(new - 1, 1)
        else:
            position = ((target + 0.5) * old / new - 0.5).clamp(0, old - 1)
        hats = (1 - (position[:, None] - torch.arange(old)).abs()).clamp(min=0)  # [new,old]
        x = (x.movedim(axis, -1) @ hats.T).movedim(-1, axis)
    return x


def doubled(x: Tensor, how: str) -> Tensor:
    if how == "nearest":
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    return resampled(x, tuple(2 * side for side in x.shape[2:]), corners=how == "corners")


def halved(x: Tensor) -> Tensor:
    for axis in (2, 3, 4):
        x = torch.maximum(*x.unflatten(axis, (-1, 2)).unbind(axis + 1))
    return x


Weights = dict[str, Tensor]


def pair(weights: Weights, key: str, *parts: Tensor) -> Tensor:
    x = torch.cat(parts, dim=1)
    for layer in (0, 2):
        kernel, bias = weights[f"{key}.{layer}.weight"], weights[f"{key}.{layer}.bias"]
        x = functional.conv3d(x, kernel, bias, padding=1).clamp(min=0)
    return x


def gate(weights: Weights, key: str, x: Tensor, g: Tensor) -> Tensor:
    w = {name.removeprefix(f"gates.{key}."): weight for name, weight in weights.items()}
    t = functional.conv3d(x, w["shrink.weight"], stride=2)
    assert t.shape[2:] == tuple((side - 3) // 2 + 1 for side in x.shape[2:])
    seen = (t + resampled(g, t.shape[2:], corners=False)).clamp(min=0)
    score = functional.conv3d(seen, w["score.weight"], w["score.bias"])
    attention = resampled(1 / (1 + torch.exp(-score)), x.shape[2:], corners=False)
    y = functional.conv3d(attention * x, w["project.weight"], w["project.bias"])
    mean, variance, gain, bias = (
        w[f"norm.{name}"].view(-1, 1, 1, 1)
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    return (y - mean) / torch.sqrt(variance + 1e-5) * gain + bias


def encoder_column(weights: Weights, noisy: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x00 = pair(weights, "encoders.0", noisy)
    x10 = pair(weights, "encoders.1", halved(x00))
    x20 = pair(weights, "encoders.2", halved(x10))
    x30 = pair(weights, "encoders.3", halved(x20))
    return x00, x10, x20, x30


def published_unet_att(weights: Weights, noisy: Tensor) -> list[Tensor]:
    dec = {key: partial(pair, weights, f"decoders.{key}") for key in NESTED}
    up = partial(doubled, how="corners")
    x00, x10, x20, x30 = encoder_column(weights, noisy)
    a00 = gate(weights, "0_1", x00, x10)
    a10 = gate(weights, "1_1", x10, x20)
    a20 = gate(weights, "2_1", x20, x30)
    x01 = dec["0_1"](a00, up(x10))
    x11 = dec["1_1"](a10, up(x20))
    x21 = dec["2_1"](a20, up(x30))
    a01 = gate(weights, "0_2", x01, x11)
    a11 = gate(weights, "1_2", x11, x21)
    x02 = dec["0_2"](a00, a01, up(x11))
    x12 = dec["1_2"](a10, a11, up(x21))
    a02 = gate(weights, "0_3", x02, x12)
    x03 = dec["0_3"](a00, a01, a02, up(x12))
    return [x01, x02, x03]


def published_unet_pp(weights: Weights, noisy: Tensor) -> list[Tensor]:
    dec = {key: partial(pair, weights, f"decoders.{key}") for key in NESTED}
    up = partial(doubled, how="edges")
    x00, x10, x20, x30 = encoder_column(weights, noisy)
    x01 = dec["0_1"](x00, up(x10))
    x11 = dec["1_1"](x10, up(x20))
    x21 = dec["2_1"](x20, up(x30))
    x02 = dec["0_2"](x00, x01, up(x11))
    x12 = dec["1_2"](x10, x11, up(x21))
    x03 = dec["0_3"](x00, x01, x02, up(x12))
    return [x01, x02, x03]


def published_attention_unet(weights: Weights, noisy: Tensor) -> list[Tensor]:
    up = partial(doubled, how="nearest")
    x00, x10, x20, x30 = encoder_column(weights, noisy)
    d2 = pair(weights, "decoders.2_1", gate(weights, "2_1", x20, x30), up(x30))
    d1 = pair(weights, "decoders.1_2", gate(weights, "1_2", x10, x30), up(d2))
    d0 = pair(weights, "decoders.0_3", gate(weights, "0_3", x00, x30), up(d1))
    return [d0]


def published_without_da(weights: Weights, noisy: Tensor) -> list[Tensor]:
    dec = {key: partial(pair, weights, f"decoders.{key}") for key in NESTED}
    up = partial(doubled, how="nearest")
    x00, x10, x20, x30 = encoder_column(weights, noisy)
    x01 = dec["0_1"](gate(weights, "0_1", x00, x10), up(x10))
    x11 = dec["1_1"](gate(weights, "1_1", x10, x20), up(x20))
    x21 = dec["2_1"](gate(weights, "2_1", x20, x30), up(x30))
    x02 = dec["0_2"](gate(weights, "0_2", x00, x11), x01, up(x11))
    x12 = dec["1_2"](gate(weights, "1_2", x10, x21), x11, up(x21))
    x03 = dec["0_3"](gate(weights, "0_3", x00, x12), x01, x02, up(x12))
    return [x01, x02, x03]


NESTED = ("0_1", "1_1", "2_1", "0_2", "1_2", "0_3")
PUBLISHED: dict[str, Callable[[Weights, Tensor], list[Tensor]]] = {
    "unet_att": published_unet_att,
    "unet_pp": published_unet_pp,
    "attention_unet": published_attention_unet,
    "without_da": published_without_da,
}


@torch.no_grad()
def test_the_network_equals_the_published_node_table_written_out(variant: str) -> None:
    net, noisy = lively(variant), noise(*BIG_ENOUGH, batch=2, dtype=torch.float64)
    weights = net.state_dict()
    depths = PUBLISHED[variant](weights, noisy)
    outputs = [
        functional.conv3d(depth, weights["out.weight"], weights["out.bias"]) for depth in depths
    ]
    expected = sum(outputs) / len(outputs)
    assert expected.std() > 0.01  # a dead network would agree with anything
    torch.testing.assert_close(net(noisy), expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["unet_att", "unet_pp", "without_da"])
def test_the_outputs_of_the_three_depths_share_one_convolution_and_are_averaged(
    variant: str,
) -> None:
    net = lively(variant)
    depths: dict[str, Tensor] = {}
    for key in ("0_1", "0_2", "0_3"):
        net.decoders[key].register_forward_hook(
            lambda _module, _inputs, output, key=key: depths.update({key: output})
        )
    found = net(noise(*BIG_ENOUGH, dtype=torch.float64))
    first, second, third = (net.out(depths[key]) for key in ("0_1", "0_2", "0_3"))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    torch.testing.assert_close(found, (first + second + third) / 3)


@torch.no_grad()
def test_attention_unet_has_one_output() -> None:
    net = lively("attention_unet")
    calls: list[Tensor] = []
    net.out.register_forward_hook(lambda _module, _inputs, output: calls.append(output))
    found = net(noise(*BIG_ENOUGH, dtype=torch.float64))
    assert len(calls) == 1
    assert torch.equal(found, calls[0])


@torch.no_grad()
def test_every_gate_is_evaluated_once_and_its_result_reused() -> None:
    net = tiny("unet_att").eval()
    gated: dict[str, list[Tensor]] = {key: [] for key in net.gates}
    merged: dict[str, Tensor] = {}
    for key, module in net.gates.items():
        module.register_forward_hook(
            lambda _module, _inputs, output, key=key: gated[key].append(output)
        )
    for key, module in net.decoders.items():
        module.register_forward_pre_hook(
            lambda _module, inputs, key=key: merged.update({key: inputs[0]})
        )
    net(noise(*BIG_ENOUGH))
    assert {key: len(outputs) for key, outputs in gated.items()} == dict.fromkeys(NESTED, 1)
    for level, columns in ((0, 3), (1, 2), (2, 1)):
        for column in range(1, columns + 1):
            skips = torch.cat([gated[f"{level}_{k}"][0] for k in range(1, column + 1)], dim=1)
            assert torch.equal(merged[f"{level}_{column}"][:, : skips.shape[1]], skips)


@torch.no_grad()
def test_the_output_has_no_activation_and_does_not_contain_the_input(variant: str) -> None:
    net = tiny(variant)
    nn.init.zeros_(net.out.weight)
    nn.init.constant_(net.out.bias, -7.0)
    assert (net(noise(8, 8, 8)) == -7.0).all()


@torch.no_grad()
def test_a_side_too_small_for_the_gates_kernel_is_filled_with_its_last_voxel() -> None:
    torch.manual_seed(0)
    module = Gate(4, 8).eval()
    skip, coarse = torch.randn(2, 4, 2, 4, 2), torch.randn(2, 8, 1, 2, 1)
    shrunk: list[Tensor] = []
    module.shrink.register_forward_hook(lambda _module, _inputs, out: shrunk.append(out))
    assert module(skip, coarse).shape == skip.shape
    filled = torch.cat([skip, skip[:, :, -1:]], dim=2)
    filled = torch.cat([filled, filled[..., -1:]], dim=4)  # [2,4,3,4,3]
    expected = functional.conv3d(filled, module.shrink.weight, stride=2)
    assert torch.equal(shrunk[0], expected)
    assert expected.shape == (2, 8, 1, 1, 1)


@torch.no_grad()
def test_a_gate_that_sees_nothing_passes_nothing() -> None:
    module = Gate(4, 8).eval()
    nn.init.constant_(module.score.bias, -1e4)
    skip, coarse = torch.randn(1, 4, 6, 7, 8), torch.randn(1, 8, 3, 3, 4)
    torch.testing.assert_close(module(skip, coarse), module(torch.zeros_like(skip), coarse))


def test_the_decoder_takes_the_channels_of_the_published_node_table() -> None:
    def channels(variant: str) -> dict[str, tuple[int, int]]:
        blocks = UNetAtt(UNetAttConfig(variant=variant)).decoders.items()
        assert all(isinstance(block, DecoderBlock) for _, block in blocks)
        return {key: (block[0].in_channels, block[2].out_channels) for key, block in blocks}

    assert channels("unet_att") == {
        "0_1": (48, 16),
        "1_1": (96, 32),
        "2_1": (192, 64),
        "0_2": (64, 16),
        "1_2": (128, 32),
        "0_3": (80, 16),
    }
    assert channels("attention_unet") == {"2_1": (192, 64), "1_2": (96, 32), "0_3": (48, 16)}


def test_a_patch_that_cannot_be_halved_three_times_is_refused_by_name(variant: str) -> None:
    with pytest.raises(ValueError, match=r"\(8, 12, 16\) is no multiple of \(8, 8, 8\)"):
        tiny(variant)(noise(8, 12, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 5}, "width 5 must be even"),
        ({"width": 0}, "width 0 must be even and at least 2"),
        ({"variant": "unet"}, "variant 'unet' is none of"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused_by_name(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        UNetAttConfig(**change)


@torch.no_grad()
def test_both_memory_layouts_give_the_same_function(variant: str) -> None:
    net, noisy = lively(variant), noise(8, 16, 24, dtype=torch.float64)
    expected = net(noisy)
    torch.testing.assert_close(net.to(memory_format=torch.channels_last_3d)(noisy), expected)


# What every network promises, for all four variants.


@torch.no_grad()
def test_output_has_the_shape_of_the_input_at_every_multiple_of_the_stride(variant: str) -> None:
    net = tiny(variant)
    assert net.stride == (8, 8, 8)
    for times in (1, 2, 3):
        patch = noise(*(times * step for step in net.stride), batch=2)
        assert net(patch).shape == patch.shape
        assert net.eval()(patch).isfinite().all()


@pytest.mark.parametrize("training", [True, False])
def test_gradients_reach_every_parameter(variant: str, training: bool) -> None:
    net = tiny(variant).train(training)
    net(noise(16, 16, 16, batch=2)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        # In training mode the norm cancels the bias before it, all but rounding.
        if not (training and name.endswith("project.bias")):
            assert parameter.grad.abs().sum() > 0, name


@torch.no_grad()
def test_evaluation_is_deterministic_and_leaves_the_running_statistics_alone(variant: str) -> None:
    net, patch = tiny(variant).eval(), noise(16, 16, 16, batch=2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert torch.equal(net(patch), net(patch))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@torch.no_grad()
def test_samples_of_a_batch_do_not_influence_each_other_in_evaluation(variant: str) -> None:
    net, patch = tiny(variant), noise(16, 16, 16, batch=2)
    net(patch)  # running statistics that are not the initial ones
    net.eval()
    alone = torch.cat([net(patch[:1]), net(patch[1:])])
    torch.testing.assert_close(net(patch), alone, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_saving_and_loading_gives_bit_identical_results(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "unet_att", Architecture(UNetAtt, UNetAttConfig))
    net, patch = tiny(variant), noise(16, 16, 16, batch=2)
    net(patch)  # the running statistics must travel with the weights
    path = tmp_path / "unet_att.safetensors"
    save_checkpoint(path, net, method="unet_att", provenance={})
    loaded = load_network(read_checkpoint(path, "unet_att"))
    assert loaded.config == net.config
    assert torch.equal(loaded.eval()(patch), net.eval()(patch))

"""DvtUNet3D against its specified sizes and an independent, plain computation."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from model.architectures.dvt_unet3d import Decomposition, DvtUNet3D, DvtUNet3DConfig, resample

TINY = DvtUNet3DConfig.tiny()
TERMS = ("y", "c", "g", "r", "f")


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture
def net() -> DvtUNet3D:
    torch.manual_seed(0)
    return DvtUNet3D(TINY)


@pytest.fixture
def noisy() -> Tensor:
    return torch.randn(2, 1, *TINY.window, generator=torch.Generator().manual_seed(1))


def plain_forward(net: DvtUNet3D, noisy: Tensor) -> Tensor:
    """The table of the specification, step by step, for a patch of the window's size."""
    weights = dict(net.named_parameters())
    groups, heads = net.config.num_groups, net.config.num_heads

    def affine(name: str, x: Tensor) -> Tensor:  # [...,C]
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def standardise(x: Tensor, eps: float) -> Tensor:  # over the last axis
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return standardise(x, 1e-6) * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def block(name: str, x: Tensor) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            x = functional.conv3d(
                x, weights[f"{name}.{conv}.weight"], weights[f"{name}.{conv}.bias"], padding=1
            )
            shape = x.shape
            x = standardise(x.reshape(shape[0], groups, -1), 1e-5).view(shape)
            gain, bias = (weights[f"{name}.{norm}.{k}"] for k in ("weight", "bias"))
            x = x * gain.view(-1, 1, 1, 1) + bias.view(-1, 1, 1, 1)
            x = torch.where(x > 0, x, 0.1 * x)
        return x

    def pool(x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        return x.reshape(b, c, t // 2, 2, h // 2, 2, w // 2, 2).amax(dim=(3, 5, 7))

    def raise_(name: str, x: Tensor) -> Tensor:
        spread = torch.einsum("bcthw,coxyz->botxhywz", x, weights[f"{name}.weight"])
        b, o, t, _, h, _, w, _ = spread.shape
        raised = spread.reshape(b, o, 2 * t, 2 * h, 2 * w)
        return raised + weights[f"{name}.bias"].view(-1, 1, 1, 1)

    skip1 = block("encode1", noisy)
    skip2 = block("encode2", pool(skip1))
    y = block("encode3", pool(skip2))

    tokens = y.movedim(1, -1)  # [B,t,h,w,C]
    r = affine("bottleneck.residual.0", tokens).clamp_min(0)
    r = affine("bottleneck.residual.2", r).clamp_min(0)
    r = affine("bottleneck.residual.4", r)
    artifact = weights["bottleneck.artifact"].movedim(1, -1)  # [1,1,h,w,C]
    in_space, in_time = (weights[f"bottleneck.positions.{i}"].movedim(1, -1) for i in (0, 1))
    x = (tokens - artifact - r + in_space + in_time).flatten(1, 3)  # [B,N,C]

    at = "bottleneck.block"
    qkv = affine(f"{at}.to_qkv", layer_norm(f"{at}.norm_attention", x))
    queries, keys, values = (part.chunk(heads, dim=-1) for part in qkv.chunk(3, dim=-1))
    mixed = []
    for query, key, value in zip(queries, keys, values, strict=True):
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        mixed.append(scores.softmax(dim=-1) @ value)
    x = x + affine(f"{at}.project", torch.cat(mixed, dim=-1))
    hidden = affine(f"{at}.feed_forward.0", layer_norm(f"{at}.norm_feed_forward", x))
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    x = x + affine(f"{at}.feed_forward.2", hidden)
    f = x.view(tokens.shape).movedim(-1, 1)

    x = block("decode2", torch.cat([raise_("up2", f), skip2], dim=1))
    x = block("decode1", torch.cat([raise_("up1", x), skip1], dim=1))
    noise = torch.einsum("bcthw,c->bthw", x, weights["out.weight"].view(-1)).unsqueeze(1)
    return noisy - noise - weights["out.bias"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DvtUNet3DConfig(), 1_630_881),
        (DvtUNet3DConfig(artifact="time_varying", positions="full"), 2_088_609),
        (DvtUNet3DConfig(width=24), 930_745),
        (DvtUNet3DConfig(width=16), 425_553),
        (TINY, 99_753),
    ],
)
def test_every_configuration_has_the_parameters_of_the_specification(
    config: DvtUNet3DConfig, expected: int
) -> None:
    assert num_parameters(DvtUNet3D(config)) == expected


def test_every_part_has_the_parameters_of_the_specification() -> None:
    net = DvtUNet3D(DvtUNet3DConfig())
    bottleneck = net.bottleneck
    parts = {
        "e1": num_parameters(net.encode1),
        "e2": num_parameters(net.encode2),
        "e3": num_parameters(net.encode3),
        "G": bottleneck.artifact.numel(),
        "PE": num_parameters(bottleneck.positions),
        "MLP": num_parameters(bottleneck.residual),
        "block": num_parameters(bottleneck.block),
        "u2": num_parameters(net.up2),
        "d2": num_parameters(net.decode2),
        "u1": num_parameters(net.up1),
        "d1": num_parameters(net.decode1),
        "out": num_parameters(net.out),
    }
    assert parts == {
        "e1": 28_704,
        "e2": 166_272,
        "e3": 664_320,
        "G": 32_768,
        "PE": 33_792,
        "MLP": 9_408,
        "block": 198_272,
        "u2": 65_600,
        "d2": 332_160,
        "u1": 16_416,
        "d1": 83_136,
        "out": 33,
    }


def test_the_bottleneck_is_a_field_three_layers_and_one_block_a_quarter_of_the_size() -> None:
    net = DvtUNet3D(DvtUNet3DConfig())
    assert net.stride == (4, 4, 4)  # two halvings
    assert net.bottleneck.artifact.shape == (1, 128, 1, 16, 16)
    assert [p.shape for p in net.bottleneck.positions] == [(1, 128, 1, 16, 16), (1, 128, 8, 1, 1)]
    assert [m.weight.shape for m in net.bottleneck.residual if isinstance(m, nn.Linear)] == [
        (32, 128),
        (32, 32),
        (128, 32),
    ]
    assert net.bottleneck.block.num_heads == 4
    for field in (net.bottleneck.artifact, *net.bottleneck.positions):
        assert field.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_output_is_what_a_plain_computation_gives(net: DvtUNet3D, noisy: Tensor) -> None:
    for field in (net.bottleneck.artifact, *net.bottleneck.positions):
        field.data.mul_(20)  # so that a field left out would show
    torch.testing.assert_close(net(noisy), plain_forward(net, noisy), rtol=1e-4, atol=1e-5)


def test_with_a_zero_last_layer_the_output_is_the_input(net: DvtUNet3D, noisy: Tensor) -> None:
    """The network's own result is the noise, which is subtracted."""
    nn.init.zeros_(net.out.weight)
    nn.init.zeros_(net.out.bias)
    assert torch.equal(net(noisy), noisy)
    nn.init.constant_(net.out.bias, 0.5)
    assert torch.equal(net(noisy), noisy - 0.5)


@pytest.mark.parametrize("config", [TINY, replace(TINY, artifact="time_varying", positions="full")])
def test_gradients_reach_field_residual_positions_and_block(config: DvtUNet3DConfig) -> None:
    torch.manual_seed(0)
    net = DvtUNet3D(config)
    net(torch.randn(1, 1, *config.window)).square().mean().backward()
    for name, parameter in net.bottleneck.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-7, name


def test_the_terms_add_up_to_the_features(net: DvtUNet3D, noisy: Tensor) -> None:
    terms = net(noisy, return_terms=True)
    assert isinstance(terms, Decomposition)
    assert all(getattr(terms, name).shape == (2, 32, 2, 4, 4) for name in TERMS)
    torch.testing.assert_close(terms.c + terms.g + terms.r, terms.y, rtol=1e-5, atol=1e-6)
    assert torch.equal(terms.denoised, net(noisy))
    assert not torch.allclose(terms.f, terms.c, atol=1e-3)


def test_the_artifact_knows_nothing_of_the_input(net: DvtUNet3D, noisy: Tensor) -> None:
    g = net(noisy, return_terms=True).g
    assert torch.equal(g, net(3 * noisy + 1, return_terms=True).g)
    assert torch.equal(g[0], g[1])


def test_the_artifact_is_static_in_time_unless_asked(noisy: Tensor) -> None:
    """A sensor's pattern does not change."""
    for artifact, is_static in (("static", True), ("time_varying", False)):
        g = DvtUNet3D(replace(TINY, artifact=artifact))(noisy, return_terms=True).g
        assert torch.equal(g[:, :, 0], g[:, :, 1]) is is_static
        assert not torch.equal(g[..., 0], g[..., 1])


def test_other_patches_get_fields_resampled_corner_on_corner() -> None:
    field = torch.tensor([0.0, 3.0]).view(1, 1, 1, 1, 2) + torch.tensor([0.0, 9.0]).view(-1, 1)
    assert field.shape == (1, 1, 1, 2, 2)
    finer = resample(field, torch.Size((7, 4, 3)))
    assert finer.shape == (1, 1, 1, 4, 3)  # an axis of length 1 is left to broadcasting
    expected = torch.tensor([0.0, 1.5, 3.0]) + torch.tensor([0.0, 3.0, 6.0, 9.0]).view(-1, 1)
    torch.testing.assert_close(finer[0, 0, 0], expected)
    assert resample(field, torch.Size((7, 2, 2))) is field


@pytest.mark.parametrize("artifact", ["static", "time_varying"])
@pytest.mark.parametrize("positions", ["factored", "full"])
@pytest.mark.parametrize("sides", [(4, 4, 4), (12, 8, 20), (8, 16, 16)])
def test_any_multiple_of_the_stride_keeps_its_shape(
    sides: tuple[int, int, int], artifact: str, positions: str
) -> None:
    config = replace(TINY, artifact=artifact, positions=positions)
    patch = torch.rand(1, 1, *sides)
    assert DvtUNet3D(config)(patch).shape == patch.shape


def test_samples_of_a_batch_do_not_influence_each_other(net: DvtUNet3D, noisy: Tensor) -> None:
    torch.testing.assert_close(net(noisy)[:1], net(noisy[:1]), rtol=1e-4, atol=1e-6)


def test_a_patch_off_the_stride_is_refused(net: DvtUNet3D) -> None:
    with pytest.raises(ValueError, match=r"\(8, 6, 8\) is no multiple of \(4, 4, 4\)"):
        net(torch.zeros(1, 1, 8, 6, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 20}, "num_groups 8 must divide width 20"),
        ({"width": 0}, "must divide width 0"),
        ({"num_heads": 3}, "num_heads 3 must divide 128"),
        ({"window": (30, 64, 64)}, r"window \(30, 64, 64\)"),
        ({"artifact": "moving"}, "artifact 'moving'"),
        ({"positions": "none"}, "positions 'none'"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DvtUNet3DConfig(**change)

"""UNet3D against its published sizes and an independent, plain computation."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.architectures.unet3d import UNet3D, UNet3DConfig, rename_keys


def published_tensors(seed: int = 0) -> dict[str, Tensor]:
    """Random tensors with the names, shapes and order of the published checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def layer(name: str, shape: tuple[int, ...], num_biases: int) -> None:
        fan_in = max(torch.Size(shape[1:]).numel(), 1)
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) / fan_in**0.5
        tensors[f"{name}.bias"] = 0.1 * torch.randn(num_biases, generator=generator)

    def block(name: str, i: int, o: int) -> None:
        for number, channels in ((0, i), (3, o)):
            layer(f"{name}.{number}", (o, channels, 3, 3, 3), o)
            norm = f"{name}.{number + 1}"
            tensors[f"{norm}.weight"] = 1 + 0.3 * torch.randn(o, generator=generator)
            tensors[f"{norm}.bias"] = 0.2 * torch.randn(o, generator=generator)
            tensors[f"{norm}.running_mean"] = 0.2 * torch.randn(o, generator=generator)
            tensors[f"{norm}.running_var"] = 0.5 + torch.rand(o, generator=generator)
            tensors[f"{norm}.num_batches_tracked"] = torch.tensor(25_000)

    block("enc1", 1, 32)
    block("enc2", 32, 64)
    layer("up1", (64, 32, 2, 2, 2), 32)
    block("dec1", 64, 32)
    layer("final", (1, 32, 1, 1, 1), 1)
    return tensors


def plain_forward(tensors: dict[str, Tensor], noisy: Tensor) -> Tensor:
    """The table of the entry, step by step, in evaluation."""

    def per_channel(name: str) -> Tensor:
        return tensors[name].view(1, -1, 1, 1, 1)

    def block(name: str, x: Tensor) -> Tensor:
        for conv, norm in ((0, 1), (3, 4)):
            at = f"{name}.{norm}"
            x = functional.conv3d(x, tensors[f"{name}.{conv}.weight"], padding=1)
            x = x + per_channel(f"{name}.{conv}.bias") - per_channel(f"{at}.running_mean")
            x = x / (per_channel(f"{at}.running_var") + 1e-5).sqrt()
            x = (x * per_channel(f"{at}.weight") + per_channel(f"{at}.bias")).clamp_min(0)
        return x

    fine = block("enc1", noisy)
    b, c, t, h, w = fine.shape
    pooled = fine.view(b, c, t // 2, 2, h // 2, 2, w // 2, 2).amax(dim=(3, 5, 7))
    coarse = block("enc2", pooled)
    spread = torch.einsum("bcthw,coxyz->botxhywz", coarse, tensors["up1.weight"])
    raised = spread.reshape(b, -1, t, h, w) + per_channel("up1.bias")
    decoded = block("dec1", torch.cat([raised, fine], dim=1))
    weight = tensors["final.weight"].view(-1)
    return torch.einsum("bcthw,c->bthw", decoded, weight).unsqueeze(1) + tensors["final.bias"]


def test_the_published_configuration_has_294561_parameters_and_46_tensors() -> None:
    net = UNet3D(UNet3DConfig())
    assert sum(parameter.numel() for parameter in net.parameters()) == 294_561
    assert len(net.state_dict()) == len(published_tensors()) == 46


def test_the_tiny_configuration_has_the_parameters_it_states() -> None:
    net = UNet3D(UNet3DConfig.tiny())
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_789


def test_published_weights_give_what_a_plain_computation_gives() -> None:
    published = published_tensors()
    net = UNet3D(UNet3DConfig())
    net.load_state_dict(rename_keys(published), strict=True)
    noisy = torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    expected = plain_forward(published, noisy)
    torch.testing.assert_close(net.eval()(noisy), expected, rtol=1e-4, atol=1e-5)


def test_published_tensors_may_come_in_any_order() -> None:
    published = published_tensors()  # a safetensors file gives them sorted
    by_name = rename_keys({name: published[name] for name in sorted(published)})
    assert all(torch.equal(by_name[k], v) for k, v in rename_keys(published).items())


def test_foreign_tensors_are_refused_with_the_first_that_does_not_fit() -> None:
    published = published_tensors()
    with pytest.raises(ValueError, match=r"enc3\.0\.weight: no such layer"):
        rename_keys({**published, "enc3.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"out\.scale: the network has no such tensor"):
        rename_keys({**published, "final.scale": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"up\.bias: published with shape \(31,\), expected \(32,"):
        rename_keys({**published, "up1.bias": torch.zeros(31)})
    del published["enc1.1.running_var"]
    with pytest.raises(ValueError, match=r"encode_fine\.1\.running_var: not among the 45"):
        rename_keys(published)


def test_checking_published_tensors_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    rename_keys(published_tensors())
    assert torch.equal(torch.get_rng_state(), before)


def test_only_in_training_does_a_sample_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    net = UNet3D(UNet3DConfig.tiny())
    patch = torch.rand(3, 1, 4, 4, 4)
    company = torch.cat([patch[:1], 5 * patch[1:]])
    assert not torch.allclose(net(patch)[0], net(company)[0], atol=1e-3)
    net.eval()
    torch.testing.assert_close(net(patch)[0], net(company)[0])
    torch.testing.assert_close(net(patch)[:1], net(patch[:1]))


def test_the_output_is_not_residual() -> None:
    net = UNet3D(UNet3DConfig.tiny()).eval()
    torch.nn.init.zeros_(net.out.weight)
    torch.nn.init.constant_(net.out.bias, 0.25)
    assert torch.equal(net(torch.rand(1, 1, 2, 4, 4)), torch.full((1, 1, 2, 4, 4), 0.25))


def test_odd_sides_are_refused() -> None:
    net = UNet3D(UNet3DConfig.tiny())
    assert net.stride == (2, 2, 2)
    with pytest.raises(ValueError, match=r"\(3, 4, 4\) is no multiple of \(2, 2, 2\)"):
        net(torch.zeros(1, 1, 3, 4, 4))


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="width 0"):
        UNet3DConfig(width=0)

"""Checkpoints: found, verified, refused with a reason, and written whole."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from model.architectures import build
from model.architectures.unet3d import PUBLISHED_LAYERS
from model.checkpoint import (
    PUBLISHED,
    SUMS_FILE,
    CheckpointError,
    expected_sum,
    find_checkpoint,
    load_network,
    read_checkpoint,
    save_checkpoint,
)

METHOD = "restormer3d"
FILE = f"{METHOD}.safetensors"
SIZES = {
    "dim": 2,
    "heads": (1, 1, 1, 1),
    "num_blocks": (1, 0, 0, 0),
    "num_refinement_blocks": 0,
}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return build(METHOD, **SIZES)


@pytest.fixture
def path(net: nn.Module, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / FILE, net, method=METHOD, provenance={"steps": 3})
    return tmp_path / FILE


def promise(path: Path, digest: str, mark: str = " ") -> None:
    (path.parent / SUMS_FILE).write_text(f"{'1' * 64}  other.safetensors\n{digest} {mark}{FILE}\n")


def save_raw(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> None:
    safetensors.torch.save_file(tensors, path, metadata=metadata)


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path, METHOD)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Reading and writing -----------------------------------------------------------------------


def test_what_was_saved_is_read_back(path: Path, net: nn.Module) -> None:
    checkpoint = read_checkpoint(path, METHOD)
    assert checkpoint.method == METHOD
    assert checkpoint.provenance == {"steps": 3}
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for name, tensor in net.state_dict().items():
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_the_network_is_rebuilt_in_the_sizes_it_was_saved_with(path: Path) -> None:
    rebuilt = load_network(read_checkpoint(path, METHOD))
    assert {name: getattr(rebuilt.config, name) for name in SIZES} == SIZES


def test_every_stack_gets_a_network_of_its_own(path: Path) -> None:
    checkpoint = read_checkpoint(path, METHOD)
    first, second = load_network(checkpoint), load_network(checkpoint)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in second.parameters())
    assert all(parameter.abs().sum() > 0 for parameter in load_network(checkpoint).parameters())


def test_saving_leaves_one_file_that_all_may_read(path: Path) -> None:
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_channels_last_network_is_saved_too(net: nn.Module, tmp_path: Path) -> None:
    net = net.to(memory_format=torch.channels_last_3d)
    save_checkpoint(tmp_path / FILE, net, method=METHOD, provenance={})
    read_checkpoint(tmp_path / FILE, METHOD)


# ---- Finding -----------------------------------------------------------------------------------


def test_the_first_folder_that_holds_a_checkpoint_wins(path: Path, tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    assert find_checkpoint(METHOD, [mounted, path.parent]) == path  # a folder may be missing
    mounted.mkdir()
    assert find_checkpoint(METHOD, [mounted, path.parent]) == path
    (mounted / FILE).touch()
    assert find_checkpoint(METHOD, [mounted, path.parent]) == mounted / FILE


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(METHOD, [tmp_path]) is None


def test_another_methods_checkpoint_is_not_taken(path: Path) -> None:
    assert find_checkpoint("unet", [path.parent]) is None


def test_a_file_that_was_promised_and_is_missing_is_an_error(path: Path) -> None:
    promise(path, "0" * 64)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{FILE}: missing, although SHA256SUMS.*; restore"):
        find_checkpoint(METHOD, [path.parent])


# ---- Sums --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [" ", "*"])  # of sha256sum in text and in binary mode
def test_the_right_sum_is_accepted(mark: str, path: Path) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    promise(path, digest.upper(), mark)
    assert expected_sum(path) == digest
    assert read_checkpoint(path, METHOD).sha256 == digest


def test_a_file_without_a_promised_sum_has_none(path: Path) -> None:
    assert expected_sum(path) is None
    (path.parent / SUMS_FILE).write_text(f"{'1' * 64}  x-{FILE}\n\n")
    assert expected_sum(path) is None


def test_a_wrong_sum_is_refused_with_both_sums(path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    promise(path, "0" * 64)
    message = error_of(path)
    assert f"SHA-256 is {found[:12]}..., {SUMS_FILE} promises 000000000000..." in message
    assert "restore it, or correct SHA256SUMS" in message


# ---- Files that are no checkpoints -------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_file_cut_off_anywhere_is_refused(kept: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    assert "not a whole safetensors file" in error_of(path)
    assert error_of(path).endswith("restore it")


class WritesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_never_run(path: Path) -> None:
    proof = path.parent / "was run"
    path.write_bytes(pickle.dumps(WritesAFile(proof)))
    assert "not a whole safetensors file" in error_of(path)
    assert not proof.exists()
    pickle.loads(path.read_bytes())
    assert proof.exists()  # it would have been


@pytest.mark.parametrize(
    ("metadata", "missing"),
    [({}, "method"), ({"method": METHOD}, "config"), ({"config": "{}"}, "method")],
)
def test_a_file_of_another_program_is_refused(
    metadata: dict[str, str], missing: str, path: Path
) -> None:
    save_raw(path, {"weight": torch.ones(3)}, **metadata)
    message = error_of(path)
    assert f"has no '{missing}' in its metadata" in message
    assert "model.checkpoint.save_checkpoint" in message


def test_weights_of_another_method_are_refused(path: Path, net: nn.Module) -> None:
    save_checkpoint(path, net, method="unet", provenance={})
    message = error_of(path)
    assert "holds weights of method 'unet', expected 'restormer3d'" in message
    assert "choose --method" not in message  # there is no method of that name


def test_weights_of_another_known_method_name_the_flag_that_fits(
    path: Path, net: nn.Module
) -> None:
    save_checkpoint(path, net, method=METHOD, provenance={})
    with pytest.raises(CheckpointError, match=f"or choose --method {METHOD}"):
        read_checkpoint(path, "unet3d")


def test_tensors_of_other_shapes_are_refused(path: Path, net: nn.Module) -> None:
    other = {name: torch.zeros(3, *t.shape[1:]) for name, t in net.state_dict().items()}
    save_raw(path, other, method=METHOD, config=json.dumps(SIZES))
    message = error_of(path)
    assert "do not fit the sizes that their own metadata give" in message
    assert "size mismatch" in message
    assert message.endswith("restore the file")


def test_a_missing_tensor_is_refused(path: Path, net: nn.Module) -> None:
    tensors = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    name, _ = tensors.popitem()
    save_raw(path, tensors, method=METHOD, config=json.dumps(SIZES))
    assert f'Missing key(s) in state_dict: "{name}"' in error_of(path)


@pytest.mark.parametrize("config", ['{"depth": 3}', '{"dim": 3}', '{"dim": "wide"}', "[1]"])
def test_sizes_that_cannot_be_built_are_refused(config: str, path: Path) -> None:
    save_raw(path, {"weight": torch.ones(3)}, method=METHOD, config=config)
    assert "do not fit the sizes that their own metadata give" in error_of(path)


def test_sizes_that_are_no_json_are_refused(path: Path) -> None:
    save_raw(path, {"weight": torch.ones(3)}, method=METHOD, config="dim=2")
    assert "not a whole safetensors file" in error_of(path)


def published_unet3d() -> dict[str, torch.Tensor]:
    """Tensors as the public entry's checkpoint names them."""
    ours = build("unet3d").state_dict()
    theirs = {layer: name for name, layer in PUBLISHED_LAYERS.items()}
    return {
        ".".join([theirs[name.partition(".")[0]], name.partition(".")[2]]): tensor + 0.5
        for name, tensor in ours.items()
    }


def test_the_published_unet3d_loads_under_its_own_names(tmp_path: Path) -> None:
    path = tmp_path / "unet3d.safetensors"
    published = published_unet3d()
    safetensors.torch.save_file(published, path)
    checkpoint = read_checkpoint(path, "unet3d")
    assert checkpoint.provenance == PUBLISHED
    net = load_network(checkpoint)
    assert torch.equal(net.state_dict()["out.weight"], published["final.weight"])


def test_tensors_that_are_nobodys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "unet3d.safetensors"
    safetensors.torch.save_file({"enc9.weight": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match=r"enc9\.weight: no such layer"):
        read_checkpoint(path, "unet3d")

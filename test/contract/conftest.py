"""What several contract tests start from."""

from pathlib import Path

import pytest
import torch

from model.architectures import ARCHITECTURES
from model.checkpoint import save_checkpoint
from model.config import METHODS


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small untrained networks of all methods."""
    folder = tmp_path_factory.mktemp("weights")
    for name, method in METHODS.items():
        if not method.network:
            continue
        architecture = ARCHITECTURES[method.network]
        torch.manual_seed(0)
        net = architecture.network(architecture.config.tiny())
        if name == "unet_att":  # a gain needs something bright
            torch.nn.init.constant_(net.out.bias, 0.5)
        save_checkpoint(folder / f"{name}.safetensors", net, method=name, provenance={})
    return folder

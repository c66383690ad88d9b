"""The mean of checkpoints that stem from one:  python -m lab.average A B --out C

Trained on from the same weights they lie in one valley, and their mean is often better than each,
above all on recordings unlike those of training (Wortsman et al., ICML 2022,
https://arxiv.org/abs/2203.05482).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from model.checkpoint import CheckpointError, load_network, read_checkpoint, save_checkpoint


def _method_of(path: Path) -> str:
    try:
        with safe_open(path, "pt") as file:
            return str((file.metadata() or {}).get("method"))
    except Exception as error:
        raise CheckpointError(f"{path}: no safetensors file ({error})") from error


def average(paths: Sequence[Path], out: Path) -> None:
    """Write the mean of networks of one method and size; CheckpointError where they differ."""
    method = _method_of(paths[0])
    checkpoints = [read_checkpoint(path, method) for path in paths]
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        if checkpoint.config != checkpoints[0].config:
            raise CheckpointError(
                f"{path}: sizes {dict(checkpoint.config)}, but {paths[0].name} has "
                f"{dict(checkpoints[0].config)}; give checkpoints that stem from one"
            )
    nets = [load_network(checkpoint) for checkpoint in checkpoints]
    mean, others = nets[0].state_dict(), [net.state_dict() for net in nets[1:]]
    for name, value in mean.items():
        if value.is_floating_point():
            value.copy_(sum((other[name] for other in others), value) / len(nets))
    provenance = {"mean_of": [dict(checkpoint.provenance) for checkpoint in checkpoints]}
    save_checkpoint(out, nets[0], method=method, provenance=provenance)


def main(argv: Sequence[str]) -> int:
    """0 where the mean was written; 2 where it has none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    try:
        average(args.checkpoints, args.out)
    except CheckpointError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

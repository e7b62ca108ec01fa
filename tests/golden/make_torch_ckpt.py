"""Make torch_{zip,legacy,lightning,hostile}.ckpt and torch_ckpt.npz, as torch 2.13.0 writes and reads them.

pip install torch==2.13.0 numpy && python tests/golden/make_torch_ckpt.py
"""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


class Hostile:
    """Unpickling it runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hostile-was-here",)


def state_dict() -> "OrderedDict[str, torch.Tensor]":
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 5, generator=generator)
    kernel = torch.randn(4, 3, 3, 3, generator=generator).contiguous(memory_format=torch.channels_last)
    return OrderedDict(
        plain=base,
        half=torch.randn(3, 7, generator=generator).half(),
        brain=torch.randn(2, 9, generator=generator).bfloat16(),
        double=torch.randn(3, generator=generator, dtype=torch.float64),
        transposed=base.t(),
        tail=base[2:, 1:4],
        expanded=torch.randn(1, 4, generator=generator).half().expand(3, 4),
        channels_last=kernel,
        scalar=torch.tensor(0.1),
        empty=torch.zeros(0, 3),
        steps=torch.arange(4),
    )


def main() -> None:
    state = state_dict()
    torch.save(state, HERE / "torch_zip.ckpt")
    torch.save(state, HERE / "torch_legacy.ckpt", _use_new_zipfile_serialization=False)
    lightning = {"epoch": 3, "global_step": 1 << 40, "note": "ä", "lrs": [1e-5, None, True], "state_dict": state}
    torch.save(lightning, HERE / "torch_lightning.ckpt")
    torch.save({"state_dict": state, "callbacks": Hostile()}, HERE / "torch_hostile.ckpt")
    np.savez_compressed(HERE / "torch_ckpt.npz", **{name: tensor.float().numpy() for name, tensor in state.items()})


if __name__ == "__main__":
    main()

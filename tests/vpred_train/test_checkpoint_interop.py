"""MindSpore's own reader opens every file of a checkpoint."""

from pathlib import Path

import mindspore
import numpy as np

from checkpoints_mgr import CheckpointManager, FlatShard, Segment, State


def test_mindspore_reads_every_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = {
        "model/unet.out.2.weight": rng.standard_normal((4, 3, 3)).astype(np.float32),
        "model/scale": np.float32(3).reshape(()),
        "model/half": rng.standard_normal(5).astype(np.float16),
        "model/count": np.arange(3),
        "model/mask": np.array([True, False]),
        "model/empty": np.zeros((0, 2), np.float32),
    }
    moment = rng.standard_normal(30).astype(np.float32)
    shard = FlatShard(moment, {"a": (4, 5), "b": (10,)}, [Segment("a", 0, 20, 0), Segment("b", 0, 10, 20)])
    step = CheckpointManager(tmp_path).save(1, State(whole, {}, {"adam_m": shard})).path
    files = sorted(step.glob("*.safetensors"))
    assert [path.name for path in files] == [f"{name}-00000-of-00001.safetensors" for name in ("adam_m", "model")]
    found = {}
    for path in files:
        loaded = mindspore.load_checkpoint(str(path), format="safetensors")
        found |= {f"{path.name.split('-')[0]}/{name}": value.asnumpy() for name, value in loaded.items()}
    expected = {**whole, "adam_m/a": moment[:20].reshape(4, 5), "adam_m/b": moment[20:]}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype

"""Round trips, what is on disk, retention, and requests that are refused."""

import json
import os

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file

from checkpoints_mgr import CheckpointError, CheckpointManager, FlatShard, Retention, Segment, State

UMASK = os.umask(0o022)
os.umask(UMASK)


def test_a_result_is_the_same_on_all_ranks_and_counts_all_bytes(tmp_path, run_ranks, make_state, sharded):
    saved = run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(12, sharded(make_state(7), comm.rank, 3)))
    assert len(set(saved)) == 1, saved
    assert saved[0].path == tmp_path / "step_0000000012"
    assert saved[0].size_bytes == sum(path.stat().st_size for path in saved[0].path.iterdir())
    assert saved[0].seconds >= saved[0].write_seconds > 0
    assert saved[0].stall_seconds >= saved[0].commit_seconds > 0


def test_chunks_and_blocks_may_split_tensors(tmp_path, make_state, assert_same, restore, monkeypatch):
    monkeypatch.setattr("checkpoints_mgr.disk.digests.MIN_CHUNK_BYTES", 100)
    monkeypatch.setattr("checkpoints_mgr.disk.reading.BLOCK_BYTES", 64)
    state = make_state(1)
    CheckpointManager(tmp_path).save(0, state)
    manifest = json.loads((tmp_path / "step_0000000000" / "MANIFEST.json").read_text())
    assert {entry["chunk"] for entry in manifest["files"]} == {100, 200}
    assert_same(restore(tmp_path).state, state)


def test_the_files_are_plain_safetensors(two_steps, make_state):
    """The safetensors package itself is the independent reader; xxhash over the raw file the reference digest."""
    step = two_steps / "step_0000000020"
    state = make_state(2)
    index = json.loads((step / "model.safetensors.index.json").read_text())
    found = {name: np.full(array.shape, 7, array.dtype) for name, array in state.whole.items()}
    for path in sorted(step.glob("*-of-00002.safetensors")):
        component = path.name.split("-")[0]
        for key, tensor in load_file(path).items():
            name, _, bounds = f"{component}/{key}".partition("@")
            if component == "model":
                assert index["weight_map"][key] == path.name
            if bounds:
                low, high = map(int, bounds.split(":"))
                found[name].reshape(-1)[low:high] = tensor
            else:
                found[name] = tensor
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, state.whole[name], err_msg=name)
    manifest = json.loads((step / "MANIFEST.json").read_text())
    assert {entry["name"] for entry in manifest["files"]} == {p.name for p in step.iterdir()} - {"MANIFEST.json"}
    for entry in manifest["files"]:
        assert entry["xxh3"] == [xxhash.xxh3_64_hexdigest((step / entry["name"]).read_bytes())]
    (piece,) = manifest["tensors"]["model/unet.in.bias"]["pieces"]
    raw = (step / manifest["files"][piece[2]]["name"]).read_bytes()
    assert raw[piece[3] : piece[3] + 28] == state.whole["model/unet.in.bias"].tobytes()


def test_the_mode_of_a_file_follows_the_umask(two_steps):
    for path in (two_steps / "step_0000000020").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~UMASK


def test_retention_keeps_the_newest_and_never_the_wrong_one(tmp_path, run_ranks, make_state, names):
    def work(comm):
        manager = CheckpointManager(tmp_path, comm, Retention(2))
        for step in (1, 2, 3, 4):
            manager.save(step, make_state(step))
        return manager.latest()

    assert run_ranks(2, work) == [4, 4]
    assert names(tmp_path) == ["step_0000000003", "step_0000000004"]
    # A run that went back to an older step must not lose what it saves now.
    CheckpointManager(tmp_path, retention=Retention(1)).save(2, make_state(2))
    assert names(tmp_path) == ["step_0000000002", "step_0000000004"]


def test_an_empty_or_missing_root_restores_nothing(tmp_path, restore):
    assert restore(tmp_path / "nothing") is None
    assert CheckpointManager(tmp_path / "nothing").latest() is None
    with pytest.raises(CheckpointError, match=r"cannot restore step 5: .* no such step; it has: none"):
        restore(tmp_path / "nothing", 5)


def test_a_given_step_is_restored(two_steps, make_state, assert_same, restore):
    restored = restore(two_steps, 10)
    assert (restored.step, restored.quarantined) == (10, ())
    assert_same(restored.state, make_state(1))


def test_an_existing_step_is_refused_and_left_alone(two_steps, make_state, assert_same, names, restore):
    with pytest.raises(CheckpointError, match="step_0000000020 exists already"):
        CheckpointManager(two_steps).save(20, make_state(9))
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]
    assert_same(restore(two_steps).state, make_state(2))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (State({"weight": np.zeros(2, np.float32)}, {}), "'weight' is not of the form component/tensor"),
        (State({"model/w": np.zeros(2, np.complex64)}, {}), "model/w has dtype complex64"),
        (State({"model/w": np.zeros(2, np.float32)}, {"loss": float("nan")}), r"progress\['loss'\] is nan"),
        (State({"model/w": np.zeros(2, np.float32)}, {"cursor": (1, 2)}), r"progress\['cursor'\] is \(1, 2\)"),
        (State({"model/w": np.zeros(2, np.float32)}, {}, record={"x": {1}}), r"record\['x'\] is \{1\}"),
        (State({}, {}), "holds no tensor"),
        (
            State({"ema/w": np.zeros(2, np.float32)}, {}, {"ema": FlatShard(np.zeros(2, np.float32), {"v": (2,)}, [])}),
            "component ema is both whole and sharded",
        ),
        (
            State({}, {}, {"ema": FlatShard(np.zeros(2, np.float32), {"v": (2,)}, [Segment("v", 0, 2, 1)])}),
            r"ema/v has 2 elements, its shard 2: Segment",
        ),
    ],
)
def test_a_state_that_cannot_be_stored_is_refused(tmp_path, state, message, names):
    with pytest.raises(CheckpointError, match=message):
        CheckpointManager(tmp_path).save(1, state)
    assert names(tmp_path) == []


def test_ranks_that_disagree_are_refused(tmp_path, run_ranks, make_state, names):
    errors = run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(5 + (comm.rank == 2), make_state(1)))
    assert len({str(error) for error in errors}) == 1
    assert all(isinstance(error, CheckpointError) for error in errors)
    assert "rank 2 saves step 6" in str(errors[0])
    assert names(tmp_path) == []

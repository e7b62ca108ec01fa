"""Round trips, what is on disk, retention, and requests that are refused."""

import json

import numpy as np
import pytest
import xxhash
from safetensors.numpy import load_file

from checkpoints_mgr import CheckpointError, CheckpointManager, State
from checkpoints_mgr.layout import shares
from checkpoints_mgr.state import TensorSpec


@pytest.mark.parametrize("writers", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_any_world_size_reads_what_any_other_wrote(tmp_path, run_ranks, make_state, assert_same, writers, readers):
    state = make_state(7)
    saved = run_ranks(writers, lambda comm: CheckpointManager(tmp_path, comm).save(12, state))
    assert len(set(saved)) == 1, saved
    assert saved[0].path == tmp_path / "step_0000000012"
    assert saved[0].size_bytes == sum(path.stat().st_size for path in saved[0].path.iterdir())
    assert saved[0].seconds > 0
    restored = run_ranks(readers, lambda comm: CheckpointManager(tmp_path, comm).restore())
    for result in restored:
        assert result.step == 12
        assert_same(result.state, state)


def test_restored_arrays_are_writable_and_chunks_may_split_tensors(tmp_path, make_state, assert_same, monkeypatch):
    monkeypatch.setattr("checkpoints_mgr.writing.CHUNK_BYTES", 1000)
    state = make_state(1)
    CheckpointManager(tmp_path).save(0, state)
    restored = CheckpointManager(tmp_path).restore()
    assert_same(restored.state, state)
    for tensor in restored.state.whole.values():
        tensor[...] = 0


def test_the_files_are_plain_safetensors(two_steps, make_state):
    """The safetensors package itself is the independent reader; xxhash over the raw file the reference digest."""
    step = two_steps / "step_0000000020"
    state = make_state(2)
    index = json.loads((step / "model.safetensors.index.json").read_text())
    found = {}
    for component in ("model", "ema", "adam_m", "adam_v"):
        for path in sorted(step.glob(f"{component}-*-of-00002.safetensors")):
            for key, tensor in load_file(path).items():
                found[f"{component}/{key}"] = tensor
                assert component != "model" or index["weight_map"][key] == path.name
    assert found.keys() == state.whole.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, state.whole[name], err_msg=name)
    manifest = json.loads((step / "MANIFEST.json").read_text())
    assert {entry["name"] for entry in manifest["files"]} == {p.name for p in step.iterdir()} - {"MANIFEST.json"}
    for entry in manifest["files"]:
        assert entry["xxh3"] == [xxhash.xxh3_64_hexdigest((step / entry["name"]).read_bytes())]
    (piece,) = manifest["tensors"]["model/unet.in.bias"]["pieces"]
    raw = (step / manifest["files"][piece[2]]["name"]).read_bytes()
    assert raw[piece[3] : piece[3] + 28] == state.whole["model/unet.in.bias"].tobytes()


def test_shares_are_balanced_and_complete():
    generator = np.random.default_rng(3)
    specs = [TensorSpec(f"model/t{i}", "F32", (int(n),)) for i, n in enumerate(generator.integers(1, 5000, 300))]
    for world_size in (1, 2, 7, 64):
        result = shares(specs, world_size)
        assert sorted(spec.name for share in result for spec in share) == sorted(spec.name for spec in specs)
        loads = [sum(spec.size_bytes for spec in share) for share in result]
        mean = sum(loads) / world_size
        assert max(loads) <= 1.05 * mean or world_size == 64
        assert max(loads) <= 4 / 3 * max(mean, max(spec.size_bytes for spec in specs))


def test_more_ranks_than_tensors(tmp_path, run_ranks, assert_same):
    state = State({"model/w": np.arange(3, dtype=np.float32)}, {})
    run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(1, state))
    assert_same(CheckpointManager(tmp_path).restore().state, state)


def test_retention_keeps_the_newest_and_never_the_wrong_one(tmp_path, run_ranks, make_state, names):
    def work(comm):
        manager = CheckpointManager(tmp_path, comm, keep_last=2)
        for step in (1, 2, 3, 4):
            manager.save(step, make_state(step))
        return manager.latest()

    assert run_ranks(2, work) == [4, 4]
    assert names(tmp_path) == ["step_0000000003", "step_0000000004"]
    # A run that went back to an older step must not lose what it saves now.
    CheckpointManager(tmp_path, keep_last=1).save(2, make_state(2))
    assert names(tmp_path) == ["step_0000000002", "step_0000000004"]


def test_leftovers_of_a_killed_save_are_removed_by_the_next(two_steps, make_state, names):
    for leftover in (".tmp-step_0000000030-abc", ".trash-step_0000000001-abc"):
        (two_steps / leftover).mkdir()
        (two_steps / leftover / "model-00000-of-00001.safetensors").write_bytes(b"half")
    assert CheckpointManager(two_steps).latest() == 20
    CheckpointManager(two_steps, keep_last=3).save(30, make_state(3))
    assert names(two_steps) == ["step_0000000010", "step_0000000020", "step_0000000030"]


def test_an_empty_or_missing_root_restores_nothing(tmp_path):
    manager = CheckpointManager(tmp_path / "nothing")
    assert manager.restore() is None
    assert manager.latest() is None
    with pytest.raises(CheckpointError, match=r"cannot restore step 5: .* no such step; it has: none"):
        manager.restore(5)


def test_a_given_step_is_restored(two_steps, make_state, assert_same):
    restored = CheckpointManager(two_steps).restore(10)
    assert restored.step == 10
    assert_same(restored.state, make_state(1))


def test_an_existing_step_is_refused_and_left_alone(two_steps, make_state, assert_same, names):
    with pytest.raises(CheckpointError, match="step_0000000020 exists already"):
        CheckpointManager(two_steps).save(20, make_state(9))
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]
    assert_same(CheckpointManager(two_steps).restore().state, make_state(2))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (State({"weight": np.zeros(2, np.float32)}, {}), "'weight' is not of the form component/tensor"),
        (State({"model/w": np.zeros(2, np.complex64)}, {}), "model/w has dtype complex64"),
        (State({"model/w": np.zeros(2, np.float32)}, {"loss": float("nan")}), r"progress\['loss'\] is nan"),
        (State({"model/w": np.zeros(2, np.float32)}, {"cursor": (1, 2)}), r"progress\['cursor'\] is \(1, 2\)"),
        (State({}, {}), "holds no tensor"),
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


def test_keep_last_below_one_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="keep_last is 0"):
        CheckpointManager(tmp_path, keep_last=0)

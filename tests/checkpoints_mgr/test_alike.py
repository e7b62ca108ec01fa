"""What ranks hold alike is compared before each save: no checkpoint comes of ranks that have drifted apart."""

from dataclasses import replace

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointFaultError, CheckpointManager, DriftError, check_alike


def with_change(state, name, change):
    array = state.whole[name].copy()
    change(array.reshape(-1))
    return replace(state, whole=state.whole | {name: array})


def next_number(values):
    values[3] = np.nextafter(values[3], np.float32(9))


def other_nan(values):
    values.view(np.uint32)[0] ^= 1


CHANGES = {
    "by one bit": ("model/unet.out.2.weight", next_number),
    "a nan's bits": ("model/nan", other_nan),
    "a zero's sign": ("model/nan", lambda values: np.negative(values, out=values, where=values == 0)),
    "a boolean": ("model/mask", lambda values: np.logical_not(values, out=values)),
    "big endian": ("model/big_endian", lambda values: np.add(values, 1e-9, out=values)),
}


@pytest.mark.parametrize("odd", [0, 1, 3])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("background", [True, False])
def test_one_rank_has_other_values(tmp_path, run_ranks, make_state, sharded, names, change, odd, background):
    """The odd one is named, though it be the first; the next save, of equal ranks, is well."""
    name, alter = CHANGES[change]

    def work(comm):
        manager = CheckpointManager(tmp_path, comm)
        own = sharded(make_state(1), comm.rank, 4)
        drifted = with_change(own, name, alter) if comm.rank == odd else own
        with pytest.raises(DriftError) as caught:
            manager.start_save(10, drifted, background=background)
            manager.wait()
        left = names(tmp_path)
        comm.barrier()
        return str(caught.value), left, manager.save(20, own).step

    of_most = 0 if odd else 1
    expected = f"cannot save step 10: rank {odd} differs from rank {of_most} in {name} and 0 more of 11 tensors"
    for message, left, step in run_ranks(4, work):
        assert message.startswith(expected), message
        assert (left, step) == ([], 20)
    assert names(tmp_path) == ["step_0000000020"]


def test_two_ranks_are_both_told_and_all_tensors_counted(run_ranks, make_state):
    def work(comm):
        whole = {
            name: array + (comm.rank if array.dtype == np.float32 else 0) for name, array in make_state(1).whole.items()
        }
        check_alike(comm, "cannot train", {name: array for name, array in whole.items() if name.startswith("model/")})

    errors = run_ranks(2, work)
    assert len({str(error) for error in errors}) == 1
    assert "rank 1 differs from rank 0 in model/clip.table and" in str(errors[0])
    assert isinstance(errors[0], CheckpointFaultError) and isinstance(errors[0], CheckpointError)


def test_shards_may_differ_and_one_rank_is_not_asked(tmp_path, run_ranks, make_state, sharded):
    assert {
        result.step
        for result in run_ranks(
            3, lambda comm: CheckpointManager(tmp_path, comm).save(1, sharded(make_state(1), comm.rank, 3))
        )
    } == {1}
    check_alike(type("Alone", (), {"world_size": 1})(), "x", {"no": "arrays"})

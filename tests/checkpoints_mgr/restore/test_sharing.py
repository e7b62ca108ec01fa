"""Whole tensors on many hosts: each rank reads a share of them, and gets the rest from the others."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import xxhash

from checkpoints_mgr import CheckpointError, CheckpointFaultError, CheckpointManager, State
from checkpoints_mgr.disk import digests
from checkpoints_mgr.disk.reading import open_step, plan_reads
from checkpoints_mgr.restore import sharing
from checkpoints_mgr.state import wanted_parts
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support import PROGRAMS, PYTHONPATH
from support.checkpoints.failpoints import thread_rank

SIZES = {
    "clip.table": (701, 601),
    "unet.in.weight": (64, 3, 3, 3),
    "unet.mid.weight": (911, 1009),
    "unet.out.bias": (5,),
}


@pytest.fixture
def on_hosts(monkeypatch):
    """on_hosts("aabbcd"): the host of each rank."""

    def place(names):
        monkeypatch.setattr(socket, "gethostname", lambda: names[thread_rank()])

    return place


@pytest.fixture
def small_pieces(monkeypatch):
    """A small state too has many chunks, and goes in many pieces."""
    monkeypatch.setattr(digests, "MIN_CHUNK_BYTES", 256)
    monkeypatch.setattr(sharing, "BUFFER_BYTES", 1000)


def weights(seed):
    """Any bits, of which many are no number."""
    bits = np.random.default_rng(seed).integers
    whole = {f"model/{name}": bits(0, 1 << 32, shape, np.uint32).view(np.float32) for name, shape in SIZES.items()}
    return State(whole, {"samples_seen": seed})


@pytest.mark.parametrize("writers", [1, 3, 8])
@pytest.mark.parametrize("layout", ["abcd", "aabbccddee", "abcdefgh"])
def test_any_number_of_ranks_on_many_hosts_gets_every_bit(
    tmp_path, run_ranks, make_state, sharded, blank, assert_same, on_hosts, small_pieces, writers, layout
):
    state, size = make_state(7), len(layout)
    run_ranks(writers, lambda comm: CheckpointManager(tmp_path, comm).save(1, sharded(state, comm.rank, writers)))
    on_hosts(layout)
    passed = []

    def read(comm):
        own, pass_on = sharded(state, comm.rank, size), comm.all_gather_
        comm.all_gather_ = lambda values, bounds: (passed.append(bounds), pass_on(values, bounds))
        restored = CheckpointManager(tmp_path, comm).restore(blank(own))
        assert_same(restored.state, own)
        return restored.step

    assert run_ranks(size, read) == [1] * size
    assert len(passed) > 2 * size


@pytest.mark.parametrize(("layout", "most"), [("abcd", 1.05), ("aabbccdd", 1.05), ("aabbcc", 6.05)])
def test_all_ranks_together_read_the_weights_once(
    tmp_path, run_ranks, blank, assert_same, on_hosts, read_bytes, layout, most
):
    """And below 4 hosts each rank all of them."""
    state = weights(3)
    run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(1, state))
    on_hosts(layout)

    def read(comm):
        assert_same(CheckpointManager(tmp_path, comm).restore(blank(state)).state, state)

    assert run_ranks(len(layout), read) == [None] * len(layout)
    needed = sum(array.nbytes for array in state.whole.values())
    assert most - 0.05 <= sum(read_bytes) / needed <= most


def test_shares_are_whole_chunks_and_even(tmp_path, run_ranks, blank):
    state = weights(3)
    run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(1, state))
    manifest = open_step(tmp_path / "step_0000000001")
    chunk_bytes = {entry.name: entry.chunk_bytes for entry in manifest.files}
    wanted = plan_reads(manifest, wanted_parts(blank(state)))
    needed = sum(array.nbytes for array in state.whole.values())
    for world_size in (1, 2, 7, 64, 1000):
        shares = sharing.shares_of(manifest, wanted, world_size)
        readers = {}
        for rank, share in enumerate(shares):
            size = sum(len(memory) for reads in share.values() for _, memory in reads)
            assert size <= needed / world_size + max(chunk_bytes.values())
            for name, reads in share.items():
                for offset, memory in reads:
                    assert offset // chunk_bytes[name] == (offset + len(memory) - 1) // chunk_bytes[name]
                    readers.setdefault((name, offset // chunk_bytes[name]), set()).add(rank)
        assert {len(ranks) for ranks in readers.values()} == {1}
        assert sum(len(memory) for share in shares for reads in share.values() for _, memory in reads) == needed


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_what_one_rank_finds_corrupt_is_so_for_all(
    tmp_path, run_ranks, blank, assert_same, names, flip_bit, on_hosts, place
):
    for step in (10, 20):
        CheckpointManager(tmp_path).save(step, weights(step))
    (file,) = (tmp_path / "step_0000000020").glob("model-*")
    flip_bit(file, int(place * file.stat().st_size))
    on_hosts("abcdd")

    def read(comm):
        restored = CheckpointManager(tmp_path, comm).restore(blank(weights(0)))
        assert_same(restored.state, weights(10))
        return restored.step, restored.quarantined

    assert run_ranks(5, read) == [(10, (20,))] * 5
    assert names(tmp_path) == ["quarantine", "step_0000000010"]


@pytest.mark.parametrize("rank", [0, 3])
def test_a_rank_that_cannot_read_its_share_leaves_no_other_waiting(
    tmp_path, run_ranks, blank, names, on_hosts, monkeypatch, rank
):
    CheckpointManager(tmp_path).save(10, weights(1))
    on_hosts("abcd")
    real = sharing.read_local

    def fail(directory, manifest, wanted):
        if thread_rank() == rank:
            raise OSError(5, "Input/output error")
        real(directory, manifest, wanted)

    monkeypatch.setattr(sharing, "read_local", fail)
    errors = run_ranks(4, lambda comm: CheckpointManager(tmp_path, comm).restore(blank(weights(0))))
    assert {type(error) for error in errors} == {CheckpointFaultError}
    assert {str(error) for error in errors} == {f"cannot restore step 10: rank {rank}: [Errno 5] Input/output error"}
    assert names(tmp_path) == ["step_0000000010"]


def test_ranks_that_want_different_tensors_read_for_themselves(tmp_path, run_ranks, blank, assert_same, on_hosts):
    state = weights(1)
    CheckpointManager(tmp_path).save(10, state)
    on_hosts("abcd")

    def read(comm):
        own = State({name: state.whole[name] for name in list(state.whole)[comm.rank :]}, state.progress)
        comm.all_gather_ = None
        assert_same(CheckpointManager(tmp_path, comm).restore(blank(own)).state, own)

    assert run_ranks(4, read) == [None] * 4


def test_one_ranks_bad_template_is_an_error_of_all(tmp_path, run_ranks, on_hosts):
    CheckpointManager(tmp_path).save(10, weights(1))
    on_hosts("abcd")

    def read(comm):
        bad = State({"nonsense": np.zeros(3, np.float32)}, {})
        return CheckpointManager(tmp_path, comm).restore(bad if comm.rank == 2 else weights(0))

    errors = run_ranks(4, read)
    assert {type(error) for error in errors} == {CheckpointError}
    assert len({str(error) for error in errors}) == 1
    assert "rank 2: tensor name 'nonsense' is not" in str(errors[0])


@pytest.mark.mpi
def test_weights_are_passed_on_under_mpirun(tmp_path):
    """Four ranks that say they are on four hosts, with the collectives of training."""
    state = weights(1)
    CheckpointManager(tmp_path).save(10, state)
    mpirun = find_mpirun(None, os.environ)
    argv = [str(mpirun.path), "-np", "4", *mpirun.dialect.oversubscribe, "--bind-to", "none", sys.executable]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {}) | {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        [*argv, str(PROGRAMS / "mpi_reader.py"), str(tmp_path)],
        env=env,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    digest = xxhash.xxh3_128_hexdigest(b"".join(array.tobytes() for array in state.whole.values()))
    assert [each["digest"] for each in found] == [digest] * 4
    needed = sum(array.nbytes for array in state.whole.values())
    assert max(each["read_bytes"] for each in found) <= 1.1 * needed / 4
    assert sum(each["read_bytes"] for each in found) <= 1.05 * needed

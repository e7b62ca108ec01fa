"""Nodes with disks of their own, each a folder here: a step counts when all of its nodes have their part."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointFaultError, CheckpointManager, Retention, State
from checkpoints_mgr.disk import storage
from checkpoints_mgr.save.sweeping import retire
from support.checkpoints.failpoints import Fault
from support.checkpoints.process_ranks import end_of, start_ranks

LAYOUTS = {"pair": "ab", "two": "aabb", "three": "abc", "other": "abbab", "one": "a"}


def manager(disks, comm, layout, **more):
    node = LAYOUTS[layout][comm.rank]
    return CheckpointManager(disks / node, comm, Retention(3), node=node, **more)


@pytest.fixture
def save(tmp_path, run_ranks, make_state, sharded):
    """save(step, layout): by as many ranks, state number step // 10; the results of all."""

    def work(step, layout):
        size = len(LAYOUTS[layout])
        return run_ranks(
            size,
            lambda comm: manager(tmp_path, comm, layout).save(step, sharded(make_state(step // 10), comm.rank, size)),
        )

    return work


@pytest.fixture
def restored(tmp_path, run_ranks, make_state, sharded, blank, assert_same):
    """restored(layout): the step and the quarantined ones, the same on all ranks, after each has compared its own."""

    def work(layout, step="latest"):
        size = len(LAYOUTS[layout])

        def read(comm):
            found = manager(tmp_path, comm, layout).restore(blank(sharded(make_state(0), comm.rank, size)), step)
            if found is None:
                return None
            assert_same(found.state, sharded(make_state(found.step // 10), comm.rank, size))
            return found.step, found.quarantined

        results = run_ranks(size, read)
        assert len({str(result) for result in results}) == 1, results
        return results[0]

    return work


def test_each_node_keeps_its_shards_and_all_weights(tmp_path, save, restored, names, make_state, blank):
    results = save(10, "two")
    assert len({replace(result, path=tmp_path) for result in results}) == 1
    assert results[0].size_bytes == sum(path.stat().st_size for path in tmp_path.glob("*/step_0000000010/*"))
    files = {node: names(tmp_path / node / "step_0000000010") for node in "ab"}
    shards = {node: [name for name in files[node] if name.startswith("adam_m-")] for node in "ab"}
    assert shards["a"] == ["adam_m-00000-of-00004.safetensors", "adam_m-00001-of-00004.safetensors"]
    assert shards["b"] == ["adam_m-00002-of-00004.safetensors", "adam_m-00003-of-00004.safetensors"]
    for node in "ab":
        whole = {name: array for name, array in make_state(1).whole.items() if name == "model/clip.table"}
        found = CheckpointManager(tmp_path / node).restore(blank(State(whole, {}))).state
        np.testing.assert_array_equal(found.whole["model/clip.table"], whole["model/clip.table"])
        with pytest.raises(CheckpointError, match="is on the disks of node"):
            CheckpointManager(tmp_path / node).restore(blank(make_state(1)))
    assert restored("two") == (10, ())


def test_a_step_that_is_read_stays_on_every_node(tmp_path, save, restored, names, failpoint):
    save(10, "two")
    refused = []

    def give_up(operation, path, detail):
        if operation == "read" and path.suffix == ".safetensors":
            refused.extend(retire(tmp_path / node, [10], "prune") for node in "ab")

    failpoint(give_up)
    assert restored("two") == (10, ())
    assert refused and not any(refused)
    failpoint(None)
    assert [len(retire(tmp_path / node, [10], "prune")) for node in "ab"] == [1, 1]


@pytest.mark.parametrize("readers", ["other", "three"])
def test_other_ranks_get_what_another_node_has(save, restored, readers):
    """Ranks moved between the nodes, more of them, and a third node that has nothing."""
    save(10, "two")
    save(20, "two")
    assert restored(readers) == (20, ())
    assert restored(readers, 10) == (10, ())


def test_a_step_of_which_a_node_lacks_its_part_is_passed_over(tmp_path, save, restored, names, run_ranks, caplog):
    save(10, "two")
    save(20, "two")
    shutil.rmtree(tmp_path / "b" / "step_0000000020")
    assert restored("two") == (10, ())
    assert "step 20 lacks the parts of b" in caplog.text
    assert run_ranks(4, lambda comm: manager(tmp_path, comm, "two").latest()) == [10] * 4
    assert "lacks" not in str(restored("two", 10))
    assert {result.step for result in save(20, "two")} == {20}
    assert names(tmp_path / "a")[0] == "quarantine"
    assert restored("two") == (20, ())
    shutil.rmtree(tmp_path / "b")
    assert restored("two") is None
    assert restored("one") is None


def test_steps_of_which_a_part_is_damaged_do_not_count_on_any_node(
    tmp_path, run_ranks, make_state, sharded, names, flip_bit, caplog, vpred_ckpt
):
    """They go from the nodes that hold sound parts when enough newer ones are whole; the damaged part stays."""

    def save(step):
        def work(comm):
            node = LAYOUTS["two"][comm.rank]
            keeping = CheckpointManager(tmp_path / node, comm, Retention(2), node=node)
            return keeping.save(step, sharded(make_state(step // 10), comm.rank, 4))

        assert {result.step for result in run_ranks(4, work)} == {step}

    def steps(node):
        return [int(name.removeprefix("step_")) for name in names(tmp_path / node)]

    save(10)
    save(20)
    flip_bit(next((tmp_path / "b" / "step_0000000020").glob("adam_m-*")), -1)
    save(30)
    assert {node: steps(node) for node in "ab"} == {"a": [10, 20, 30], "b": [10, 20, 30]}
    assert "step_0000000020 does not count as a checkpoint and stays" in caplog.text
    save(40)
    assert {node: steps(node) for node in "ab"} == {"a": [30, 40], "b": [20, 30, 40]}
    # One node alone cannot tell whether the newest is on the others too.
    code, out, _ = vpred_ckpt("prune", tmp_path / "a", "--keep-last", "1", "--delete")
    assert (code, out) == (0, "nothing to remove\n")
    assert steps("a") == [30, 40]


def test_parts_of_two_saves_of_one_step_are_not_mixed(tmp_path, save, restored):
    save(10, "two")
    save(20, "two")
    shutil.move(tmp_path / "b" / "step_0000000020", tmp_path / "kept")
    save(20, "two")
    shutil.rmtree(tmp_path / "b" / "step_0000000020")
    shutil.move(tmp_path / "kept", tmp_path / "b" / "step_0000000020")
    assert restored("two") == (10, ())


@pytest.mark.parametrize("readers", ["two", "three"])
def test_corrupt_bytes_send_a_nodes_part_to_quarantine(tmp_path, save, restored, names, flip_bit, readers):
    save(10, "two")
    save(20, "two")
    flip_bit(next((tmp_path / "b" / "step_0000000020").glob("adam_m-*")), -1)
    assert restored(readers) == (10, (20,))
    assert names(tmp_path / "b") == ["quarantine", "step_0000000010"]
    assert restored(readers) == (10, ())


@pytest.mark.parametrize("file", ["adam_m-00003", "model-0"])
def test_a_file_that_cannot_be_read_for_another_node_condemns_nothing(
    tmp_path, save, run_ranks, make_state, sharded, blank, names, failpoint, file
):
    """A disk's passing error is none of the checkpoint's."""
    save(10, "two")
    save(20, "two")

    def hook(operation, path, detail):
        if operation == "read" and path.is_relative_to(tmp_path / "b") and path.name.startswith(file):
            raise OSError(5, "Input/output error")

    failpoint(hook)
    errors = run_ranks(
        3, lambda comm: manager(tmp_path, comm, "three").restore(blank(sharded(make_state(0), comm.rank, 3)))
    )
    failpoint(None)
    assert {type(error) for error in errors} == {CheckpointFaultError}
    assert len({str(error) for error in errors}) == 1
    assert [names(tmp_path / each) for each in "ab"] == [["step_0000000010", "step_0000000020"]] * 2


@pytest.mark.parametrize("node", ["a", "b"])
def test_a_leader_that_cannot_commit_fails_all_and_leaves_nothing(tmp_path, save, restored, names, failpoint, node):
    save(10, "two")

    def refuse(operation, path, target):
        if operation == "rename" and target == tmp_path / node / "step_0000000020":
            raise OSError(5, "Input/output error")

    failpoint(refuse)
    errors = save(20, "two")
    failpoint(None)
    assert {type(error) for error in errors} == {CheckpointFaultError}
    assert len({str(error) for error in errors}) == 1
    assert [names(tmp_path / each) for each in "ab"] == [["step_0000000010"]] * 2
    assert restored("two") == (10, ())
    assert {result.step for result in save(20, "two")} == {20}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_leader_killed_at_any_operation_leaves_the_old_or_the_new_step(
    tmp_path, save, restored, make_state, sharded, rank
):
    """Between the commits of the two nodes there is a new step on one of them: it is passed over, and saved again."""
    save(20, "pair")
    disks = {node: tmp_path / node for node in "ab"}
    for node, folder in disks.items():
        shutil.copytree(folder, tmp_path / f"before_{node}")
    outcomes = []
    for number in range(200):

        def work(comm, spec=f"*#{number}@rank{rank}=kill"):
            storage.set_failpoint(Fault(spec, comm.rank))
            manager(tmp_path, comm, "pair").save(30, sharded(make_state(3), comm.rank, 2))

        codes = list(map(end_of, start_ranks(2, work)))
        if codes == [0, 0]:
            break
        step, quarantined = restored("pair")
        outcomes.append((step, any((folder / "step_0000000030").exists() for folder in disks.values())))
        assert step in (20, 30) and quarantined == ()
        if step == 20:
            assert {result.step for result in save(30, "pair")} == {30}
            assert restored("pair")[0] == 30
        for node, folder in disks.items():
            shutil.rmtree(folder)
            shutil.copytree(tmp_path / f"before_{node}", folder)
    assert set(outcomes) == {(20, False), (20, True), (30, True)}

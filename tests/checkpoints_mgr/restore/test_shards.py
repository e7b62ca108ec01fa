"""Ranges of tensors: any number of ranks reads what any other wrote, and no more than it needs."""

import json

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointManager, FlatShard, Segment, State
from checkpoints_mgr.save.balance import shares
from checkpoints_mgr.state import TensorSpec

WORLD_SIZES = (1, 2, 3, 4, 8)


@pytest.mark.parametrize("writers", WORLD_SIZES)
def test_any_world_size_reads_what_any_other_wrote(
    tmp_path, run_ranks, make_state, sharded, blank, assert_same, writers
):
    state = make_state(7)

    def write(comm):
        return CheckpointManager(tmp_path, comm).save(12, sharded(state, comm.rank, writers))

    assert {result.step for result in run_ranks(writers, write)} == {12}
    for readers in WORLD_SIZES:

        def read(comm):
            own = sharded(state, comm.rank, comm.world_size)
            restored = CheckpointManager(tmp_path, comm).restore(blank(own))
            assert_same(restored.state, own)
            return restored.step

        assert run_ranks(readers, read) == [12] * readers


def test_what_was_sharded_is_read_whole_and_the_other_way_round(
    tmp_path, run_ranks, make_state, sharded, blank, assert_same, restore
):
    run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(1, sharded(make_state(1), comm.rank, 3)))
    assert_same(restore(tmp_path).state, make_state(1))
    CheckpointManager(tmp_path).save(2, make_state(2))

    def read(comm):
        own = sharded(make_state(2), comm.rank, 4)
        assert_same(CheckpointManager(tmp_path, comm).restore(blank(own)).state, own)

    assert run_ranks(4, read) == [None] * 4


def test_padding_is_not_stored_and_not_touched(tmp_path, make_state, sharded):
    own = State({}, {}, sharded(make_state(1), 0, 1).shards)
    before = {name: shard.values.copy() for name, shard in own.shards.items()}
    CheckpointManager(tmp_path).save(1, own)
    for shard in own.shards.values():
        shard.values[3:-2] = 0
        shard.values[[0, 1, 2, -2, -1]] = 8
    CheckpointManager(tmp_path).restore(own)
    for name, shard in own.shards.items():
        np.testing.assert_array_equal(shard.values[[0, 1, 2, -2, -1]], 8)
        assert shard.values[3:-2].tobytes() == before[name][3:-2].tobytes()


def flat(low, high):
    values = np.arange(high - low, dtype=np.float32)
    return State({}, {}, {"ema": FlatShard(values, {"w": (10,)}, [Segment("w", low, high, 0)])})


@pytest.mark.parametrize(
    ("second", "fault"), [((4, 10), "from 3 on are missing"), ((2, 10), "stored twice"), ((3, 9), "9 elements of 10")]
)
def test_ranks_whose_parts_do_not_make_up_the_tensor_are_refused(tmp_path, run_ranks, names, second, fault):
    bounds = [(0, 3), second]
    errors = run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, flat(*bounds[comm.rank])))
    assert len({str(error) for error in errors}) == 1
    assert "the ranks' parts do not fit together" in str(errors[0])
    assert fault in str(errors[0])
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (State({"ema/v": np.zeros(10, np.float32)}, {}), r"holds nothing for ema/v, needed F32 \[10\]"),
        (State({"ema/w": np.zeros((2, 5), np.float32)}, {}), r"holds F32 \[10\] for ema/w, needed F32 \[2, 5\]"),
        (State({"ema/w": np.zeros(10, np.float16)}, {}), r"holds F32 \[10\] for ema/w, needed F16 \[10\]"),
        (State({"ema/w": np.zeros((10, 2), np.float32)[:, 0]}, {}), "ema/w cannot be filled"),
    ],
)
def test_a_template_that_does_not_fit_condemns_nothing(tmp_path, names, template, fault):
    CheckpointManager(tmp_path).save(1, flat(0, 10))
    with pytest.raises(CheckpointError, match=fault):
        CheckpointManager(tmp_path).restore(template)
    assert names(tmp_path) == ["step_0000000001"]


def test_a_rank_reads_little_more_than_its_part(tmp_path, run_ranks, read_bytes):
    """Bytes asked of the system by each of 3 ranks, of a tensor of 12 MB that 2 wrote: at most 1.05 of its part."""
    size = 3 * 1000 * 1001
    values = np.random.default_rng(0).standard_normal(size).astype(np.float32)

    def shard(rank, world_size):
        low, high = (size * index // world_size for index in (rank, rank + 1))
        part = FlatShard(values[low:high].copy(), {"w": (3000, 1001)}, [Segment("w", low, high, 0)])
        return State({}, {}, {"ema": part})

    run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, shard(comm.rank, 2)))
    for rank in range(3):
        wanted = shard(rank, 3)
        expected = wanted.shards["ema"].values.copy()
        wanted.shards["ema"].values[:] = 0
        read_bytes.clear()
        CheckpointManager(tmp_path).restore(wanted)
        np.testing.assert_array_equal(wanted.shards["ema"].values, expected)
        assert expected.nbytes <= sum(read_bytes) <= 1.05 * expected.nbytes


def test_shares_are_balanced_complete_and_mind_what_ranks_write_besides():
    generator = np.random.default_rng(3)
    specs = [TensorSpec(f"model/t{i}", "F32", (int(n), 3)) for i, n in enumerate(generator.integers(1, 5000, 300))]
    total = sum(spec.size_bytes for spec in specs)
    for world_size in (1, 2, 7, 64):
        besides = [total // world_size + 4000 * rank for rank in range(world_size)]
        result = shares(specs, besides)
        assert {part.is_whole for share in result for part in share} == {True}
        assert sorted(part.spec.name for share in result for part in share) == sorted(spec.name for spec in specs)
        loads = [load + sum(part.size_bytes for part in share) for load, share in zip(besides, result, strict=True)]
        assert max(loads) <= 1.05 * sum(loads) / world_size


def test_a_tensor_that_outweighs_a_rank_is_split_between_rows():
    spec = TensorSpec("model/table", "F16", (1003, 10))
    result = shares([spec, TensorSpec("model/bias", "F16", (10,))], [0] * 4)
    loads = [sum(part.size_bytes for part in share) for share in result]
    assert max(loads) <= 1.3 * min(loads)
    pieces = sorted((part.low, part.high) for share in result for part in share if part.spec is spec)
    assert all(low % 10 == 0 for low, _ in pieces)
    assert [low for low, _ in pieces] == [0, *(high for _, high in pieces[:-1])]
    assert pieces[-1][1] == 10030


def test_more_ranks_than_tensors(tmp_path, run_ranks, blank, assert_same):
    state = State({"model/w": np.arange(3, dtype=np.float32)}, {})
    run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(1, state))
    assert_same(CheckpointManager(tmp_path).restore(blank(state)).state, state)


def test_a_manifest_of_5_g_parameters_on_64_ranks_is_small(tmp_path):
    """At most 1 MB: three sharded components and the weights, 1500 tensors, 64 ranks."""
    from checkpoints_mgr.disk.digests import chunk_bytes_of
    from checkpoints_mgr.disk.manifest import FileEntry, Manifest, Piece, Placement, from_bytes, to_bytes

    numel, ranks = 3_300_000, 64
    total = 1500 * numel
    bounds = [total * rank // ranks for rank in range(ranks + 1)]
    size_bytes = 4 * (bounds[1] + 1)
    chunk_bytes = chunk_bytes_of(size_bytes)
    digests = ("0123456789abcdef",) * -(-size_bytes // chunk_bytes)
    components = ("adam_m", "adam_v", "ema", "model")
    files = tuple(
        FileEntry(f"{component}-{rank:05d}-of-00064.safetensors", size_bytes, rank, 0, chunk_bytes, digests)
        for component in components
        for rank in range(ranks)
    )
    tensors = {}
    for order, component in enumerate(components):
        for number in range(1500):
            start, pieces = number * numel, []
            for rank in range(ranks):
                low, high = (min(max(bound - start, 0), numel) for bound in bounds[rank : rank + 2])
                if low < high:
                    pieces.append(Piece(low, high, order * ranks + rank, 4 * (start + low - bounds[rank])))
            name = f"{component}/unet.block.{number}.weight"
            tensors[name] = Placement(TensorSpec(name, "F32", (numel,)), tuple(pieces))
    content = to_bytes(Manifest("0" * 32, 1, 0, ranks, {}, {}, {}, files, tensors))
    assert len(content) <= 1_000_000
    assert from_bytes(content, "here").tensors == tensors
    assert json.loads(content)["world_size"] == 64

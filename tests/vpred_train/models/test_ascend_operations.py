"""All operations of the project's graphs, as they would be on Ascend, looked up in MindSpore's wheel.

Nothing runs on an NPU here. MindSpore compiles the graphs for CPU until it looks for kernels, and saves them before.
"""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from support import PROGRAMS, PYTHONPATH
from support.ascend_kernels import path_of

GRAPHS = ("training", "update", "encoding", "text", "sampling", "decoding")
PLANTED = "planted"
# The operations that have only kernels of CANN's old interface, and why they are accepted.
ACCEPTED = {"AddN": "MindSpore itself adds the gradients of one tensor by it, so that there is nothing to replace"}
# What the table of accelerators takes in place of operations of the old interface.
REPLACED = {
    "Conv2D": "Conv2DExt",
    "Conv2DBackpropInput": "ConvolutionGrad",
    "Conv2DBackpropFilter": "ConvolutionGrad",
    "LayerNorm": "LayerNormExt",
    "LayerNormGrad": "LayerNormGradExt",
    "BiasAdd": "Add",
    "BiasAddGrad": "SumExt",
    "Split": "SplitWithSize",
    "StridedSlice": "SplitWithSize",
    "Gather": "Embedding",
    "UnsortedSegmentSum": "EmbeddingDenseBackward",
    "ReduceMean": "MeanExt",
}
_OPERATION = re.compile(r"^\s*%\w+\([^)]*\) = (?:PrimFunc_|(?:DoSignaturePrimitive::)?S-Prim-)?([A-Za-z]\w*)(?:\[|\()")


def operations_in(saved: Path) -> Counter[str]:
    """How often each operation stands in a graph that MindSpore saved."""
    return Counter(match[1] for line in saved.read_text().splitlines() if (match := _OPERATION.match(line)))


@pytest.fixture(scope="module", params=["float32", "float16"])
def graphs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    folder = tmp_path_factory.mktemp(request.param)
    env = os.environ | {"GLOG_v": "3", "PYTHONPATH": PYTHONPATH}
    env |= {"MS_DEV_SAVE_GRAPHS": "1", "MS_DEV_SAVE_GRAPHS_PATH": str(folder), "MS_DEV_DUMP_IR_PASSES": "validate"}
    names = (*GRAPHS, PLANTED)
    argv = [sys.executable, str(PROGRAMS / "audited_graphs.py"), request.param, *names]
    answer = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    saved = sorted(folder.rglob("*validate*.ir"))  # numbered in the order of compilation
    assert len(saved) == len(names), answer.stdout
    found = {name: operations_in(path) for name, path in zip(names, saved, strict=True)}
    return found | {"dtype": Counter([request.param])}


def without_path(found: dict[str, Counter[str]], *names: str) -> set[str]:
    return {operation for name in names for operation in found[name] if path_of(operation) == "none"}


def test_no_operation_lacks_a_kernel_on_ascend(graphs: dict[str, Counter[str]]) -> None:
    assert without_path(graphs, *GRAPHS) == set()
    assert not any("Custom" in graphs[name] for name in GRAPHS)


def test_a_planted_operation_for_cpu_alone_is_found(graphs: dict[str, Counter[str]]) -> None:
    assert without_path(graphs, PLANTED) == {"Lgamma"}


def test_kernels_of_the_old_interface_are_accepted_by_name(graphs: dict[str, Counter[str]]) -> None:
    old = {operation for name in GRAPHS for operation in graphs[name] if path_of(operation) == "aclop"}
    assert old == set(ACCEPTED)


def test_the_graphs_hold_the_replacements(graphs: dict[str, Counter[str]]) -> None:
    """Otherwise the audit would have looked at other graphs than those of Ascend."""
    training = graphs["training"]
    assert training.keys() >= set(REPLACED.values())
    half = "float16" in graphs["dtype"]
    assert ("FlashAttentionScore" in training) == ("FlashAttentionScoreGrad" in training) == half
    # Two attentions in each of the UNet's 16 transformers; those of the text encoder have a mask.
    assert training["FlashAttentionScore"] == (32 if half else 0)
    assert graphs["encoding"]["ConstantPadND"] == 3


@pytest.mark.parametrize(("old", "new"), REPLACED.items())
def test_replacements_have_aclnn_kernels_where_the_replaced_have_none(old: str, new: str) -> None:
    assert (path_of(old), path_of(new)) == ("aclop", "aclnn")


@pytest.mark.parametrize(
    ("operation", "path"),
    [
        ("Lgamma", "none"),
        ("NoSuchOperation", "none"),
        ("Load", "no kernel"),
        ("ReduceScatter", "hccl"),
        ("FlashAttentionScore", "aclnn"),
        ("MatMulExt", "aclnn"),
        ("AdamWeightDecay", "aclop"),
        ("BatchNorm", "aclop"),
    ],
)
def test_paths_of_known_operations(operation: str, path: str) -> None:
    assert path_of(operation) == path

"""Tells which kernels MindSpore's wheel has for Ascend. Its Ascend plug-in is part of the wheel for CPU hosts too."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Literal

Way = Literal["no kernel", "hccl", "aclnn", "aclop", "none"]

# These change the graph or a shape, not a number. The runtime handles them, or a copy does.
WITHOUT_KERNEL = {"Load", "UpdateState", "Depend", "MakeTuple", "TupleGetItem", "Return", "Reshape", "ExpandDims"}
WITHOUT_KERNEL |= {"Squeeze", "Flatten", "StopGradient", "Assign", "Partial", "Switch"}
HCCL = {"AllReduce", "AllGather", "ReduceScatter", "Broadcast", "Barrier"}
# Kernels whose class has another name than the operation.
CLASSES = {"BatchMatMul": "BMM", "MatMulExt": "MMExt", "ConstantPadND": "ConstantPadNd"}
# CANN's names of the old interface, where they differ from MindSpore's.
OLD_NAMES = {"Gather": "GatherV2", "Stack": "Pack", "Unstack": "Unpack"}
# A pass of the Ascend back end makes another operation of these.
REWRITTEN = {"AdamWeightDecay": "AdamApplyOneWithDecayAssign"}

LIBRARIES = "lib/plugin"
_SIMPLE_NAME = re.compile(rb"(\d+)([A-Za-z_])")


def wheel() -> Path:
    spec = importlib.util.find_spec("mindspore")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def kernel_classes() -> frozenset[str]:
    """Names of the classes in mindspore::kernel, from the type names of the library of Ascend kernels."""
    text = (wheel() / LIBRARIES / "libmindspore_ops_ascend.so").read_bytes()
    names = set()
    for mangled in re.findall(rb"\x00(N9mindspore6kernel\w+)", text):
        place, last = len(b"N9mindspore6kernel"), b""
        while match := _SIMPLE_NAME.match(mangled, place):
            length, start = int(match[1]), match.end(1)
            last, place = mangled[start : start + length], start + length
        names.add(last.decode())
    return frozenset(names)


@cache
def old_operations() -> frozenset[str]:
    """Names of the operations of CANN's old interface that the Ascend plug-in can call."""
    text = (wheel() / LIBRARIES / "ascend/libmindspore_ascend_res_manager.so").read_bytes()
    return frozenset(name.decode() for name in re.findall(rb"\x00([A-Z][A-Za-z0-9]+)(?=\x00)", text))


def path_of(operation: str) -> Way:
    """How an operation of a graph runs on an NPU: aclnn kernels need no compilation, those of aclop do."""
    if operation in WITHOUT_KERNEL:
        return "no kernel"
    if operation in HCCL:
        return "hccl"
    name = CLASSES.get(operation, operation)
    classes = {f"{name}Ascend", f"{name}AclnnKernelMod", f"Aclnn{name}KernelMod"}
    if classes & kernel_classes():
        return "aclnn"
    old = REWRITTEN.get(operation, OLD_NAMES.get(operation, operation))
    return "aclop" if old in old_operations() else "none"

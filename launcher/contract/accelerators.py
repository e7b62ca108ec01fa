"""Describes each kind of device as one value. No other module branches on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from launcher.contract.config import ConfigError
from launcher.contract.identity import Identity

ComputeDtype = Literal["float32", "float16", "bfloat16"]
Engine = Literal["host", "device"]

# Estimated from sizes and bandwidths. There was no NPU to measure it on.
HOST_ENGINE_COST = (
    "each step of Stable Diffusion 2 on 8 ranks takes 14.7 GB over PCIe and launches 6,600 graphs, by estimate 15 to "
    "30 times slower than MindONE"
)


@dataclass(frozen=True)
class Operations:
    """Names the implementation of each kind of operation in the networks, and how their graphs are compiled.

    jit_level: "O0" runs kernel by kernel; "O1" also fuses kernels, which MindSpore calls experimental
    convolution: "ops" is Conv2D and BiasAdd, "mint" is mint's conv2d
    layer_norm: "ops" is LayerNorm, "mint" is mint's layer_norm
    group_norm: "ops" is GroupNorm, "batch_norm" is BatchNorm over groups
    linear: "ops" is MatMul and BiasAdd, "mint" is mint's linear
    indexing: "ops" is Split, StridedSlice, Gather and ReduceMean, "mint" is SplitWithSize, Embedding and MeanExt
    attention: "composed" is two matrix products around a softmax, "flash" is flash_attention_score in half precision
    """

    jit_level: str
    convolution: str
    layer_norm: str
    group_norm: str
    linear: str
    indexing: str
    attention: str


@dataclass(frozen=True)
class Accelerator:
    """Describes one kind of device.

    device_target: MindSpore's name for it
    engine: where a step is computed: "host" takes the gradients to numpy, "device" keeps everything on the device
    collective: backend that reduces across ranks
    msrun_collective: the same when msrun started the ranks
    process_variables: fixed settings; they must be set before mindspore is imported
    compiled_operations: the project's compiled operations are used where they have been built
    plain_variables: settings for when the compiled operations are not used
    cached_graphs: a restart loads the compiled training graph from the run directory
    compute_dtypes: dtypes in which networks can compute; the first is the default of a recipe
    known_operations: values of each field of Operations; the first is the default
    ceiling_side: side of the square matrices that measure the ceiling of the MFU; their product fills the device
    deterministic: kernels and collectives add up in a fixed order
    """

    name: str
    device_target: Literal["CPU", "Ascend"]
    engine: Engine
    collective: Literal["mpi4py", "hccl"]
    msrun_collective: Literal["mccl", "hccl"]
    process_variables: Mapping[str, str]
    compiled_operations: bool
    plain_variables: Mapping[str, str]
    compute_dtypes: tuple[ComputeDtype, ...]
    cached_graphs: bool
    known_operations: Mapping[str, tuple[str, ...]]
    ceiling_side: int
    rank_variables: Callable[[Identity, int, Path | None], Mapping[str, str]]
    chosen_operations: Mapping[str, str] = field(default_factory=dict)
    deterministic: bool = False

    @property
    def operations(self) -> Operations:
        """Return the implementations in use."""
        defaults = {kind: names[0] for kind, names in self.known_operations.items()}
        return Operations(**{**defaults, **self.chosen_operations})

    def collective_under(self, launcher: str) -> str:
        """Return the backend of ranks that `launcher`, a row of the identity table, started."""
        return self.msrun_collective if launcher == "msrun" else self.collective

    def environment(self, identity: Identity, device_id: int, rank_table: Path | None) -> dict[str, str]:
        """Return the variables to export before mindspore is imported. `device_id` numbers the visible devices."""
        return {**self.process_variables, **self.rank_variables(identity, device_id, rank_table)}


def _no_rank_variables(identity: Identity, device_id: int, rank_table: Path | None) -> Mapping[str, str]:
    return {}


def _hccl_variables(identity: Identity, device_id: int, rank_table: Path | None) -> Mapping[str, str]:
    variables = {
        "RANK_ID": str(identity.rank),
        "RANK_SIZE": str(identity.world_size),
        "DEVICE_ID": str(device_id),
    }
    if rank_table is not None:
        variables["RANK_TABLE_FILE"] = str(rank_table)
    return variables


ACCELERATORS: dict[str, Accelerator] = {
    "cpu": Accelerator(
        name="cpu",
        device_target="CPU",
        engine="host",  # numpy shares the networks' memory, so that nothing is copied
        collective="mpi4py",  # several times faster than MCCL, which MindSpore cannot set up under mpirun
        msrun_collective="mccl",
        # One thread per rank: ranks, not threads, fill the cores.
        process_variables=MappingProxyType(
            {"GLOG_v": "3", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        ),
        compiled_operations=True,
        # With AVX-512, oneDNN runs MindSpore's convolutions in a loop that is a hundred times slower.
        plain_variables=MappingProxyType({"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        compute_dtypes=("float32", "float16"),  # MindSpore has no bfloat16 matrix product for CPU
        cached_graphs=True,
        known_operations=MappingProxyType(
            {
                "jit_level": ("O0",),
                "convolution": ("ops",),
                "layer_norm": ("ops",),
                "group_norm": ("batch_norm", "ops"),  # MindSpore's GroupNorm for CPU runs at 1 GB/s
                "linear": ("ops", "mint"),
                "indexing": ("ops",),
                "attention": ("composed",),
            }
        ),
        ceiling_side=1024,
        rank_variables=_no_rank_variables,
    ),
    "ascend": Accelerator(
        name="ascend",
        device_target="Ascend",
        engine="device",
        collective="hccl",
        msrun_collective="hccl",
        process_variables=MappingProxyType(
            {
                "GLOG_v": "3",
                # An operation without a kernel for the device is an error. By default it runs on the host, unnoticed.
                "MS_DISABLE_KERNEL_BACKOFF": "1",
                # Overflows are infinite. Saturated numbers would hide them from the loss scale.
                "MS_ASCEND_CHECK_OVERFLOW_MODE": "INFNAN_MODE",
            }
        ),
        compiled_operations=False,
        plain_variables=MappingProxyType({}),
        compute_dtypes=("bfloat16", "float16", "float32"),  # bfloat16 has float32's range: it needs no loss scale
        cached_graphs=False,  # never tried on Ascend; a wrong graph would train wrongly and silently
        # First CANN's aclnn kernels. The old kernels behind "ops" are compiled at run time for each shape.
        known_operations=MappingProxyType(
            {
                "jit_level": ("O0", "O1"),
                "convolution": ("mint", "ops"),
                "layer_norm": ("mint", "ops"),
                "group_norm": ("ops",),
                "linear": ("mint", "ops"),
                "indexing": ("mint", "ops"),
                "attention": ("flash", "composed"),
            }
        ),
        ceiling_side=8192,
        rank_variables=_hccl_variables,
    ),
}


def accelerator_with(
    name: str,
    engine: Literal["auto", Engine] = "auto",
    operations: Mapping[str, str] = MappingProxyType({}),
    deterministic: bool = False,
) -> Accelerator:
    """Return a row of the table with the choices of a cluster file.

    engine: host, device, or "auto" for the table's
    operations: field of Operations -> its value; "auto" is the table's

    Raises ConfigError: when the device has no such operation.
    """
    accelerator = ACCELERATORS[name]
    chosen = {kind: value for kind, value in operations.items() if value != "auto"}
    for kind, value in chosen.items():
        known = accelerator.known_operations.get(kind, ())
        if value not in known:
            raise ConfigError(
                f"operations.{kind}: found {value!r}, an operation that accelerator {name} does not have "
                f"(known: {', '.join(known) or 'none of this kind'})",
                "take auto",
            )
    return replace(
        accelerator,
        engine=accelerator.engine if engine == "auto" else engine,
        chosen_operations=MappingProxyType(chosen),
        deterministic=deterministic,
    )

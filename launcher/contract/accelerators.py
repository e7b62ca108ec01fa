"""Describes each kind of device as one value. No other module branches on the device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from launcher.contract.identity import Identity

ComputeDtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Accelerator:
    """Describes one kind of device.

    device_target: MindSpore's name for it
    collective: backend that reduces across ranks
    msrun_collective: the same when msrun started the ranks
    process_variables: fixed settings; they must be set before mindspore is imported
    compiled_operations: the project's compiled operations are used where they have been built
    plain_variables: settings for when the compiled operations are not used
    cached_graphs: a restart loads the compiled training graph from the run directory
    compute_dtypes: dtypes in which networks can compute; the first is the default of a recipe
    """

    name: str
    device_target: Literal["CPU", "Ascend"]
    collective: Literal["mpi4py", "hccl"]
    msrun_collective: Literal["mccl", "hccl"]
    process_variables: Mapping[str, str]
    compiled_operations: bool
    plain_variables: Mapping[str, str]
    compute_dtypes: tuple[ComputeDtype, ...]
    cached_graphs: bool
    rank_variables: Callable[[Identity, int, Path | None], Mapping[str, str]]

    def collective_under(self, launcher: str) -> str:
        """Return the backend of ranks that `launcher`, a row of the identity table, started."""
        return self.msrun_collective if launcher == "msrun" else self.collective

    def environment(self, identity: Identity, device_id: int, rank_table: Path | None) -> dict[str, str]:
        """Return the variables to export before mindspore is imported. `device_id` is the physical id."""
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
        rank_variables=_no_rank_variables,
    ),
    "ascend": Accelerator(
        name="ascend",
        device_target="Ascend",
        collective="hccl",
        msrun_collective="hccl",
        process_variables=MappingProxyType({"GLOG_v": "3"}),
        compiled_operations=False,
        plain_variables=MappingProxyType({}),
        compute_dtypes=("bfloat16", "float16", "float32"),  # bfloat16 has float32's range: it needs no loss scale
        cached_graphs=False,  # never tried on Ascend; a wrong graph would train wrongly and silently
        rank_variables=_hccl_variables,
    ),
}

"""The identity table, with environments as the launchers really set them."""

import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from launcher.contract.identity import Identity, is_scheduler, read_identity, without_identity

OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "PMIX_RANK": "3",
}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "3", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "9",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_TASKS_PER_NODE": "3(x3)",
}
BATCH_SHELL = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}
# salloc with LaunchParameters=use_interactive_step starts the shell as the pseudo step 0xfffffffa.
INTERACTIVE_SHELL = BATCH_SHELL | {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}
PRUN = {"PMIX_RANK": "1", "VPRED_WORLD_SIZE": "2", "VPRED_LOCAL_RANK": "1", "VPRED_LOCAL_SIZE": "2"}

MSRUN = {
    "MS_ROLE": "MS_WORKER",
    "MS_WORKER_NUM": "4",
    "MS_NODE_ID": "3",
    "MS_SCHED_HOST": "10.0.0.1",
    "MS_SCHED_PORT": "8118",
    "RANK_ID": "3",
    "RANK_SIZE": "4",
    "DEVICE_ID": "1",
}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ("none", 0, 1, 0, 1)),
        (OPENMPI, ("openmpi", 3, 4, 1, 2)),
        (BATCH_SHELL | OPENMPI, ("openmpi", 3, 4, 1, 2)),
        (MPICH, ("mpich", 2, 3, 0, 1)),
        (SRUN, ("slurm", 5, 6, 1, 2)),
        (SRUN | {"PMIX_RANK": "5"}, ("slurm", 5, 6, 1, 2)),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "1,3,2"}, ("slurm", 5, 6, 1, 2)),
        (BATCH_SHELL, ("none", 0, 1, 0, 1)),
        (INTERACTIVE_SHELL, ("none", 0, 1, 0, 1)),
        (PRUN, ("pmix", 1, 2, 1, 2)),
        (MSRUN, ("msrun", 3, 4, 1, 4)),
        (MSRUN | {"MS_LOCAL_WORKER": "2"}, ("msrun", 3, 4, 1, 2)),
        (SRUN | MSRUN, ("msrun", 3, 4, 1, 4)),
    ],
)
def test_each_launch_environment(env, expected):
    launcher, rank, world_size, local_rank, local_size = expected
    assert read_identity(env) == Identity(rank, world_size, local_rank, local_size, socket.gethostname(), launcher)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MS_ROLE": "MS_WORKER"}, "msrun environment: MS_ROLE is set but RANK_ID is not"),
        ({"PMIX_RANK": "1"}, "pmix environment: PMIX_RANK is set but VPRED_WORLD_SIZE is not"),
        (OPENMPI | {"OMPI_COMM_WORLD_SIZE": "many"}, "OMPI_COMM_WORLD_SIZE is 'many', not a number"),
        (OPENMPI | {"OMPI_COMM_WORLD_RANK": "4"}, "contradict each other"),
        (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(y3)"}, "is '2(y3)', not a list"),
        (SRUN | {"SLURM_NODEID": "3"}, "has no node 3"),
        (SRUN | {"SLURM_NODEID": "first"}, "SLURM_NODEID is 'first', not a number; unset SLURM_PROCID if"),
        (SRUN | {"SLURM_STEP_ID": "batch"}, "SLURM_STEP_ID is 'batch', not a number"),
        (SRUN | {"SLURM_NODEID": "1" * 5000}, "SLURM_NODEID is '1111"),
        (MSRUN | {"MS_ROLE": "WORKER"}, "MS_ROLE is 'WORKER', not MS_WORKER or MS_SCHED; unset it"),
        (MSRUN | OPENMPI | {"RANK_ID": "2"}, "msrun says that this is rank 2 of 4, Open MPI rank 3 of 4; unset"),
        (MSRUN | {"OMPI_COMM_WORLD_RANK": "3"}, "OMPI_COMM_WORLD_RANK is set but OMPI_COMM_WORLD_SIZE is not; unset"),
    ],
)
def test_incomplete_environments_are_refused(env, message):
    with pytest.raises(ConfigError) as caught:
        read_identity(env)
    assert message in str(caught.value)


def test_only_msruns_extra_process_is_a_scheduler():
    assert is_scheduler(MSRUN | {"MS_ROLE": "MS_SCHED", "RANK_ID": "0"})
    assert not is_scheduler(MSRUN)
    assert not is_scheduler({})
    with pytest.raises(ConfigError, match="MS_ROLE is 'MS_SCHED' but MS_WORKER_NUM is not set; unset MS_ROLE"):
        is_scheduler({"MS_ROLE": "MS_SCHED"})


def test_a_long_list_of_tasks_is_not_written_out():
    env = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "2(x1000000000),1"}
    assert read_identity(env).local_size == 2


VARIABLES = sorted({*OPENMPI, *MPICH, *SRUN, *MSRUN, *PRUN, "VPRED_RANK", "MS_LOCAL_WORKER"})
VALUES = st.sampled_from(
    ["", "0", "1", "2", "3", "4", "-1", " 1", "1.0", "\u0661", "0x1", "1" * 5000, "4294967290", "2(x2)", "2(x", "1,1",
     "1(x99999999999)", "MS_WORKER", "MS_SCHED", "localhost", "\udcb9"]
)  # fmt: skip


@settings(max_examples=400, derandomize=True, deadline=None)
@given(env=st.dictionaries(st.sampled_from(VARIABLES), VALUES))
def test_any_environment_is_an_identity_or_one_line(env):
    try:
        if is_scheduler(env):
            return
        identity = read_identity(env)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1 and "unset" in str(error)
        return
    assert 0 <= identity.rank < identity.world_size
    assert 0 <= identity.local_rank < identity.local_size <= identity.world_size
    assert read_identity(without_identity(env)).launcher in ("none", "slurm")


@pytest.mark.parametrize("own", [OPENMPI, MPICH, MSRUN])
def test_an_identity_is_taken_away_and_settings_are_not(own):
    kept = {
        "OMPI_MCA_btl": "self",
        "PRTE_MCA_x": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "PMIX_PREFIX": "/opt",
        "HOME": "/",
    }
    told = {"OMPI_MCA_ess_base_jobid": "1", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://", "PRTE_LAUNCHED": "1"}
    left = {"RANK_TABLE_FILE": "/x", "MS_SCHED_HOST": "10.0.0.1", "PMI_FD": "9", "PMIX_NAMESPACE": "n@1"}
    assert without_identity(own | kept | told | left) == kept
    launcher = read_identity(own).launcher
    assert read_identity(without_identity(own | left, but=launcher)) == read_identity(own)


def test_srun_keeps_pmix_and_no_other_launcher():
    """PMIx is how ranks meet that srun started, in a job that was submitted from within an MPI job."""
    pmix = {"PMIX_RANK": "1", "PMIX_NAMESPACE": "slurm.pmix.2.0", "PMIX_SERVER_URI2": "pmix-server.52;tcp4://"}
    slurm = {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "2",
             "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NODEID": "1"}  # fmt: skip
    env = without_identity(OPENMPI | MPICH | MSRUN | slurm | pmix, but="slurm")
    assert env == pmix | slurm
    assert read_identity(env).launcher == "slurm" and read_identity(env).rank == 1


def test_accelerators(tmp_path):
    identity = Identity(9, 16, 1, 8, "node", "openmpi")
    ascend = ACCELERATORS["ascend"]
    table = tmp_path / "rank_table.json"
    assert ascend.environment(identity, 5, table) == {
        "GLOG_v": "3",
        "RANK_ID": "9",
        "RANK_SIZE": "16",
        "DEVICE_ID": "5",
        "RANK_TABLE_FILE": str(table),
    }
    assert "RANK_TABLE_FILE" not in ascend.environment(identity, 5, None)
    assert ascend.device_target == "Ascend"
    assert {ascend.collective_under(launcher) for launcher in ("openmpi", "slurm", "msrun")} == {"hccl"}
    cpu = ACCELERATORS["cpu"]
    assert cpu.environment(identity, 0, None)["OMP_NUM_THREADS"] == "1"
    assert cpu.device_target == "CPU"
    assert (cpu.collective_under("openmpi"), cpu.collective_under("msrun")) == ("mpi4py", "mccl")

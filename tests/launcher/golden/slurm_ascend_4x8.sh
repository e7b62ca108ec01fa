#!/bin/bash
# vpred-launch submit: run /shared/runs/mine
#SBATCH --job-name=vpred-mine
#SBATCH --chdir=/shared/runs/mine
#SBATCH --output=/shared/runs/mine/submit/job-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=5
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --gres=npu:8
#SBATCH --partition=npu
#SBATCH --time=08:00:00
#SBATCH --exclusive
#SBATCH --signal=B:USR1@420
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --export=NONE
unset SLURM_EXPORT_ENV
export SRUN_CPUS_PER_TASK=8
source /usr/local/Ascend/ascend-toolkit/set_env.sh || exit 1
exec /shared/vpred/.venv/bin/vpred-launch run --submitted --run-dir /shared/runs/mine

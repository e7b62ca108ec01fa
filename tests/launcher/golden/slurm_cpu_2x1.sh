#!/bin/bash
# vpred-launch submit: run /shared/runs/mine
#SBATCH --job-name=vpred-mine
#SBATCH --chdir=/shared/runs/mine
#SBATCH --output=/shared/runs/mine/submit/job-%j.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --exclusive
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --export=NONE
unset SLURM_EXPORT_ENV
exec /shared/vpred/.venv/bin/vpred-launch run --submitted --run-dir /shared/runs/mine

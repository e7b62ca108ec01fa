#!/bin/bash
# vpred-launch submit: run /shared/runs/mine
#SBATCH --job-name=vpred-mine
#SBATCH --chdir=/shared/runs/mine
#SBATCH --output=/shared/runs/mine/%4a/submit/job-%A_%a.out
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --array=0-3%2
#SBATCH --mem=64G
#SBATCH --account=chem
#SBATCH --qos=long
#SBATCH --constraint="a&b"
#SBATCH --reservation=r1
#SBATCH --time=1-0
#SBATCH --signal=B:USR1@90
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --export=NONE
#SBATCH --dependency=afterany:3,afterok:7:8
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-user=me@example.org
#SBATCH --mail-type=BEGIN,END,FAIL,REQUEUE
#SBATCH --exclude=n[3-4]
unset SLURM_EXPORT_ENV
exec /shared/vpred/.venv/bin/vpred-launch run --submitted --run-dir /shared/runs/mine/"$(printf %04d "$SLURM_ARRAY_TASK_ID")"

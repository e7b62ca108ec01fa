#!/bin/bash
# vpred-launch submit: run /a b/it's "x"
#SBATCH --job-name="vpred-it's \"x\""
#SBATCH --chdir="/a b/it's \"x\""
#SBATCH --output="/a b/it's \"x\"/submit/job-%j.out"
#SBATCH --open-mode=append
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --time=01:00:00
#SBATCH --exclusive
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --export=NONE
#SBATCH --dependency=singleton
#SBATCH --kill-on-invalid-dep=yes
unset SLURM_EXPORT_ENV
exec /shared/vpred/.venv/bin/vpred-launch run --submitted --run-dir '/a b/it'"'"'s "x"'

#!/usr/bin/env bash
# Any recipe on a SLURM cluster, requeued before its time is up and resumed where it was.
#
#   sbatch --nodes=11 recipes/image_text/slurm.sh recipes/image_text/stage1.yaml --trainer.strategy=fsdp2
#
# Five minutes before the limit SLURM signals SIGUSR1: a checkpoint is saved at the next boundary of optimizer steps, and
# the job requeued, which goes on from it. `scancel` (SIGTERM) saves too, if a step and a save take less than KillWait.
# Submit from the folder that the paths of the YAML are relative to.
#SBATCH --job-name=unidiff
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail
config=$1
shift
srun unidiffuser fit -c "$config" \
  --trainer.num_nodes="$SLURM_JOB_NUM_NODES" --trainer.devices="${SLURM_NTASKS_PER_NODE:-8}" "$@"

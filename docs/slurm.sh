#!/bin/bash
# Train on a SLURM cluster, over as many jobs as it takes:
#
#     sbatch docs/slurm.sh depict-ca-base --dataset ade20k train.precision=bf16
#
# Everything after the script's name goes to `whitebox train`. One task a GPU; the folder of the runs must be on a
# file system that all nodes share.
#SBATCH --job-name=whitebox
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail

# Three minutes before the time is up this script is told, tells the tasks, which save and end, and queues itself again.
# (A preempted job is told by SLURM itself, which also queues it again.)
stopped=
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# --resume begins a run that is not there yet: the first job and the later ones are the same.
# shellcheck disable=SC2016  # the variables are those of each task
srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec whitebox train "$@" --resume' task "$@" &
tasks=$!
wait "$tasks"
code=$?
if [ -n "$stopped" ]; then
    wait "$tasks" # the first wait ended with the signal
    code=$?
    [ "$code" -eq 0 ] && scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

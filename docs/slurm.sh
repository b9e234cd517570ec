#!/usr/bin/env bash
# Class prompts on all GPUs of all nodes of a job; both folders are on a disk that the nodes share:
#     sbatch --nodes=2 docs/slurm.sh my_images runs/mine
#SBATCH --job-name=gcpl_lab
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
set -euo pipefail

images="$1" output="$2" gpus="${SLURM_GPUS_ON_NODE:-4}"
read -r main < <(scontrol show hostnames "$SLURM_JOB_NODELIST")  # the first of them
export MAIN_NODE="$main" GPUS="$gpus" IMAGES="$images" OUTPUT="$output" HF_HUB_OFFLINE=1

# One launcher a node, each with its own rank; exec, so that the signal reaches it.
srun bash -c 'exec accelerate launch --multi_gpu --mixed_precision no --dynamo_backend no \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$MAIN_NODE" --main_process_port 29500 \
    -m gcpl_lab train gcpl "$IMAGES" --preset sd-1.4 --output "$OUTPUT" --set checkpoint_every=10'

#!/usr/bin/env bash
# Any recipe on machines that are not under SLURM: call it on each of them.
#
#   bash recipes/image_text/torchrun.sh recipes/image_text/stage1.yaml --trainer.strategy=fsdp2       one machine
#   NODES=2 NODE=0 MASTER=10.0.0.1 bash recipes/image_text/torchrun.sh …stage1.yaml …                  first of two
#   NODES=2 NODE=1 MASTER=10.0.0.1 bash recipes/image_text/torchrun.sh …stage1.yaml …                  second of two
#
# DEVICES is the number of GPUs of each machine; all that nvidia-smi lists by default.
set -euo pipefail
config=$1
shift
devices=${DEVICES:-$(nvidia-smi --list-gpus | wc -l)}
torchrun --nnodes="${NODES:-1}" --node_rank="${NODE:-0}" --nproc_per_node="$devices" \
  --master_addr="${MASTER:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --no-python unidiffuser fit -c "$config" --trainer.num_nodes="${NODES:-1}" --trainer.devices="$devices" "$@"

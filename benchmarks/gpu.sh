#!/usr/bin/env bash
# Training and serving on one GPU against plain TRL and transformers, in under eight minutes: a config of Qwen's kind with random weights, no download.
#
#     bash benchmarks/gpu.sh            # in an environment with dspy-finetune[local] and a torch that sees the GPU
#
# Prints the card, then the rates as JSON lines and their ratios. DEVICE=cpu LAYERS=2 ROWS=64 tries the script.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="${PYTHONPATH:-$PWD}" DEVICE="${DEVICE:-cuda}" LAYERS="${LAYERS:-28}" ROWS="${ROWS:-512}"
[ "$DEVICE" = cpu ] || nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
exec timeout 470 "${PYTHON:-python}" -m benchmarks.support.gpu_training

#!/usr/bin/env bash
# Everything that is measured on GPUs, in one command: tests/gpu/run.sh FLOW_TORCH [OUT]
# Needs a Python with torch 2.11+cu130 (its libraries and headers) and g++; two GPUs for the traces.
# The binary is one that was built against the CPU's libtorch: the GPU half is loaded when it runs.
set -uo pipefail
flow_torch=$(realpath "$1") out=${2:-/tmp/flow-gpu} here=$(dirname "$(realpath "$0")")
mkdir -p "$out"
export LD_LIBRARY_PATH=$(python3 -c 'import torch, os; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
"$flow_torch" --about
"$here/../../stages/dist/nccl/build.sh" "$out" && export FLOW_NCCL="$out/libflow_nccl.so"

echo "== traces, checkpoints and resumption"
timeout 450 python3 "$here/traces.py" "$flow_torch" "$out/traces"

echo "== two agents, as on two machines"
timeout 200 python3 "$here/agents.py" "$flow_torch" "$out/agents"

echo "== where the time goes"
torch=$(python3 -c 'import torch, os; print(os.path.dirname(torch.__file__))')
cuda=${CUDA_HOME:-/usr/local/cuda}
cupti=$(ls "$torch"/../nvidia/cu13/lib/libcupti.so.* "$cuda"/{extras/CUPTI/lib64,lib64}/libcupti.so.* 2>/dev/null | head -1)
g++ -std=c++17 -O2 -fPIC -shared -I"$cuda/include" -I"$cuda/extras/CUPTI/include" -I"$torch/../nvidia/cu13/include" \
    "$here/kernels.cpp" -o "$out/libkernels.so" "$cupti" -Wl,-rpath,"$(dirname "$cupti")" &&
    CUDA_INJECTION64_PATH="$out/libkernels.so" KERNELS="$out/kernels.txt" \
        timeout 200 "$flow_torch" bench --layers 32 --seq 8192 --steps 20 >/dev/null && cat "$out/kernels.txt"

echo "== throughput, Llama-3.1-8B's geometry"
bench() { echo "bench $*"; timeout 200 "$flow_torch" bench "$@" 2>&1 | tee "$out/bench-$(echo "$*" | tr -c 'a-z0-9\n' '_').json"; }
bench --layers 4 --seq 8192
bench --layers 4 --seq 8192 --optimizer
bench --layers 4 --seq 8192 --recompute selective
bench --layers 4 --seq 8192 --recompute full
bench --layers 32 --seq 8192

echo "== checkpoints: how long one holds training up"
bench --layers 4 --hidden 2048 --ffn 8192 --kv 8 --vocab 32000 --seq 4096 --optimizer --save "$out/saves" && rm -rf "$out/saves"
bench --layers 4 --seq 8192 --optimizer --save "$out/saves" && rm -rf "$out/saves"
df -h "$out" | tail -1

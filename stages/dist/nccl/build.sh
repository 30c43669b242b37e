#!/usr/bin/env bash
# Builds libflow_nccl.so against the torch of a Python (with its CUDA and NCCL headers): build.sh OUT_DIR [PYTHON]
# It belongs beside flow-torch, or where FLOW_NCCL says.
set -euo pipefail
out=$1 python=${2:-python3}
torch=$($python -c 'import torch, os; print(os.path.dirname(torch.__file__))')
includes=(-I"$torch/include" -I"$torch/include/torch/csrc/api/include")
# CUDA's headers: of the toolkit, or of the wheels that torch came with. NCCL's lie beside.
for folder in "${CUDA_HOME:-/usr/local/cuda}/include" "$torch"/../nvidia/{cu13,cuda_runtime,nccl}/include; do
    [ -d "$folder" ] && includes+=(-I"$folder")
done
mkdir -p "$out"
g++ -std=c++17 -O2 -fPIC -shared -DUSE_C10D_NCCL -fvisibility=hidden -Wno-interference-size "${includes[@]}" \
    "$(dirname "$0")/nccl.cpp" -o "$out/libflow_nccl.so" \
    -L"$torch/lib" -ltorch_cuda -ltorch_cpu -lc10_cuda -lc10
echo "$out/libflow_nccl.so"

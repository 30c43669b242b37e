#!/usr/bin/env bash
# Generation on a GPU: that CPU and GPU, one rank and two, agree on tokens, and tokens a second. Needs torch 2.11 with CUDA in
# `python3` (its libraries are used), safetensors, and a flow-torch; no transformers, but with it the ratio is measured too.
#
#   tests/gpu/generate.sh FLOW_TORCH [GPUS]
set -euo pipefail
flow_torch=$(realpath "$1") gpus=${2:-1}
root=$(cd "$(dirname "$0")/../.." && pwd)
export LD_LIBRARY_PATH="$(python3 -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))'):${LD_LIBRARY_PATH:-}"
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT

# The reference's prompts: greedy tokens on the device against transformers' on a CPU, in fp32.
python3 - "$root" "$work" <<'PY'
import json, sys
root, work = sys.argv[1:]
for name, cases in json.load(open(f"{root}/tests/golden/generate/reference.json")).items():
    with open(f"{work}/{name}.requests", "w") as file:
        for case in cases["generations"]:
            request = {"tokens": case["prompt"], "max_new_tokens": len(case["made"])}
            if case["penalty"] != 1.0:
                request["sampling"] = {"temperature": 0, "repetition_penalty": case["penalty"]}
            file.write(json.dumps({"generate": request}) + "\n")
PY
for tensor in $(seq 1 "$gpus"); do
    [ "$tensor" -le 2 ] || break
    for name in untied tied; do
        for batch in 1 4; do
            cat > "$work/job.json" <<JSON
{"job": "eval", "node": "e", "model": "$root/tests/golden/training/$name", "requests": "$work/$name.requests",
 "answers": "$work/answers", "max_length": 512, "batch_size": $batch, "device": "cuda", "precision": "fp32", "threads": 4, "tensor": $tensor}
JSON
            port=$((20000 + RANDOM % 20000)) ranks=()
            for rank in $(seq 0 $((tensor - 1))); do
                RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$tensor MASTER_ADDR=127.0.0.1 MASTER_PORT=$port \
                    "$flow_torch" worker "$work/job.json" > /dev/null &
                ranks+=($!)
            done
            for rank in "${ranks[@]}"; do wait "$rank"; done
            python3 - "$root" "$work" "$name" <<'PY'
import json, sys
root, work, name = sys.argv[1:]
cases = json.load(open(f"{root}/tests/golden/generate/reference.json"))[name]["generations"]
answers = [json.loads(line)["generate"]["tokens"] for line in open(f"{work}/answers")]
same = sum(a == b for c, x in zip(cases, answers) for a, b in zip(c["made"], x))
print(f"{name}: {same} of {sum(len(c['made']) for c in cases)} greedy tokens are the CPU reference's")
PY
        done
    done
done
alone=$(python3 -c 'import transformers' 2> /dev/null || echo --alone)
python3 "$root/tests/bench/generate.py" --flow-torch "$flow_torch" --device cuda --precision bf16 --hidden 4096 --layers 16 \
    --vocab 128256 --prompt 1024 --new 128 --batch 1,8,32 $alone

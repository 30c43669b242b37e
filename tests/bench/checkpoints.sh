#!/bin/sh
# How fast a checkpoint is converted, both ways, beside `cp` of the same bytes in the same run; and the memory it takes.
#
#   tests/bench/checkpoints.sh [LAYERS] [DIRECTORY] [FLOW] [ROUNDS]
#
# Each round has `cp`, one way, `cp`, the other way, in an empty cache; of three rounds the best counts.
# The model has the geometry of Llama 3.1 8B with LAYERS layers (32: 16 GB; 5: 4.3 GB) of random bytes, in DIRECTORY, which
# needs four times its size and is removed in the end. Everything is in the page cache if it fits; each `cp` is followed
# by `sync` of what it wrote, since a conversion ends with its bytes on the disk.
set -eu
layers=${1:-5}
work=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/checkpoints.XXXXXX")
rounds=${4:-3}
flow=$(realpath "${3:-target/release/flow}")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
python3 - "$layers" <<'PYTHON'
import json, os, struct, sys
layers, h, f, kv, v = int(sys.argv[1]), 4096, 14336, 1024, 128256
os.mkdir("hf")
config = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=v, hidden_size=h, intermediate_size=f,
              num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5,
              rope_theta=500000.0, max_position_embeddings=131072, tie_word_embeddings=False, torch_dtype="bfloat16")
json.dump(config, open("hf/config.json", "w"))
shapes = {"model.embed_tokens.weight": [v, h], "model.norm.weight": [h], "lm_head.weight": [v, h]}
for i in range(layers):
    p = f"model.layers.{i}."
    shapes |= {p + "input_layernorm.weight": [h], p + "post_attention_layernorm.weight": [h], p + "self_attn.q_proj.weight": [h, h],
               p + "self_attn.k_proj.weight": [kv, h], p + "self_attn.v_proj.weight": [kv, h], p + "self_attn.o_proj.weight": [h, h],
               p + "mlp.gate_proj.weight": [f, h], p + "mlp.up_proj.weight": [f, h], p + "mlp.down_proj.weight": [h, f]}
at, header = 0, {}
for name, shape in sorted(shapes.items()):
    size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    header[name] = dict(dtype="BF16", shape=shape, data_offsets=[at, at + size])
    at += size
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
block = os.urandom(1 << 26)
with open("hf/model.safetensors", "wb") as out:
    out.write(struct.pack("<Q", len(text)) + text)
    while at > 0:
        at -= out.write(block[:min(at, len(block))])
PYTHON
cat > convert.toml <<'TOML'
[stage.megatron]
kind = "hf-to-megatron"
input = "hf"
[stage.back]
kind = "megatron-to-hf"
input = "megatron"
source = "hf"
TOML
seconds() { start=$(date +%s%N); "$@"; echo $((($(date +%s%N) - start) / 1000000)); }
copy() { cp hf/model.safetensors copy; sync copy; }
export FLOW_CACHE_DIR="$work/cache"
echo "bytes: $(stat -c %s hf/model.safetensors)"
cat hf/model.safetensors > /dev/null
convert() {
    python3 - "$flow" "$1" <<'PYTHON'
import json, resource, subprocess, sys
flow, stage = sys.argv[1:]
run = subprocess.run([flow, "run", "convert.toml", stage, "--json"], stdout=subprocess.PIPE, text=True)
assert run.returncode == 0, run.stdout
ended = [json.loads(line) for line in run.stdout.splitlines() if '"event":"finished"' in line and f'"node":"{stage}"' in line]
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
print(f"{stage}: {1000 * ended[0]['seconds']:.0f} ms with hashing, {1000 * ended[0]['cost']:.0f} ms without; peak RSS {peak} MB", flush=True)
PYTHON
}
for _ in $(seq "$rounds"); do
    for stage in megatron back; do
        echo "cp: $(seconds copy) ms"
        rm copy
        convert "$stage"
    done
    chmod -R u+w cache
    rm -rf cache
done

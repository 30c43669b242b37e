#!/bin/sh
# How fast a checkpoint is converted, both ways, beside `cp` of the same bytes in the same run; and the memory it takes.
#
#   FLOW=path/to/flow tests/bench/checkpoints.sh [GB] [DIRECTORY] [ROUNDS]
#
# The model has the geometry of Llama 3.1 8B with as many layers as come nearest to so many GB (16: all 32) of random bytes, in
# DIRECTORY, which needs three times its size and is removed in the end. It needs a `flow`, a shell with GNU's tools and
# Python 3 without packages.
#
# Each of the rounds (3) has `cp`, one way, `cp`, the other way, in an empty cache. `cp` leaves its bytes to the kernel, and a
# conversion ends with its bytes on the disk: so `cp` is told alone, and with `sync` of its file. Of a conversion are told the
# stage itself (with its `sync`), the stage with the digests of what it wrote and its place in the cache, and the whole of
# `flow run`, which hashes the source, too, as each round's cache has never seen it. The source is read once before it all: where
# it fits into the page cache, nobody reads from the disk.
set -eu
size=${1:-4}
work=$(mktemp -d "${2:-${TMPDIR:-/tmp}}/checkpoints.XXXXXX")
rounds=${3:-3}
flow=$(realpath "${FLOW:-target/release/flow}")
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"
python3 - "$size" <<'PYTHON'
import json, os, shutil, struct, sys
h, f, kv, v = 4096, 14336, 1024, 128256
layer = {"input_layernorm": [h], "post_attention_layernorm": [h], "self_attn.q_proj": [h, h], "self_attn.k_proj": [kv, h],
         "self_attn.v_proj": [kv, h], "self_attn.o_proj": [h, h], "mlp.gate_proj": [f, h], "mlp.up_proj": [f, h],
         "mlp.down_proj": [h, f]}
elements = lambda shape: shape[0] * (shape[1] if len(shape) > 1 else 1)
layers = max(1, round((float(sys.argv[1]) * 1e9 - 4 * v * h) / (2 * sum(map(elements, layer.values())))))
shapes = {"model.embed_tokens.weight": [v, h], "model.norm.weight": [h], "lm_head.weight": [v, h]}
shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(layers) for name, shape in layer.items()}
config = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=v, hidden_size=h, intermediate_size=f,
              num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5,
              rope_theta=500000.0, max_position_embeddings=131072, tie_word_embeddings=False, torch_dtype="bfloat16")
os.mkdir("hf")
json.dump(config, open("hf/config.json", "w"))
at, header = 0, {}
for name, shape in sorted(shapes.items()):
    end = at + 2 * elements(shape)
    header[name] = dict(dtype="BF16", shape=shape, data_offsets=[at, end])
    at = end
free = shutil.disk_usage(".").free
if free < 3 * at + (1 << 28):
    sys.exit(f"{at} bytes three times do not fit into {free} bytes of {os.getcwd()}: name a smaller size or another directory")
print(f"{layers} layers, {at} bytes; {os.cpu_count()} cores", flush=True)
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
block = os.urandom(1 << 26)
with open("hf/model.safetensors", "wb") as out:
    out.write(struct.pack("<Q", len(text)) + text)
    while at > 0:
        at -= out.write(block[:min(at, len(block))])
    out.flush()
    os.fsync(out)
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
export FLOW_CACHE_DIR="$work/cache"
now() { date +%s%N; }
copy() {
    sync
    start=$(now)
    cp hf/model.safetensors copy
    copied=$(now)
    sync copy
    echo "cp: $(((copied - start) / 1000000)) ms, on the disk after $((($(now) - start) / 1000000)) ms"
    rm copy
    sync
}
convert() {
    python3 - "$flow" "$1" <<'PYTHON'
import json, resource, subprocess, sys, time
flow, stage = sys.argv[1:]
start = time.monotonic()
run = subprocess.run([flow, "run", "convert.toml", stage, "--json"], stdout=subprocess.PIPE, text=True)
wall = time.monotonic() - start
assert run.returncode == 0, run.stdout
events = [json.loads(line) for line in run.stdout.splitlines()]
[ended] = [event for event in events if event["event"] == "finished" and event["node"] == stage]
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{stage}: {1000 * ended['cost']:.0f} ms, {1000 * ended['seconds']:.0f} ms with digests, {1000 * wall:.0f} ms the whole run; "
      f"{usage.ru_utime + usage.ru_stime:.1f} s of CPU, peak RSS {usage.ru_maxrss / 1024:.0f} MB", flush=True)
PYTHON
}
cat hf/model.safetensors > /dev/null
for _ in $(seq "$rounds"); do
    for stage in megatron back; do
        copy
        convert "$stage"
    done
    chmod -R u+w cache
    rm -rf cache
done

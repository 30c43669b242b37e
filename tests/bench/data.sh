#!/bin/sh
# How fast text becomes token ids: flow's stage beside Hugging Face's tokenizers and gigatoken, on the same documents in one
# run, and what the bytes alone cost.
#
#   tests/bench/data.sh [SHARD.jsonl.gz] [TOKENIZER_DIRECTORY]
#
# PYTHON (python3) runs those of the peers that it has: pip install tokenizers gigatoken. What flow gives is compared with
# the reference's ids by `cargo test -p flow-data tokenize::`; what is counted here is time.
set -eu
cd "$(dirname "$0")/../.."
shard=$(realpath "${1:-examples/ja_wiki_mini/train_0.jsonl.gz}")
tokenizer=$(realpath "${2:-examples/ja_wiki_mini/tokenizer}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cargo bench -q -p flow-data --bench tokenize --no-run
gzip -dc "$shard" > "$work/shard.jsonl"
bytes=$(stat -c %s "$work/shard.jsonl")

# The line of one command: MB/s of uncompressed JSON lines, by the clock and by CPU time.
measure() {
    name=$1
    shift
    start=$(date +%s%N)
    TIMEFORMAT='%U %S' bash -c 'time "$@" > /dev/null' - "$@" 2> "$work/time"
    end=$(date +%s%N)
    awk -v name="$name" -v bytes="$bytes" -v ns="$((end - start))" '{ cpu = $1 + $2; if (cpu < 0.001) cpu = 0.001
        printf "%50s %8.1f MB/s %8.3f s %8.1f MB per CPU second\n", name, bytes * 1000 / ns, ns / 1e9, bytes / 1e6 / cpu }' "$work/time" >&2
}

measure "copy of the uncompressed bytes" cp "$work/shard.jsonl" "$work/copy"
measure "gzip -dc" gzip -dc "$shard"
cargo bench -q -p flow-data --bench tokenize -- "$shard" "$tokenizer"
exec "${PYTHON:-python3}" tests/bench/tokenizers_peers.py "$work/shard.jsonl" "$tokenizer/tokenizer.json"

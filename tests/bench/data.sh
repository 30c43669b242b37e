#!/bin/sh
# How fast text becomes token ids: flow's stage beside Hugging Face's tokenizers, on the same documents in one run, and
# what the bytes alone cost.
#
#   tests/bench/data.sh [SHARD.jsonl.gz] [TOKENIZER_DIRECTORY]
#
# Where the time goes: nearly all of it is byte-pair merging. Reading gzip and finding the text in JSON are below a tenth
# of it and happen beside it; the floor of this design is the encoder's own speed times the threads.
set -eu
cd "$(dirname "$0")/../.."
shard=$(realpath "${1:-examples/ja_wiki_mini/train_0.jsonl.gz}")
tokenizer=$(realpath "${2:-examples/ja_wiki_mini/tokenizer}")

seconds() {
    start=$(date +%s%N)
    "$@" > /dev/null
    echo "$((($(date +%s%N) - start) / 1000000))"
}

echo "gzip -dc:            $(seconds gzip -dc "$shard") ms" >&2
echo "cat of the file:     $(seconds cat "$shard") ms" >&2
exec cargo bench -q -p flow-data --bench tokenize -- "$shard" "$tokenizer"

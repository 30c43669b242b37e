"""Peers of the tokenize stage that live in Python: SHARD.jsonl TOKENIZER.json; those that are not installed are passed over.
Called by data.sh.

Each encodes the shard once, with a tokenizer that was just loaded: gigatoken remembers what it has seen, and a second round
over the same text is five times as fast as any text is."""

import json
import os
import sys
import time


def report(name, size, work):
    began, used = time.perf_counter(), sum(os.times()[:2])
    tokens = work()
    wall, cpu = time.perf_counter() - began, sum(os.times()[:2]) - used
    line = f"{name:>50} {size / 1e6 / wall:8.1f} MB/s {wall:8.3f} s {size / 1e6 / cpu:8.1f} MB per CPU second"
    print(f"{line}, {tokens} tokens", file=sys.stderr)


def main():
    shard, tokenizer = sys.argv[1:]
    size = os.path.getsize(shard)
    with open(shard) as lines:
        texts = [json.loads(line)["text"] for line in lines]
    try:
        import tokenizers

        encode = tokenizers.Tokenizer.from_file(tokenizer).encode_batch_fast
        report("Python tokenizers encode_batch_fast", size, lambda: sum(len(ids) for ids in encode(texts)))
    except ImportError:
        print("tokenizers is not installed", file=sys.stderr)
    try:
        import gigatoken

        peer = gigatoken.Tokenizer(tokenizer)
        source = gigatoken.JsonlFileSource([shard], field="text")
        name = "gigatoken encode_files, .jsonl, without BOS"
        report(name, size, lambda: sum(len(ids) for ids in peer.encode_files(source)))
    except ImportError:
        print("gigatoken is not installed", file=sys.stderr)


main()

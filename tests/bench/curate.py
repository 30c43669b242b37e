#!/usr/bin/env python3
"""How fast documents are filtered and their duplicates found: flow's stages beside datatrove and datasketch, on the same
documents in one run, by CPU time.

    tests/bench/curate.py FLOW [SHARD.jsonl.gz ...]

FLOW is the program; the shards of examples/ja_wiki_mini if none are named. Peers that are not installed are passed over:
pip install datatrove nltk regex datasketch. What datatrove takes for words comes from spaCy or Sudachi; here it gets the
stage's own, by a regular expression, which is faster than either. It and datasketch get texts that were read before; flow
reads compressed files and writes compressed files. All of them have one thread."""

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = """
[stage.filter]
kind = "filter"
input = {shards}
workers = 1
gopher_quality = true
gopher_repetition = true
c4 = true
[stage.language]
kind = "filter"
input = {shards}
workers = 1
language = {{ keep = ["ja"] }}
[stage.dedup]
kind = "dedup"
input = {shards}
workers = 1
[stage.exact]
kind = "dedup"
input = {shards}
workers = 1
near = false
[stage.split]
kind = "split"
input = {shards}
workers = 1
validation = 0.01
key = "meta.id"
"""


def cpu(who):
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def report(name, size, seconds, note=""):
    print(f"{name:>44} {size / 1e6 / seconds:8.1f} MB per CPU second {seconds:8.2f} s {note}")


def measure(name, size, work):
    before = cpu(resource.RUSAGE_SELF)
    note = work()
    report(name, size, cpu(resource.RUSAGE_SELF) - before, note)


def flow(program, shards, size):
    with tempfile.TemporaryDirectory() as directory:
        pipeline = Path(directory) / "p.toml"
        pipeline.write_text(PIPELINE.format(shards=json.dumps([str(shard) for shard in shards])))
        env = dict(os.environ, FLOW_CACHE_DIR=f"{directory}/cache")
        run = [program, "run", str(pipeline)]
        began = cpu(resource.RUSAGE_CHILDREN)
        subprocess.run([program, "plan", str(pipeline)], env=env, check=True, capture_output=True)
        start = cpu(resource.RUSAGE_CHILDREN) - began
        for stage in ["split", "exact", "language", "filter", "dedup"]:
            before = cpu(resource.RUSAGE_CHILDREN)
            subprocess.run([*run, "--jobs", "1", "--only", stage], env=env, check=True, capture_output=True)
            report(f"flow {stage}", size, cpu(resource.RUSAGE_CHILDREN) - before - start)


def datatrove(texts, size):
    import regex

    import datatrove.pipeline.filters.c4_filters as c4
    import datatrove.pipeline.filters.gopher_quality_filter as quality
    import datatrove.pipeline.filters.gopher_repetition_filter as repetition
    from datatrove.data import Document
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature

    pattern = regex.compile(
        r"\p{Han}{1,2}|[\p{Hiragana}ー]{1,4}|[\p{Katakana}ー]+|[^\s\p{Han}\p{Hiragana}\p{Katakana}ー]+"
    )
    words = lambda text, language=None: pattern.findall(text)
    quality.split_into_words = repetition.split_into_words = words
    c4.split_into_sentences = lambda line, language=None: line.split("。")
    c4.END_PUNCTUATION = (*c4.END_PUNCTUATION, "。", "」")
    filters = [
        quality.GopherQualityFilter(min_avg_word_length=None, min_stop_words=None),
        repetition.GopherRepetitionFilter(),
        c4.C4QualityFilter(min_words_per_line=1),
    ]

    def judge():
        kept = sum(all(one.filter(Document(text=text, id="")) is True for one in filters) for text in texts)
        return f"{kept} of {len(texts)} kept"

    measure("datatrove, the same filters", size, judge)
    signer = MinhashDedupSignature("/tmp", MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8))
    hashed = signer._hash_func
    signer._hash_func = lambda shingle: hashed(shingle.encode())  # what xxhash wants since its version 4
    signer.word_tokenizer = type("Words", (), {"word_tokenize": staticmethod(words)})

    def sign():
        for text in texts:
            shingles = signer.get_shingles(text)
            if shingles.size:
                signer.get_signature(shingles)
        return "signatures alone"

    measure("datatrove minhash, 14 × 8", size, sign)

    import datasketch

    def sketch():
        lsh = datasketch.MinHashLSH(num_perm=112, params=(14, 8))
        for i, text in enumerate(texts):
            cut = words(text.lower())
            minhash = datasketch.MinHash(num_perm=112)
            minhash.update_batch({" ".join(cut[i : i + 5]).encode() for i in range(len(cut) - 4)})
            lsh.query(minhash)
            lsh.insert(i, minhash)
        return ""

    measure("datasketch MinHashLSH, 14 × 8", size, sketch)


def main():
    program, *shards = sys.argv[1:]
    shards = [Path(shard).resolve() for shard in shards] or sorted((ROOT / "examples/ja_wiki_mini").glob("train_*.jsonl.gz"))
    lines = [line for shard in shards for line in gzip.open(shard, "rb")]
    size = sum(map(len, lines))
    print(f"{len(lines)} documents, {size / 1e6:.1f} MB of JSON lines")
    flow(os.path.abspath(program), shards, size)
    try:
        datatrove([json.loads(line)["text"] for line in lines], size)
    except ImportError as error:
        print(error)


main()

"""Writes manifest.json: sha256 and counts of what Megatron's preprocess_data.py makes of the inputs here.

An implementation of its own, plain and slow, of what tools/preprocess_data.py of Megatron-LM does with a Hugging Face
tokenizer. It is trusted because it gives the very bytes that Megatron itself wrote for two shards, which it checks first.
"""

import gzip
import hashlib
import io
import json
import pathlib
import struct

from transformers import AutoTokenizer

HERE = pathlib.Path(__file__).parent
EXAMPLE = HERE.parents[2] / "examples" / "ja_wiki_mini"


def preprocess(content, tokenizer, append_eod=True, special=True):
    """Bytes of a JSONL file -> bytes of the .bin, bytes of the .idx, counts."""
    code, letter, size = (8, "H", 2) if len(tokenizer) < 65500 else (4, "i", 4)
    data, lengths, documents = bytearray(), [], [0]
    # Text mode, as there: `\r` and `\r\n` end lines too.
    for line in io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"):
        text = json.loads(line)["text"]
        sequences = []
        for sentence in text if isinstance(text, list) else [text]:
            ids = tokenizer(sentence, add_special_tokens=special)["input_ids"]
            if ids:
                sequences.append(ids)
        if sequences and append_eod:
            sequences[-1].append(tokenizer.eos_token_id)
        for ids in sequences:
            data += struct.pack(f"<{len(ids)}{letter}", *ids)
            lengths.append(len(ids))
        documents.append(len(lengths))
    pointers, at = [], 0
    for length in lengths:
        pointers.append(at)
        at += length * size
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(lengths), len(documents))
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    index += struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(documents)}q", *documents)
    counts = {"documents": len(documents) - 1, "sequences": len(lengths), "tokens": sum(lengths)}
    return bytes(data), index, counts


def main():
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLE / "tokenizer")
    shard = lambda name: gzip.decompress((EXAMPLE / f"{name}.jsonl.gz").read_bytes())
    for name in ["train_0", "validation_0"]:
        made = preprocess(shard(name), tokenizer)
        for ending, content in zip(["bin", "idx"], made):
            golden = (HERE / f"{name}_text_document.{ending}").read_bytes()
            assert content == golden, f"{name}.{ending} is not what Megatron wrote"

    shards = [shard(f"train_{i}") for i in range(3)]
    runs = {f"train_{i}": (content, {}) for i, content in enumerate(shards)}
    runs["train_all"] = (b"".join(shards), {})
    runs["validation_0"] = (shard("validation_0"), {})
    runs["validation_0_noeod"] = (shard("validation_0"), {"append_eod": False})
    runs["validation_0_nobos"] = (shard("validation_0"), {"special": False})
    for name in ["edge", "nofinalnl", "cr", "empty"]:
        content = (HERE / f"{name}.jsonl").read_bytes()
        runs[name] = (content, {})
        runs[f"{name}_plain"] = (content, {"append_eod": True, "special": False})
    good = b"".join(line for i, line in enumerate((HERE / "bad.jsonl").read_bytes().splitlines(True)) if i % 2 == 0)
    runs["bad_skipped"] = (good, {})
    manifest = {}
    for name, (content, options) in runs.items():
        data, index, counts = preprocess(content, tokenizer, **options)
        digest = lambda content: hashlib.sha256(content).hexdigest()
        manifest[name] = {"bin": digest(data), "idx": digest(index), **counts}
    (HERE / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


main()

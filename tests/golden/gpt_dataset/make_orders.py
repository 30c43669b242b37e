"""Writes orders.json: what megatron-core's dataset builder gives for many blends, splits, sizes, lengths and seeds.

Needs megatron-core (0.16.1 was used) with its helpers compiled, and the .bin/.idx of ../preprocess as copies in a
folder that may be written to (the builder keeps caches there):

    python make_orders.py FOLDER > orders.json

A case: sources (prefixes, weights or null), splits ("98,1,1", or null: the first list of sources is for training,
the second for validation), sizes, seq_length, seed. For each of train and validation: the length, and the sha256 of
the first 150 samples and the last one, each tokens + last label as int64 little-endian, one after the other.
"""

import hashlib
import json
import random
import sys
import types

import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

FOLDER = sys.argv[1]
torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
A, B = "train_0_text_document", "validation_0_text_document"


def blend(sources):
    return None if sources is None else ([f"{FOLDER}/{p}" for p in sources["prefixes"]], sources["weights"])


def build(case):
    tokenizer = types.SimpleNamespace(unique_identifiers={"class": "none"}, eod=0, pad=-1, bos=1, vocab_size=8192)
    common = dict(
        random_seed=case["seed"], sequence_length=case["seq_length"], tokenizer=tokenizer, reset_position_ids=False,
        reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
        path_to_cache=f"{FOLDER}/cache",
    )
    if case["splits"]:
        config = GPTDatasetConfig(blend=blend(case["train"]), split=case["splits"], **common)
    else:
        config = GPTDatasetConfig(
            blend_per_split=[blend(case["train"]), blend(case["validation"]), None], **common
        )
    sizes = [*case["sizes"], 0]
    built = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    return [digest(dataset) for dataset in built[:2]]


def digest(dataset):
    if dataset is None:
        return None
    sha = hashlib.sha256()
    for i in [*range(min(150, len(dataset))), len(dataset) - 1]:
        sample = dataset[i]
        tokens = torch.cat([sample["tokens"], sample["labels"][-1:]])
        sha.update(tokens.to(torch.int64).numpy().tobytes())
    return {"len": len(dataset), "sha256": sha.hexdigest()}


def cases():
    rng = random.Random(7)
    one = lambda p: {"prefixes": [p], "weights": None}
    # Unweighted sources, one of them twice; enough for one epoch only.
    for seq, sizes in [(128, (6000, 100)), (512, (1500, 40)), (64, (12000, 7))]:
        both = {"prefixes": [A, B], "weights": None}
        yield dict(train=both, validation=one(B), splits=None, sizes=sizes, seq_length=seq, seed=3)
        yield dict(train=both, validation=both, splits=None, sizes=sizes, seq_length=seq, seed=11)
        yield dict(train={"prefixes": [A, B, A], "weights": None}, validation=None, splits="90,10,0", sizes=sizes,
                   seq_length=seq, seed=5)
    # Weighted ones.
    for weights in [[0.7, 0.3], [30, 70], [1, 1, 1], [0.1, 0.2, 0.7], [5, 2, 1]]:
        mix = {"prefixes": [A, B, A][: len(weights)], "weights": weights}
        yield dict(train=mix, validation=mix, splits=None, sizes=(4000, 333), seq_length=128, seed=1234)
        yield dict(train=mix, validation=None, splits="98,2,0", sizes=(4000, 333), seq_length=96, seed=1)
    # A weight where there is one source alone.
    weighted = {"prefixes": [A], "weights": [2.0]}
    yield dict(train=weighted, validation=None, splits="95,5,0", sizes=(9000, 500), seq_length=128, seed=9)
    yield dict(train=weighted, validation=one(B), splits=None, sizes=(9000, 500), seq_length=128, seed=9)
    # One source, any number of epochs: on both sides of the 80% of the last one.
    for _ in range(24):
        seq = rng.choice([16, 31, 100, 512, 1024])
        size = int(840709 / seq * rng.uniform(0.1, 4.0))
        splits = rng.choice(["98,1,1", "9,1", "99.5,0.5,0", "1,1,1"])
        yield dict(train=one(A), validation=None, splits=splits, sizes=(size, rng.randrange(1, 400)),
                   seq_length=seq, seed=rng.randrange(2**32))


out = []
for case in cases():
    train, validation = build(case)
    out.append({**case, "result": [train, validation]})
print(json.dumps(out, indent=1))

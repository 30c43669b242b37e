"""Which of some planted near duplicates datasketch finds: the golden file of the `dedup` stage.

    pip install datasketch regex; python3 tests/golden/curate/datasketch_clusters.py

writes planted.jsonl.gz: documents composed of words drawn by lot, English-looking and Japanese-looking ones, some of them
copied letter for letter, some with other case and space, some with a few words changed, some with half of them changed; and
clusters.json: for each document the first of its cluster, by MinHashLSH with 14 bands of 8 rows over shingles of five words,
clusters joined where they meet; the Jaccard similarities of all pairs that have any (exact, not estimated); and the bands and
rows that datasketch takes for some similarities, of 128 hashes."""

import gzip
import json
import random
from pathlib import Path

import regex
from datasketch import MinHash, MinHashLSH
from datasketch.lsh import _optimal_param

HERE = Path(__file__).parent
WORDS = regex.compile(r"\p{Han}{1,2}|[\p{Hiragana}ー]{1,4}|[\p{Katakana}ー]+|[^\s\p{Han}\p{Hiragana}\p{Katakana}ー]+")


def vocabulary(random, japanese):
    if japanese:
        kanji = [chr(random.randint(0x4E00, 0x9000)) + chr(random.randint(0x4E00, 0x9000)) for _ in range(900)]
        return [word + particle for word in kanji for particle in ["は", "の"]]
    return ["".join(random.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(random.randint(2, 9))) for _ in range(2000)]


def compose(random):
    documents = []
    for japanese in [False, True]:
        known = vocabulary(random, japanese)
        between = "" if japanese else " "
        for _ in range(40):
            words = [random.choice(known) for _ in range(random.randint(100, 240))]
            documents.append(between.join(words))
            for _ in range(random.choice([0, 0, 1, 2])):
                how = random.choice(["copy", "case", "few", "few", "half"])
                other = list(words)
                changed = {"few": max(1, len(words) // 250), "half": len(words) // 6}.get(how, 0)
                for at in random.sample(range(len(words)), changed):
                    other[at] = random.choice(known)
                text = between.join(other)
                documents.append(text if how != "case" else "  " + text.upper() + ".\n")
    random.shuffle(documents)
    return documents


def shingles(text):
    words = ["".join(c for c in word if c.isalnum()) for word in WORDS.findall(text.lower())]
    words = [word for word in words if word]
    return {" ".join(words[i : i + 5]) for i in range(len(words) - 4)}


def main():
    documents = compose(random.Random(11))
    sets = [shingles(text) for text in documents]
    lsh = MinHashLSH(num_perm=112, params=(14, 8))
    first = list(range(len(documents)))

    def find(i):
        while first[i] != i:
            i = first[i]
        return i

    for i, of_it in enumerate(sets):
        minhash = MinHash(num_perm=112, seed=1)
        minhash.update_batch([shingle.encode() for shingle in of_it])
        for other in lsh.query(minhash):
            one, two = sorted([find(other), find(i)])
            first[two] = one
        lsh.insert(i, minhash)
    pairs = {}
    for i in range(len(sets)):
        for j in range(i):
            if sets[i] & sets[j]:
                pairs[f"{j} {i}"] = round(len(sets[i] & sets[j]) / len(sets[i] | sets[j]), 4)
    with open(HERE / "planted.jsonl.gz", "wb") as out, gzip.GzipFile(fileobj=out, mode="wb", mtime=0, filename="") as out:
        for text in documents:
            out.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
    parameters = {str(s): _optimal_param(s, 128, 0.5, 0.5) for s in [0.5, 0.7, 0.8, 0.9]}
    golden = {"first": [find(i) for i in range(len(documents))], "jaccard": pairs, "parameters": parameters}
    (HERE / "clusters.json").write_text(json.dumps(golden) + "\n")
    kept = sum(find(i) == i for i in range(len(documents)))
    print(len(documents), "documents,", kept, "kept; similarities:", sorted(pairs.values()), parameters)


main()

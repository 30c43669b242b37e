#!/usr/bin/env python3
"""How fast gc is on a cache of many objects: makes one of N objects, ten a result, and measures `flow cache gc`.

    target/peers/bin/python tests/bench/gc.py [--flow target/release/flow] [N]      (needs blake3 from pip)
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from blake3 import blake3

ROOT = Path(__file__).resolve().parents[2]
PER_RESULT = 10


def write(path, data):
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o444)
    os.write(file, data)
    os.close(file)


def fill(root, n):
    for kind in ["objects", "results"]:
        for shard in range(256):
            os.makedirs(f"{root}/{kind}/{shard:02x}")
    for result in range(n // PER_RESULT):
        names = [blake3(f"{result} {i}".encode()).hexdigest() for i in range(PER_RESULT)]
        for i, name in enumerate(names):
            write(f"{root}/objects/{name[:2]}/{name}", f"{result} {i}".encode())
        entries = [{"name": f"f{i}", "digest": d, "size": len(f"{result} {i}")} for i, d in enumerate(names)]
        parts = {"format": 1, "inputs": {}, "kind": "bench", "params": {"n": result}, "version": 1}
        key = blake3(json.dumps(parts, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
        record = {"format": 1, "key": key, "parts": parts, "tree": {"entries": entries}, "cost": 1.0, "created": 0.0}
        record |= {"host": "bench", "version": "0.1.0"}
        write(f"{root}/results/{key[:2]}/{key}.json", json.dumps(record).encode())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="?", type=int, default=1_000_000)
    parser.add_argument("--flow", default=str(ROOT / "target/release/flow"))
    parser.add_argument("--dir", help="where the cache is made; needs 5 GB for a million objects")
    args = parser.parse_args()
    root = tempfile.mkdtemp(dir=args.dir)
    try:
        began = time.perf_counter()
        fill(root, args.objects)
        print(f"{args.objects} objects made in {time.perf_counter() - began:.1f} s")
        half = str(args.objects * 4)
        for what in [["--dry-run"], ["--max-size", half, "--dry-run"], ["--max-size", half]]:
            began = time.perf_counter()
            command = [args.flow, "cache", "gc", *what]
            process = subprocess.Popen(
                command, env={**os.environ, "FLOW_CACHE_DIR": root}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            said = process.stderr.read().decode().strip()
            _, status, usage = os.wait4(process.pid, 0)
            wall, cpu = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
            print(f"gc {' '.join(what)}: {wall:.1f} s wall, {cpu:.1f} s cpu, {usage.ru_maxrss // 1024} MB; {said}")
            assert status == 0
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How fast results go to a team's cache and come from it: N small ones and one of some GB, through a directory and S3.

    target/peers/bin/python tests/bench/team.py [--flow target/release/flow] [--s3s target/servers/s3s/bin/s3s-fs]
        [--gib 1] [N]                                                           (needs blake3 from pip)
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from blake3 import blake3

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret"}


def fill(root, contents):
    for n, content in enumerate(contents):
        digest = blake3(content).hexdigest()
        parts = {"format": 1, "inputs": {}, "kind": "bench", "params": {"n": n, "of": digest}, "version": 1}
        key = blake3(json.dumps(parts, separators=(",", ":"), sort_keys=True).encode()).hexdigest()
        record = {"format": 1, "key": key, "parts": parts, "cost": 1.0, "created": 0.0}
        record |= {"host": "bench", "version": "0.1.0"}
        record |= {"tree": {"entries": [{"name": "f", "digest": digest, "size": len(content)}]}}
        files = {f"objects/{digest[:2]}/{digest}": content, f"results/{key[:2]}/{key}.json": json.dumps(record).encode()}
        for name, data in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o444)


def spent(server):
    fields = Path(f"/proc/{server.pid}/stat").read_text().rsplit(") ")[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def timed(server, what, n, size, run):
    os.sync()
    served = spent(server)
    load = os.getloadavg()[0]
    cpu, began = os.times(), time.monotonic()
    run()
    took, after = time.monotonic() - began, os.times()
    cpu = after.children_user + after.children_system - cpu.children_user - cpu.children_system
    served = spent(server) - served
    print(
        f"{what:38} {took:7.2f} s wall {cpu:7.2f} s CPU {n / took:9.0f} results/s {size / took / 1e6:8.1f} MB/s"
        f"   server {served:5.2f} s CPU   load {load:.1f}",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--flow", default=ROOT / "target/release/flow")
    parser.add_argument("--s3s", default=ROOT / "target/servers/s3s/bin/s3s-fs")
    parser.add_argument("--gib", type=float, default=1)
    parser.add_argument("n", nargs="?", type=int, default=10_000)
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="flow-team-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (directory / "s3/team").mkdir(parents=True)
    keys = ["--access-key", KEYS["AWS_ACCESS_KEY_ID"], "--secret-key", KEYS["AWS_SECRET_ACCESS_KEY"]]
    server = subprocess.Popen(
        [args.s3s, "--host", "127.0.0.1", "--port", str(port), *keys, directory / "s3"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)

    def flow(cache, url, *words):
        (directory / "flow.toml").write_text(
            f'[remote]\nurl = "{url}"\nmode = "read-write"\nendpoint = "http://127.0.0.1:{port}"\nregion = "us-east-1"\n')
        env = {**os.environ, **KEYS, "FLOW_CACHE_DIR": str(cache)}
        subprocess.run([args.flow, "cache", *words], cwd=directory, env=env, check=True, stderr=subprocess.DEVNULL)

    try:
        small = [b"%d\n" % n * 10 for n in range(args.n)]
        for name, contents in [("small", small), ("big", [os.urandom(int(args.gib * (1 << 30)))])]:
            n, size = len(contents), sum(map(len, contents))
            cache = directory / name
            fill(cache, contents)
            # Not timed: it reads every object once, as the run that made them did.
            flow(cache, directory, "verify")
            timed(server, f"{name}: cp -r && sync", n, size, lambda: subprocess.run(
                f"cp -r {cache} {cache}-copy && sync", shell=True, check=True))
            for kind, url in [("a directory", directory / f"{name}-team"), ("s3s-fs", f"s3://team/{name}")]:
                if kind == "a directory":
                    url.mkdir()
                timed(server, f"{name}: flow cache push, {kind}", n, size, lambda: flow(cache, url, "push"))
                timed(server, f"{name}: again", n, size, lambda: flow(cache, url, "push"))
                timed(server, f"{name}: flow cache pull, {kind}", n, size, lambda: flow(f"{cache}-{kind[:2]}", url, "pull"))
                shutil.rmtree(f"{cache}-{kind[:2]}")
            shutil.rmtree(cache)
    finally:
        server.kill()
        shutil.rmtree(directory)


main()

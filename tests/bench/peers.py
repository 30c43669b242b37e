#!/usr/bin/env python3
"""The same work for flow, ninja, make, snakemake and DVC, side by side: one command, one table.

N stages, each `head -c 64` of one small file: leaves, and a chain of min(100, N/5). Each tool runs all of it once, then
with nothing changed, with one leaf changed, and with all outputs deleted (flow and DVC put them back, the others make
them again). Wall and CPU time, the most memory, and the ratio of the wall times to flow's in the same round. What is not
installed is left out, and what would take a tool hours too (--cap).

    python3 tests/bench/peers.py --install          once: snakemake, DVC, ninja (and blake3, for gc.py and --known) into a
                                                    throw-away venv in target/peers
    python3 tests/bench/peers.py                    100, 1,000 and 10,000 stages
    python3 tests/bench/peers.py 1000 --tools flow,ninja
    target/peers/bin/python tests/bench/peers.py 100000 --tools flow --known      without the minutes of a first run

flow is built with `cargo build --release`, or named with --flow.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / "target/peers"
CORES = os.cpu_count() or 1


def source(i, n):
    """What stage i takes: the chain is the first min(100, N/5) stages."""
    return f"out/{i - 1}" if 0 < i < min(100, n // 5) else f"in/{i}"


def flow(n):
    yield "p.toml", '[pipeline]\nname = "many"\n' + "".join(
        f'[stage.s{i}]\nkind = "command"\nrun = "head -c 64 {source(i, n)} > out/{i}"\n'
        f'files = ["{source(i, n)}"]\nouts = ["out/{i}"]\n'
        for i in range(n)
    )


def ninja(n):
    yield "build.ninja", "rule head\n  command = head -c 64 $in > $out\n" + "".join(
        f"build out/{i}: head {source(i, n)}\n" for i in range(n)
    )


def make(n):
    yield "Makefile", "all: " + " ".join(f"out/{i}" for i in range(n)) + "\n" + "".join(
        f"out/{i}: {source(i, n)}\n\t@head -c 64 $< > $@\n" for i in range(n)
    )


def snakemake(n):
    outs = ", ".join(f'"out/{i}"' for i in range(n))
    yield "Snakefile", f"rule all:\n    input: [{outs}]\n" + "".join(
        f'rule s{i}:\n    input: "{source(i, n)}"\n    output: "out/{i}"\n'
        f'    shell: "head -c 64 {{input}} > {{output}}"\n'
        for i in range(n)
    )


def dvc(n):
    yield "dvc.yaml", "stages:\n" + "".join(
        f"  s{i}:\n    cmd: head -c 64 {source(i, n)} > out/{i}\n    deps: [{source(i, n)}]\n    outs: [out/{i}]\n"
        for i in range(n)
    )


# What writes its files, what it is started with, up to how many stages.
TOOLS = {
    "flow": (flow, ["run", "p.toml"], 10**9),
    "ninja": (ninja, ["--quiet", f"-j{CORES}"], 10**9),
    "make": (make, ["--silent", f"-j{CORES}"], 10**9),
    "snakemake": (snakemake, ["-c", str(CORES), "--quiet", "all"], 1000),
    "dvc": (dvc, ["repro", "--quiet"], 1000),
}


def install():
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    subprocess.run([str(VENV / "bin/pip"), "install", "--quiet", "snakemake", "dvc", "ninja", "blake3"], check=True)


def known(cwd, n):
    """Writes what flow would know after a first run into its cache: objects, and the records that name them."""
    from blake3 import blake3

    def digest(data):
        return blake3(data).hexdigest()

    for kind in ["objects", "results"]:
        for shard in range(256):
            (cwd / f"cache/{kind}/{shard:02x}").mkdir(parents=True)
    for i in range(n):
        takes, makes = source(i, n), f"out/{i}"
        data = (cwd / takes if takes.startswith("in/") else cwd / "in/0").read_bytes()
        name = takes.split("/")[1].encode()
        tree = b"flow tree 1\n" + len(name).to_bytes(4, "little") + name + b"\0"
        # What a chain hands on is the first 64 bytes of its head.
        entered = digest(tree + blake3(data if takes.startswith("in/") else data[:64]).digest())
        params = {"files": [takes], "in": [], "outs": [makes], "run": f"head -c 64 {takes} > {makes}"}
        parts = {"format": 1, "inputs": {"files": [entered]}, "kind": "command", "params": params, "version": 1}
        key = digest(json.dumps(parts, separators=(",", ":"), sort_keys=True).encode())
        made = digest(data[:64])
        path = cwd / f"cache/objects/{made[:2]}/{made}"
        if not path.exists():
            path.write_bytes(data[:64])
            path.chmod(0o444)
        record = {"format": 1, "key": key, "parts": parts, "tree": {"entries": [{"name": makes, "digest": made, "size": 64}]}}
        record |= {"cost": 0.001, "created": 0.0, "host": "bench", "version": "0.1.0"}
        (cwd / f"cache/results/{key[:2]}/{key}.json").write_text(json.dumps(record))


class Took:
    """What a process took: wall and CPU seconds, and the most memory in MB."""

    def __init__(self, command, cwd, env):
        began = time.perf_counter()
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            self.wall = time.perf_counter() - began
            process.returncode = status
            if status != 0:
                said.seek(0)
                sys.exit(f"{command} failed:\n{said.read().decode(errors='replace')[-2000:]}")
        self.cpu = usage.ru_utime + usage.ru_stime
        self.rss = usage.ru_maxrss / 1024


def best(times, run):
    return min((run() for _ in range(times)), key=lambda took: took.wall)


def floor(cwd, n):
    """Seconds a stage that the commands alone take, as many at a time as there are cores."""
    began = time.perf_counter()
    for i in range(n):
        if i >= CORES:
            os.wait()
        os.posix_spawn("/bin/sh", ["sh", "-c", f"head -c 64 {cwd}/in/{i} > {cwd}/floor"], os.environ)
    for _ in range(min(n, CORES)):
        os.wait()
    return (time.perf_counter() - began) / n


def measure(tool, program, n, times, env, with_known):
    """Yields (what, Took)."""
    files, words, _ = TOOLS[tool]
    with tempfile.TemporaryDirectory() as name:
        cwd = Path(name)
        (cwd / "in").mkdir()
        (cwd / "out").mkdir()
        for i in range(n):
            (cwd / f"in/{i}").write_text(f"{i:08}" * 16)
        for file, text in files(n):
            (cwd / file).write_text(text)
        env = {**env, "FLOW_CACHE_DIR": str(cwd / "cache"), "HOME": name}
        if tool == "flow":
            spawn = floor(cwd, min(n, 300))
            print(f"\n{n:,} stages; their commands alone take {spawn * 1e3:.2f} ms each, {CORES} at a time\n")
            print(f"| {'tool':<9} | {'what':<12} | {'wall ms':>10} | {'CPU ms':>10} | {'MB':>6} | {'x flow':>8} |")
            print("|---|---|---:|---:|---:|---:|")
        if tool == "dvc":
            subprocess.run([program, "init", "--no-scm", "--quiet"], cwd=cwd, env=env, check=True)
        command = [program, *words]
        if tool == "flow" and with_known:
            known(cwd, n)
        yield "all known" if tool == "flow" and with_known else "first run", Took(command, cwd, env)
        # What is younger than a file system's clock can tell is looked at again.
        time.sleep(2.5)
        yield "no-op", best(times, lambda: Took(command, cwd, env))

        def change():
            leaf = cwd / f"in/{n - 1}"
            leaf.write_text(f"{time.time_ns():020}" * 16)
            return Took(command, cwd, env)

        yield "one leaf", best(min(times, 3), change)
        time.sleep(2.5)

        def delete():
            shutil.rmtree(cwd / "out")
            (cwd / "out").mkdir()
            return Took(command, cwd, env)

        yield "outs deleted", best(min(times, 3), delete) if tool in ("flow", "ninja", "make") else delete()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[100, 1000, 10000])
    parser.add_argument("--install", action="store_true", help="make the venv with the peers, and nothing else")
    parser.add_argument("--venv", type=Path, default=VENV, help="where it is")
    parser.add_argument("--flow", default=str(ROOT / "target/release/flow"))
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--times", type=int, default=5, help="how often the run with nothing to do is measured")
    parser.add_argument("--known", action="store_true", help="flow has all results in its cache before its first run")
    parser.add_argument("--cap", type=int, help="up to how many stages snakemake and DVC are measured; 1,000")
    args = parser.parse_args()
    if args.install:
        return install()
    path = f"{args.venv / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}
    for n in args.sizes:
        base = {}
        for tool in args.tools.split(","):
            cap = TOOLS[tool][2]
            if n > (args.cap if args.cap and cap < 10**9 else cap):
                continue
            program = str(Path(args.flow).resolve()) if tool == "flow" else shutil.which(tool, path=path)
            if program is None:
                print(f"{tool} is not installed: see --install", file=sys.stderr)
                continue
            for what, took in measure(tool, program, n, args.times, env, args.known):
                ratio = took.wall / base.setdefault(what, took.wall)
                print(
                    f"| {tool:<9} | {what:<12} | {took.wall * 1e3:>10.1f} | {took.cpu * 1e3:>10.1f} | {took.rss:>6.1f} |"
                    f" {ratio:>8.2f} |",
                    flush=True,
                )
    print(f"\nload: {' '.join(f'{load:.1f}' for load in os.getloadavg())}, {CORES} cores")


if __name__ == "__main__":
    main()

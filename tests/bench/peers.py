#!/usr/bin/env python3
"""The same work for flow, ninja, snakemake and DVC, side by side.

N stages `head -c 64` of one small file: leaves, and a chain of min(100, N/5). Each tool runs all of it once and then,
with nothing changed, again; the best of a few is told, with its ratio to flow's. What is not installed is left out.

    python3 tests/bench/peers.py [--flow target/release/flow] [--tools flow,ninja,snakemake,dvc] [N …]

snakemake and DVC: `python3 -m venv target/peers && target/peers/bin/pip install snakemake dvc ninja`.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / "target/peers/bin"


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


TOOLS = {
    "flow": (flow, ["run", "p.toml"]),
    "ninja": (ninja, ["--quiet"]),
    "snakemake": (snakemake, ["-c", "2", "--quiet", "all"]),
    "dvc": (dvc, ["repro", "--quiet"]),
}


def measure(command, cwd, env):
    """Wall and CPU seconds, and the most memory in MB."""
    began = time.perf_counter()
    pid = subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stderr = pid.stderr.read()
    _, status, usage = os.wait4(pid.pid, 0)
    wall = time.perf_counter() - began
    if status != 0:
        sys.exit(f"{command} failed:\n{stderr.decode(errors='replace')[-2000:]}")
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[1000])
    parser.add_argument("--flow", default=str(ROOT / "target/release/flow"))
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--times", type=int, default=5, help="how often the run with nothing to do is measured")
    args = parser.parse_args()
    path = f"{PEERS}{os.pathsep}{os.environ['PATH']}"
    for n in args.sizes:
        base = {}
        for tool in args.tools.split(","):
            files, words = TOOLS[tool]
            program = args.flow if tool == "flow" else shutil.which(tool, path=path)
            if program is None:
                print(f"{n:>7} {tool:<10} is not installed")
                continue
            with tempfile.TemporaryDirectory() as name:
                cwd = Path(name)
                (cwd / "in").mkdir()
                (cwd / "out").mkdir()
                for i in range(n):
                    (cwd / f"in/{i}").write_text(f"{i:08}" * 16)
                for file, text in files(n):
                    (cwd / file).write_text(text)
                env = {**os.environ, "PATH": path, "FLOW_CACHE_DIR": str(cwd / "cache"), "HOME": name}
                if tool == "dvc":
                    subprocess.run([program, "init", "--no-scm", "--quiet"], cwd=cwd, env=env, check=True)
                command = [program, *words]
                first = measure(command, cwd, env)
                # What is younger than a file system's clock can tell is looked at again.
                time.sleep(2.5)
                again = min(measure(command, cwd, env) for _ in range(args.times))
            for what, took in [("first", first), ("no-op", again)]:
                ratio = took[0] / base.setdefault(what, took[0])
                print(
                    f"{n:>7} {tool:<10} {what:<6} {took[0] * 1e3:>10.1f} ms wall {took[1] * 1e3:>10.1f} ms cpu"
                    f" {took[2]:>7.1f} MB  {ratio:>8.2f} x flow",
                    flush=True,
                )


if __name__ == "__main__":
    main()

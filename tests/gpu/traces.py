#!/usr/bin/env python3
"""Loss traces on GPUs: tests/gpu/traces.py FLOW_TORCH WORK_DIR

Trains the golden four-layer model on one GPU, and on two in every way that there is, in bf16 and fp32, and prints the largest
relative difference of the losses from one GPU's. Then a run that is stopped and goes on, also on another mesh.
Standard library alone."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/golden/megatron_ckpt/untied_v512/megatron_core0.16"
CONFIG = ROOT / "tests/golden/megatron_ckpt/untied_v512/hf/config.json"
DATA = ROOT / "tests/golden/training"
PROGRAM, WORK = sys.argv[1], Path(sys.argv[2])
STEPS = 20


def write_job(name, parallel, precision, device="cuda", **more):
    """Its directory, and how many ranks it has."""
    directory = WORK / name
    for folder in ("out", "scratch"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    distributed = more.pop("distributed", False)
    training = {
        "seq_length": 64, "micro_batch_size": 2, "global_batch_size": 8, "max_steps": STEPS, "seed": 42,
        "precision": precision, "device": device, "val_interval": 5, "limit_val_batches": 2, "parallel": parallel,
        "optim": {"lr": 3e-3, "weight_decay": 0.1, "distributed": distributed}, "sched": {"warmup_steps": 4}, **more,
    }
    source = lambda which: [{"prefix": str(DATA / f"{which}_document"), "weight": None}]
    job = {
        "job": "train", "node": "train", "model": str(MODEL), "config": str(CONFIG), "train": source("train"),
        "validation": source("validation"), "training": training, "out": str(directory / "out"),
        "scratch": str(directory / "scratch"), "threads": 1,
    }
    (directory / "job.json").write_text(json.dumps(job))
    world = 1
    for size in parallel.values():
        world *= int(size) if not isinstance(size, bool) else 1
    return directory, world


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(name, parallel, precision, device="cuda", **more):
    (directory, world), port = write_job(name, parallel, precision, device, **more), free_port()
    environment = lambda rank: {
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "FLOW_COLLECTIVE_TIMEOUT": "60", "OMP_WAIT_POLICY": "passive",
    }
    log = lambda rank: open(directory / f"rank{rank}.log", "ab")
    command = [PROGRAM, "worker", str(directory / "job.json")]
    return [
        subprocess.Popen(command, env=environment(rank), stdout=log(rank), stderr=subprocess.STDOUT) for rank in range(world)
    ]


def finish(name, ranks, code=0):
    codes = [rank.wait(timeout=120) for rank in ranks]
    if codes != [code] * len(codes):
        for rank in range(len(ranks)):
            print(f"  {name} rank {rank}:", (WORK / name / f"rank{rank}.log").read_text()[-1500:])
        raise RuntimeError(f"{name}: exit codes {codes}")


def trace(name, where="out"):
    lines = (WORK / name / where / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def run(name, parallel, precision, **more):
    began = time.time()
    finish(name, start(name, parallel, precision, **more))
    return trace(name), time.time() - began


def difference(ours, theirs, field):
    return max(abs(a[field] - b[field]) / abs(b[field]) for a, b in zip(ours, theirs, strict=True) if field in b)


def report(label, ours, theirs):
    worst = {field: f"{difference(ours, theirs, field):.1e}" for field in ("loss", "val_loss", "grad_norm")}
    print(f"{label:44} {worst}", flush=True)


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    cpu, _ = run("cpu-fp32", {}, "fp32", device="cpu")
    for precision in ("fp32", "bf16"):
        one, seconds = run(f"one-{precision}", {}, precision)
        report(f"{precision} one GPU against the CPU's fp32", one, cpu)
        again, _ = run(f"again-{precision}", {}, precision)
        report(f"{precision} one GPU again", again, one)
        for label, parallel, more in [
            ("tp2", {"tensor": 2}, {}),
            ("tp2-sp", {"tensor": 2, "sequence": True}, {}),
            ("dp2", {"data": 2}, {}),
            ("dp2-distributed", {"data": 2}, {"distributed": True}),
            ("pp2", {"pipeline": 2}, {}),
            ("cp2", {"context": 2}, {}),
            ("recompute-full", {}, {"memory": {"recompute": "full"}}),
        ]:
            try:
                ours, seconds = run(f"{label}-{precision}", parallel, precision, **more)
                report(f"{precision} {label} ({seconds:.0f} s)", ours, one)
            except Exception as error:  # the others are still worth knowing
                print(f"{precision} {label} FAILED: {error}", flush=True)
        log = (WORK / f"tp2-{precision}" / "rank0.log").read_text()
        print("  moved by", "Gloo" if "Gloo" in log else "NCCL")

    # Documents that do not see each other: by a kernel that takes their lengths in bf16, by masks otherwise.
    apart = {"reset_position_ids": True, "reset_attention_mask": True, "eod_mask_loss": True, "eod_token_id": 44}
    cpu, _ = run("apart-cpu-fp32", {}, "fp32", device="cpu", **apart)
    report("fp32 documents apart, from one row on the CPU", cpu, trace("cpu-fp32"))
    for precision in ("fp32", "bf16"):
        one, _ = run(f"apart-{precision}", {}, precision, **apart)
        report(f"{precision} documents apart against the CPU's fp32", one, cpu)
        for label, parallel in [("tp2-sp", {"tensor": 2, "sequence": True}), ("cp2", {"context": 2})]:
            ours, _ = run(f"apart-{label}-{precision}", parallel, precision, **apart)
            report(f"{precision} documents apart, {label}", ours, one)
    lines = [json.loads(line) for line in (WORK / "apart-bf16/rank0.log").read_text().splitlines() if '"values"' in line]
    values = lines[-1]["values"]
    print("  what a step says of the GPU:", {name: values.get(name) for name in ("gpu_utilization", "gpu_memory_bytes")})
    print(f"  waited for data: {values['data_seconds'] / values['step_seconds']:.1%} of the last step")

    # Stopped in the midst of it by a signal to one rank, and gone on with on another mesh; beside it, the same meshes without
    # a stop. A checkpoint is on its way all the time.
    for precision in ("fp32", "bf16"):
        more = {"max_steps": 2000, "sched": {"name": "constant"}}
        saves = {**more, "checkpoint": {"interval": 2}}
        until(30, "stopped", {"data": 2}, precision, distributed=True, **saves)
        first = trace("stopped", "scratch")
        until(len(first) + 20, "stopped", {"tensor": 2}, precision, **saves)
        steps = len(first) + 20
        one = until(steps, "whole-one", {}, precision, **more)
        print(f"{precision}, {steps} steps: loss against one GPU undisturbed")
        for label, ours in [
            (f"data 2 to step {len(first)}, then tensor 2", trace("stopped", "scratch")),
            ("data 2 undisturbed", until(steps, "whole-data", {"data": 2}, precision, distributed=True, **more)),
            ("tensor 2 undisturbed", until(steps, "whole-tensor", {"tensor": 2}, precision, **more)),
        ]:
            ends = [difference(ours[from_:to], one[from_:to], "loss") for from_, to in ((0, len(first)), (len(first), steps))]
            print(f"  {label:40} before {ends[0]:.1e}, after {ends[1]:.1e}", flush=True)
        again = until(steps, "again-data", {"data": 2}, precision, stop_at=30, distributed=True, **saves)
        same = again[:steps] == trace("whole-data", "scratch")[:steps]
        print(f"  data 2, stopped and gone on with on data 2: {'every number the same' if same else 'numbers differ'}")
        for name in ("stopped", "whole-one", "whole-data", "whole-tensor", "again-data"):
            shutil.rmtree(WORK / name)


def until(step, name, parallel, precision, stop_at=None, **more):
    """Trains until a step is reported and stops it then: its trace. With stop_at it is stopped before, and goes on."""
    if stop_at:
        until(stop_at, name, parallel, precision, **more)
    ranks = start(name, parallel, precision, **more)
    deadline = time.time() + 60
    while time.time() < deadline and f'"step":{step},' not in (WORK / name / "rank0.log").read_text():
        time.sleep(0.05)
    ranks[-1].send_signal(signal.SIGTERM)
    finish(name, ranks, code=75)
    return trace(name, "scratch")


if __name__ == "__main__":
    main()

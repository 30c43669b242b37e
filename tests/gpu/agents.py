#!/usr/bin/env python3
"""Two agents with a GPU each, as on two machines: tests/gpu/agents.py FLOW_TORCH WORK_DIR

NCCL is kept from what one machine has (peer access, shared memory), so that it goes through the network's interface. The
losses are held against those of two ranks under one launcher. Standard library alone."""

import os
import subprocess

from traces import PROGRAM, difference, free_port, run, trace, write_job


def agents(name, parallel, precision):
    (directory, _), port = write_job(name, parallel, precision), free_port()
    command = [PROGRAM, "worker", "--rdzv", f"127.0.0.1:{port}", "--nnodes", "2"]

    def agent(node):
        apart = {"CUDA_VISIBLE_DEVICES": str(node), "NCCL_P2P_DISABLE": "1", "NCCL_SHM_DISABLE": "1", "NCCL_DEBUG": "INFO"}
        with open(directory / f"agent{node}.log", "wb") as log:
            words = [*command, "--node-rank", str(node), str(directory / "job.json")]
            return subprocess.Popen(words, env={**os.environ, **apart}, stdout=log, stderr=subprocess.STDOUT)

    codes = [agent.wait() for agent in [agent(node) for node in range(2)]]
    logs = [(directory / f"agent{node}.log").read_text() for node in range(2)]
    assert codes == [0, 0], f"{codes}\n" + "\n".join(log[-3000:] for log in logs)
    ways = {line.split(" via ")[1].split()[0] for log in logs for line in log.splitlines() if " via " in line}
    return trace(name), ", ".join(sorted(ways)) or "not said"


def main():
    for precision in ("fp32", "bf16"):
        for parallel in ({"data": 2}, {"tensor": 2}, {"pipeline": 2}):
            (what,) = parallel
            ours, ways = agents(f"agents-{what}-{precision}", parallel, precision)
            theirs, _ = run(f"ranks-{what}-{precision}", parallel, precision)
            worst = max(difference(ours, theirs, field) for field in ("loss", "grad_norm"))
            print(f"two agents, {what} 2, {precision}: largest relative difference from one launcher {worst:.2e}; NCCL via {ways}")


if __name__ == "__main__":
    main()

"""Writes lr.json: the learning rates of OptimizerParamScheduler (megatron-core 0.16.1, init_lr 0), one a step.

Needs megatron-core and torch: python make.py > lr.json
"""

import json

from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler


class Optimizer:
    param_groups = [{}]


def rates(max_steps, lr, min_lr, sched):
    decay = sched.get("decay_steps", max_steps - sched.get("constant_steps", 0))
    scheduler = OptimizerParamScheduler(
        Optimizer, 0.0, lr, min_lr, sched.get("warmup_steps", 0), decay, sched["name"], 0.0, 0.0, 1, "constant"
    )
    out = []
    for _ in range(max_steps):
        out.append(Optimizer.param_groups[0]["lr"])  # what the step uses; the scheduler moves on after it
        scheduler.step(1)
    return out


CASES = [
    (150, 2.5e-5, 2.5e-6, {"name": "cosine", "warmup_steps": 15}),
    (40, 1e-3, 1e-4, {"name": "cosine", "warmup_steps": 4, "constant_steps": 10}),
    (30, 1e-3, 0.0, {"name": "cosine"}),
    (30, 3e-4, 3e-5, {"name": "linear", "warmup_steps": 5, "decay_steps": 20}),
    (30, 3e-4, 3e-5, {"name": "linear", "warmup_steps": 1}),
    (20, 1e-2, 0.0, {"name": "constant", "warmup_steps": 7}),
]
print(
    json.dumps(
        [
            {"max_steps": m, "lr": lr, "min_lr": lo, "sched": s, "lrs": rates(m, lr, lo, s)}
            for m, lr, lo, s in CASES
        ],
        indent=1,
    )
)

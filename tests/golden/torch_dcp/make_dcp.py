"""Makes this folder's `hf_named`: the model of ../megatron_ckpt/untied_v512/hf, saved by torch.distributed.checkpoint from two processes
that hold its rows in halves (as fully sharded training does), under the names that its modules have in transformers, inside of
a dictionary, with an optimizer's state beside it.
Usage: torchrun --nproc-per-node 2 make_dcp.py OUT_DIR"""
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
weights = load_file(Path(__file__).parent / "../megatron_ckpt/untied_v512/hf/model.safetensors")
model = {name: distribute_tensor(weight, mesh, [Shard(0)]) for name, weight in weights.items()}
norm = distribute_tensor(torch.ones(64), mesh, [Shard(0)])
optimizer = {"state": {"model.norm.weight": {"exp_avg": norm, "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
dcp.save({"model": model, "optimizer": optimizer, "step": 3}, checkpoint_id=sys.argv[1])
dist.destroy_process_group()

"""Makes this folder's checkpoints: what Megatron-LM's older format holds of tiny models of 2 layers, saved with the real torch. Every
element is its own place in the whole tensor, so that a reader can be checked without another file.
Usage: python make_legacy.py OUT_DIR"""
import sys
from argparse import Namespace
from pathlib import Path

import torch

V, H, F, Q, KV, D, L, E = 8, 4, 6, 4, 2, 2, 2, 4
ATTENTION = {  # name: (shape, axis that is split, blocks that are split each)
    "self_attention.linear_qkv.layer_norm_weight": ((H,), None, 1),
    "self_attention.linear_qkv.weight": (((Q + 2 * KV) * D, H), 0, 1),
    "self_attention.linear_qkv.bias": (((Q + 2 * KV) * D,), 0, 1),
    "self_attention.linear_proj.weight": ((H, Q * D), 1, 1),
}
FC = {"linear_fc1": ((2 * F, H), 0, 2), "linear_fc2": ((H, F), 1, 1)}
DENSE = {"mlp.linear_fc1.layer_norm_weight": ((H,), None, 1), **{f"mlp.{fc}.weight": cut for fc, cut in FC.items()}}
EXPERTS = {"pre_mlp_layernorm.weight": ((H,), None, 1), "mlp.router.weight": ((E, H), None, 1)}


def part(shape, axis, blocks, ranks, rank, number):
    """The rank's part of the tensor that is number so and so among those of its name: there its elements go on."""
    numel = torch.Size(shape).numel()
    whole = torch.arange(number * numel, (number + 1) * numel, dtype=torch.float32).view(shape)
    if axis is None:
        return whole.clone()
    return torch.cat([block.chunk(ranks, axis)[rank] for block in whole.chunk(blocks, axis)], axis).contiguous()


def layer_of(name, tp, t, ep, e, layer):
    """A layer's tensors; `name` says how the modules of its experts are called, if it has any."""
    tensors = {n: part(*cut, tp, t, layer) for n, cut in (ATTENTION | (EXPERTS if name else DENSE)).items()}
    for local in range(E // ep if name else 0):
        for fc, cut in FC.items():
            tensors["mlp.experts." + name(local, fc)] = part(*cut, tp, t, layer * E + e * (E // ep) + local)
    # What a layer of Transformer Engine has for 8-bit arithmetic: nothing, or bytes.
    tensors["self_attention.linear_proj._extra_state"] = None
    tensors["self_attention.linear_qkv._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    return tensors


def save(out, tp, pp, ep=1, name=None):
    for t, p, e in ((t, p, e) for t in range(tp) for p in range(pp) for e in range(ep)):
        model = {}
        if p == 0:
            model["embedding.word_embeddings.weight"] = part((V, H), 0, 1, tp, t, 0)
        # The layers' numbers begin again on every stage.
        for layer in range(L // pp):
            tensors = layer_of(name, tp, t, ep, e, p * (L // pp) + layer)
            model |= {f"decoder.layers.{layer}.{n}": tensor for n, tensor in tensors.items()}
        if p == pp - 1:
            model["decoder.final_layernorm.weight"] = part((H,), None, 1, tp, t, 0)
            model["output_layer.weight"] = part((V, H), 0, 1, tp, t, 0)
        args = Namespace(num_layers=L, hidden_size=H, untie_embeddings_and_output_weights=True, num_experts=E if name else None,
                         tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp, expert_model_parallel_size=ep,
                         expert_tensor_parallel_size=tp)
        state = {
            "args": args, "checkpoint_version": 3.0, "iteration": 5, "model": model,
            "optimizer": {"param_groups": [{"lr": 0.1}], "state": {0: torch.ones(3)}},
            "rng_state": [{"torch_rng_state": torch.get_rng_state()[:8]}],
        }
        rank = f"mp_rank_{t:02}" + (f"_{p:03}" if pp > 1 else "") + (f"_{e:03}" if ep > 1 else "")
        dir = out / "iter_0000005" / rank
        dir.mkdir(parents=True, exist_ok=True)
        torch.save(state, dir / "model_optim_rng.pt")
    (out / "latest_checkpointed_iteration.txt").write_text("5")


out = Path(sys.argv[1])
save(out / "tp2_pp2", 2, 2)
save(out / "tp2_ep2", 2, 1, 2, lambda expert, fc: f"local_experts.{expert}.{fc}.weight")
save(out / "pp2_ep2", 1, 2, 2, lambda expert, fc: f"{fc}.weight{expert}")

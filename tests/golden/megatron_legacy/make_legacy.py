"""Makes this folder's `tp2_pp2`: what Megatron-LM's older format holds of a tiny model (2 layers on 2 stages, 2 tensor ranks), saved
with the real torch. Every element is its own place in the whole tensor, so that a reader can be checked without another file.
Usage: python make_legacy.py OUT_DIR"""
import sys
from argparse import Namespace
from pathlib import Path

import torch

V, H, F, Q, KV, D, L = 8, 4, 6, 4, 2, 2, 2
LAYER = {  # name: (shape, axis that is split, blocks that are split each)
    "self_attention.linear_qkv.layer_norm_weight": ((H,), None, 1),
    "self_attention.linear_qkv.weight": (((Q + 2 * KV) * D, H), 0, 1),
    "self_attention.linear_qkv.bias": (((Q + 2 * KV) * D,), 0, 1),
    "self_attention.linear_proj.weight": ((H, Q * D), 1, 1),
    "mlp.linear_fc1.layer_norm_weight": ((H,), None, 1),
    "mlp.linear_fc1.weight": ((2 * F, H), 0, 2),
    "mlp.linear_fc2.weight": ((H, F), 1, 1),
}


def part(shape, axis, blocks, rank, first):
    whole = torch.arange(first, first + torch.Size(shape).numel(), dtype=torch.float32).view(shape)
    if axis is None:
        return whole.clone()
    return torch.cat([block.chunk(2, axis)[rank] for block in whole.chunk(blocks, axis)], axis).contiguous()


def main(out):
    for tp in range(2):
        for pp in range(2):
            model = {}
            if pp == 0:
                model["embedding.word_embeddings.weight"] = part((V, H), 0, 1, tp, 0)
            for name, (shape, axis, blocks) in LAYER.items():
                # The layer's number begins again on every stage; its elements go on where those of the layer before end.
                model["decoder.layers.0." + name] = part(shape, axis, blocks, tp, pp * torch.Size(shape).numel())
                if "linear" in name and name.endswith(".weight"):
                    model["decoder.layers.0." + name.replace(".weight", "._extra_state")] = None
            if pp == 1:
                model["decoder.final_layernorm.weight"] = part((H,), None, 1, tp, 0)
                model["output_layer.weight"] = part((V, H), 0, 1, tp, 0)
            state = {
                "args": Namespace(num_layers=L, hidden_size=H, untie_embeddings_and_output_weights=True),
                "checkpoint_version": 3.0, "iteration": 5, "model": model,
                "optimizer": {"param_groups": [{"lr": 0.1}], "state": {0: torch.ones(3)}},
                "rng_state": [{"torch_rng_state": torch.get_rng_state()[:8]}],
            }
            dir = out / "iter_0000005" / f"mp_rank_{tp:02}_{pp:03}"
            dir.mkdir(parents=True, exist_ok=True)
            torch.save(state, dir / "model_optim_rng.pt")
    (out / "latest_checkpointed_iteration.txt").write_text("5")


main(Path(sys.argv[1]))

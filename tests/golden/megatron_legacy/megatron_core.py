"""Models of Megatron-Core itself in Megatron-LM's older format: FAMILY/hf, as transformers saves it, and FAMILY/m, the same weights in
Megatron's modules, saved as Megatron-LM did. Versions as in ../megatron_ckpt/README.md. Usage: python megatron_core.py OUT_DIR FAMILY…"""
import shutil, sys
from argparse import Namespace
from pathlib import Path

import torch

GOLDEN = Path(__file__).parent.parent
sys.path += [str(GOLDEN / "megatron_families"), str(GOLDEN / "megatron_ckpt")]
import make_families as mf
import make_golden as mg


def save(self, model, out, **_):
    dir = Path(out) / "iter_0000007/mp_rank_00"
    dir.mkdir(parents=True)
    args = Namespace(untie_embeddings_and_output_weights=True, num_experts=4, tensor_model_parallel_size=1,
                     pipeline_model_parallel_size=1, expert_model_parallel_size=1, expert_tensor_parallel_size=1)
    model = model[0].state_dict_for_save_checkpoint()
    torch.save({"args": args, "checkpoint_version": 3.0, "iteration": 7, "model": model}, dir / "model_optim_rng.pt")
    (Path(out) / "latest_checkpointed_iteration.txt").write_text("7")


def main(out, families):
    mg.stub_transformer_engine()
    mf.without_fused_experts()
    from megatron.core.transformer import transformer_block
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    import megatron.bridge
    transformer_block.LayerNormImpl = WrappedTorchNorm
    megatron.bridge.AutoBridge.save_megatron_model = save
    for family in families:
        hf = Path(out) / family / "hf"
        hf.mkdir(parents=True)
        mf.make(hf, *mf.FAMILIES[family])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(GOLDEN / "megatron_ckpt/untied_v512/hf" / file, hf / file)
        mg.bridge_import(hf, Path(out) / family / "m")


main(sys.argv[1], sys.argv[2:])

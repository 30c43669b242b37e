"""What Megatron-Bridge makes of a tiny model of each family, on a CPU. Usage: python make_families.py OUT_JSON [FAMILY…]

Versions as in ../megatron_ckpt/README.md. Weights are noise that anyone can make again from the tensor's name (`bits`), so
the golden file holds digests alone.
"""
import hashlib, json, os, shutil, sys, tempfile
from pathlib import Path

import torch
import transformers as tf
import yaml

GOLDEN = Path(__file__).parent.parent / "megatron_ckpt"
sys.path.insert(0, str(GOLDEN))
import make_golden as mg


def bits(name, count):
    """bf16 without NaN and infinity: SHA-256 of `name/0`, `name/1`, … one behind the other, bit 6 of every second byte cleared."""
    noise = bytearray(b"".join(hashlib.sha256(f"{name}/{i}".encode()).digest() for i in range((2 * count + 31) // 32))[: 2 * count])
    noise[1::2] = bytes(x & 0xBF for x in noise[1::2])
    return torch.frombuffer(noise, dtype=torch.bfloat16).clone()


COMMON = dict(vocab_size=48, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
              max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
FAMILIES = {
    "llama_linear": (tf.LlamaConfig, dict(head_dim=8, rope_scaling={"rope_type": "linear", "factor": 2.0})),
    "mistral": (tf.MistralConfig, dict(head_dim=8, sliding_window=None, rope_theta=1e6)),
    "mistral_window": (tf.MistralConfig, dict(head_dim=8, sliding_window=64)),
    "qwen2": (tf.Qwen2Config, dict(rope_theta=1e6)),
    "qwen2_tied": (tf.Qwen2Config, dict(tie_word_embeddings=True)),
    "qwen3": (tf.Qwen3Config, dict(head_dim=16, rope_theta=1e6, attention_bias=False)),
    "gemma2": (tf.Gemma2Config, dict(head_dim=8, sliding_window=16, query_pre_attn_scalar=64, tie_word_embeddings=True)),
    "gemma3": (tf.Gemma3TextConfig, dict(num_hidden_layers=7, head_dim=8, sliding_window=16, query_pre_attn_scalar=64, tie_word_embeddings=True)),
    "gemma3_linear": (tf.Gemma3TextConfig, dict(head_dim=8, sliding_window=16, query_pre_attn_scalar=64, tie_word_embeddings=True,
                                                rope_scaling={"rope_type": "linear", "factor": 8.0})),
    "qwen3_moe": (tf.Qwen3MoeConfig, dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True)),
}
# Of run_config.yaml, the fields that we write.
RUN_CONFIG = """add_bias_linear add_qkv_bias attention_dropout bf16 ffn_hidden_size fp16 gated_linear_unit hidden_dropout hidden_size
kv_channels layernorm_epsilon normalization num_attention_heads num_layers num_query_groups position_embedding_type rope_scaling
rotary_base rotary_percent seq_length share_embeddings_and_output_weights should_pad_vocab vocab_size window_size qk_layernorm
num_moe_experts moe_ffn_hidden_size moe_router_topk moe_router_pre_softmax moe_router_load_balancing_type _target_ activation_func attn_logit_softcapping final_logit_softcapping layernorm_zero_centered_gamma
query_pre_attn_scalar softmax_scale rope_scaling_factor""".split()

def make(dir, cls, over):
    cfg = cls(**{**COMMON, **over}); cfg.torch_dtype = torch.bfloat16
    model = tf.AutoModelForCausalLM.from_config(cfg).to(torch.bfloat16)
    sd = {}
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.copy_(bits(n, p.numel()).view(p.shape))
            sd[n] = list(p.shape)
    model.save_pretrained(dir)
    return json.loads((dir / "config.json").read_text()), sd

def without_fused_experts():
    """Megatron on a CPU has neither grouped GEMM nor the fused permutation; the tensors are the same (SequentialMLP)."""
    from megatron.bridge.models.qwen.qwen3_moe_bridge import Qwen3MoEBridge
    full = Qwen3MoEBridge.provider_bridge
    def plain(self, pretrained):
        provider = full(self, pretrained)
        provider.moe_permute_fusion = provider.moe_grouped_gemm = False
        provider.moe_token_dispatcher_type = "allgather"
        return provider
    Qwen3MoEBridge.provider_bridge = plain

def gemma_without_transformer_engine():
    """Gemma's layers are Transformer Engine's alone: Megatron's own of the same names and parameters stand in for them."""
    import megatron.core.extensions.transformer_engine as te
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    class TENorm(torch.nn.Module):
        def __init__(self, config, hidden_size, eps=1e-5):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(hidden_size))
    class TELayerNormColumnParallelLinear(ColumnParallelLinear):
        def __init__(self, input_size, *args, **kwargs):
            super().__init__(input_size, *args, **kwargs)
            self.layer_norm_weight = torch.nn.Parameter(torch.zeros(input_size))
    te.TERowParallelLinear = type("TERowParallelLinear", (RowParallelLinear,), {})
    te.TENorm, te.TELayerNormColumnParallelLinear, te.TEDotProductAttention = TENorm, TELayerNormColumnParallelLinear, DotProductAttention

def main(out, only):
    mg.stub_transformer_engine()
    gemma_without_transformer_engine()
    without_fused_experts()
    import megatron.core.extensions.transformer_engine as te
    from megatron.core.transformer import transformer_block
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    res = json.loads(Path(out).read_text()) if Path(out).exists() else {}
    for name, (cls, over) in FAMILIES.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            (d / "hf").mkdir()
            config, hf = make(d / "hf", cls, over)
            for f in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                src = GOLDEN / "untied_v512/hf" / f
                if src.exists(): shutil.copy(src, d / "hf" / f)
            for variable in ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN"):
                os.environ.pop(variable, None)  # of the model before
            gemma = name.startswith("gemma")
            os.environ["GOLDEN_SPEC"] = "own" if gemma else "local"
            transformer_block.LayerNormImpl = te.TENorm if gemma else WrappedTorchNorm
            mg.bridge_import(d / "hf", d / "m")
            it = d / "m" / "iter_0000000"
            import torch.distributed.checkpoint as dcp
            md = dcp.FileSystemReader(str(it)).read_metadata()
            sd = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in md.state_dict_metadata.items() if hasattr(v, "size")}
            dcp.load(sd, storage_reader=dcp.FileSystemReader(str(it)), no_dist=True)
            model = yaml.safe_load((it / "run_config.yaml").read_text())["model"]
            res[name] = {
                "config": config, "hf": hf,
                "tensors": {k: {"shape": list(t.shape), "dtype": str(t.dtype), "sha256": hashlib.sha256(t.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest(),
                    "chunks": sorted([list(c.offsets), list(c.sizes)] for c in md.state_dict_metadata[k].chunks)} for k, t in sd.items()},
                "objects": sorted(k for k, v in md.state_dict_metadata.items() if not hasattr(v, "size")),
                "run_config": {field: model[field] for field in RUN_CONFIG if field in model},
            }
            lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(res.items())]
            Path(out).write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

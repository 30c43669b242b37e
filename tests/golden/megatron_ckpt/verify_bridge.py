"""python verify_bridge.py CHECKPOINT HF_DIR : Megatron-Bridge builds the model from the checkpoint's own run_config.yaml,
loads it, and exports it; every exported tensor is compared with HF_DIR's bit by bit. CPU; versions as in README.md."""
import contextlib, sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import make_golden as mg

checkpoint, hf = sys.argv[1], sys.argv[2]
mg.stub_transformer_engine()
torch.cuda.current_device = lambda: "cpu"
torch.cuda.synchronize = lambda *a, **k: None
torch.cuda.empty_cache = lambda: None
import megatron.core.tensor_parallel.random as mrandom
mrandom.CudaRNGStatesTracker.fork = lambda self, *a, **k: contextlib.nullcontext()
import megatron.bridge.models.gpt_provider as gp
from megatron.bridge import AutoBridge
from megatron.bridge.training.model_load_save import build_and_load_model, load_model_config, temporary_distributed_context
from safetensors import safe_open

iteration = Path(checkpoint) / ("iter_%07d" % int((Path(checkpoint) / "latest_checkpointed_iteration.txt").read_text()))
config, _ = load_model_config(str(iteration))
shown = ("num_layers", "hidden_size", "ffn_hidden_size", "num_query_groups", "kv_channels", "rotary_base", "rope_scaling",
         "rope_scaling_factor", "layernorm_epsilon", "share_embeddings_and_output_weights", "vocab_size", "bf16", "params_dtype")
print("1 run_config.yaml:", {k: getattr(config, k) for k in shown})
config.transformer_layer_spec = gp.local_layer_spec          # no Transformer Engine on a CPU
for k in ("persist_layer_norm", "gradient_accumulation_fusion", "masked_softmax_fusion", "bias_dropout_fusion",
          "bias_activation_fusion", "apply_rope_fusion"):
    setattr(config, k, False)
with temporary_distributed_context(backend="gloo"):
    model = build_and_load_model(str(iteration), config, use_cpu_init=True)
    print("2 loaded:", sum(p.numel() for m in model for p in m.parameters()), "parameters")
    f = safe_open(f"{hf}/model.safetensors", "pt")
    want, bad = set(f.keys()), []
    bridge = AutoBridge.from_hf_pretrained(hf, torch_dtype=torch.bfloat16)
    for name, weight in bridge.export_hf_weights(model, cpu=True, show_progress=False):
        if name not in want or not torch.equal(f.get_tensor(name), weight.cpu()):
            bad.append(name)
        want.discard(name)
    print("3 exported: different", bad, "absent", sorted(want))

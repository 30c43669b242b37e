"""python verify_optimizer.py HF_DIR ITER_DIR : Megatron-Core's distributed optimizer, on a CPU, takes the state of a checkpoint that flow's
trainer saved: its own sharded state dict says what it asks for, dist_checkpointing.load gives it, load_state_dict takes it.
python verify_optimizer.py HF_DIR --groups : what it writes of an optimizer itself, beside tensors (optimizer_common.json)."""
import sys, contextlib, json, torch
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
import make_golden as mg
hf, it = sys.argv[1:]
try:
    import nvidia_resiliency_ext as nvrx
    nvrx.__version__ = getattr(nvrx, "__version__", "0.6.0")
except ImportError:
    pass
mg.stub_transformer_engine()
torch.cuda.current_device = lambda: "cpu"; torch.cuda.synchronize = lambda *a, **k: None; torch.cuda.empty_cache = lambda: None
class Stream:
    wait_stream = synchronize = lambda *a: None
torch.cuda.Stream = lambda *a, **k: Stream()
class OnCpu(torch.overrides.TorchFunctionMode):
    """What the optimizer makes on a GPU is made here; what it asks of a tensor's type is answered as on one."""
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = "cpu"
        if function is torch.Tensor.type and len(args) == 1:
            return function(*args).replace("torch.", "torch.cuda.")
        return function(*args, **kwargs)
torch.cuda.current_stream = lambda *a: Stream(); torch.cuda.stream = lambda *a: contextlib.nullcontext()
from megatron.bridge import AutoBridge
from megatron.bridge.models.gpt_provider import local_layer_spec
from megatron.bridge.training.model_load_save import temporary_distributed_context
from megatron.core import dist_checkpointing
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
bridge = AutoBridge.from_hf_pretrained(hf, torch_dtype=torch.bfloat16)
prov = bridge.to_megatron_provider(load_weights=False)
prov.transformer_layer_spec = local_layer_spec
for k in ("persist_layer_norm", "gradient_accumulation_fusion", "masked_softmax_fusion", "bias_dropout_fusion", "bias_activation_fusion", "apply_rope_fusion"):
    setattr(prov, k, False)
with OnCpu(), temporary_distributed_context(backend="gloo"):
    prov.finalize()
    model = prov.provide_distributed_model(wrap_with_ddp=True, use_cpu_initialization=True, bf16=True, data_parallel_random_init=False,
                                           ddp_config=DistributedDataParallelConfig(use_distributed_optimizer=True))
    optimizer = get_megatron_optimizer(OptimizerConfig(optimizer="adam", lr=1e-3, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True), model)
    inner = optimizer.chained_optimizers[0]
    inner.init_state_fn(inner.optimizer, inner.config)
    for slot in inner.optimizer.state.values():  # torch's own Adam, where there is neither Apex nor Transformer Engine
        slot.setdefault("step", torch.tensor(0.0))
    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False,
                "singleton_local_shards": False, "chained_optim_avoid_prefix": True}
    plain = model[0]
    while hasattr(plain, "module"):
        plain = plain.module
    state = {"model": plain.sharded_state_dict(metadata=metadata)}
    state["optimizer"] = optimizer.sharded_state_dict(state["model"], is_loading=True, metadata=metadata)
    if it == "--groups":
        scheduler = OptimizerParamScheduler(optimizer, init_lr=0.0, max_lr=1e-3, min_lr=1e-5, lr_warmup_steps=16, lr_decay_steps=160, lr_decay_style="cosine",
                                            start_wd=0.1, end_wd=0.1, wd_incr_steps=160, wd_incr_style="constant", override_opt_param_scheduler=False)
        groups = {k: state["optimizer"][k] for k in ("optimizer", "param_state_sharding_type")}
        print(json.dumps({"content_metadata": {k: v for k, v in metadata.items() if isinstance(v, (bool, str))}, "optimizer": groups, "opt_param_scheduler": scheduler.state_dict()}, indent=1, default=float))
        sys.exit()
    loaded, missing, unexpected = dist_checkpointing.load(state, it, strict="return_all")
    asked = sorted(loaded["optimizer"])
    print("1 megatron load ok; missing", sorted(missing), "unexpected", sorted(unexpected), "optimizer", asked)
    print("2 model:", plain.load_state_dict(loaded["model"], strict=True))
    # Torch's own Adam has its steps beside the tensors; this way of loading knows only Apex's and Transformer Engine's.
    set_states = inner._set_main_param_and_optimizer_states
    inner._set_main_param_and_optimizer_states = lambda p, tensors: set_states(p, {"step": torch.tensor(float(loaded["optimizer"]["optimizer"]["param_groups"][0]["step"])), **tensors})
    print("3 optimizer:", optimizer.load_state_dict(loaded["optimizer"]))
    import torch.distributed.checkpoint as dcp
    md = dcp.FileSystemReader(it).read_metadata()
    raw = {k: torch.empty(v.size, dtype=v.properties.dtype) for k, v in md.state_dict_metadata.items() if hasattr(v, "size")}
    dcp.load(raw, storage_reader=dcp.FileSystemReader(it), no_dist=True)
    different, count, names = [], 0, {id(p): n for n, p in plain.named_parameters()}
    spelt = {"input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight", "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight"}
    for kind in ("param", "exp_avg", "exp_avg_sq"):
        world = inner.get_parameter_state_dp_zero(use_gloo_comm=True)
        for i, buffer in enumerate(inner.buffers):
            for p, (start, end, _) in buffer.param_index_map.items():
                piece, name, layer = next(iter(world[i].values()))[kind][start:end].reshape(p.shape), names[id(p)], None
                if name.startswith("decoder.layers."):
                    layer, name = name.removeprefix("decoder.layers.").split(".", 1)
                    name = "decoder.layers." + spelt.get(name, name)
                want = raw[f"optimizer.state.{kind}.{name}"]
                count += 1
                if not torch.equal(piece, want if layer is None else want[int(layer)]):
                    different.append((kind, name, layer))
    steps = {group.get("step") for group in inner.optimizer.param_groups}
    print("4 state of", count, "tensors; different", different, "steps", {float(s["step"]) for s in inner.optimizer.state.values() if "step" in s} or steps)

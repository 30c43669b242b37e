"""python make_ranks.py HF_DIR ITER_DIR OUT_DIR TENSOR PIPELINE : a torch_dist checkpoint as several ranks have it.

Tensor × pipeline processes of the real megatron-core (gloo, CPU) each build their part of the model, load it from ITER_DIR, one that
flow wrote, with dist_checkpointing.load, and save it with dist_checkpointing.save to OUT_DIR/iter_0000003."""

import os
import sys
from pathlib import Path

import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).parent))


def work(rank, hf, source, out, tensor, pipeline):
    world = tensor * pipeline
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29611"}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    import make_golden as mg

    try:
        import nvidia_resiliency_ext as nvrx

        nvrx.__version__ = getattr(nvrx, "__version__", "0.6.0")
    except ImportError:
        pass
    mg.stub_transformer_engine()
    torch.cuda.current_device = lambda: "cpu"
    torch.cuda.synchronize = lambda *a, **k: None
    torch.cuda.empty_cache = lambda: None
    import contextlib

    import megatron.core.tensor_parallel.random as mrandom
    from megatron.bridge import AutoBridge
    from megatron.bridge.models.gpt_provider import local_layer_spec
    from megatron.core import dist_checkpointing, parallel_state

    mrandom.CudaRNGStatesTracker.fork = lambda self, *a, **k: contextlib.nullcontext()
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline)
    provider = AutoBridge.from_hf_pretrained(hf, torch_dtype=torch.bfloat16).to_megatron_provider(load_weights=False)
    provider.transformer_layer_spec = local_layer_spec
    provider.tensor_model_parallel_size, provider.pipeline_model_parallel_size = tensor, pipeline
    provider.pipeline_dtype = torch.bfloat16
    for name in ("persist_layer_norm", "gradient_accumulation_fusion", "masked_softmax_fusion", "bias_dropout_fusion",
                 "bias_activation_fusion", "apply_rope_fusion"):
        setattr(provider, name, False)
    provider.perform_initialization = True
    provider.finalize()
    [model] = provider.provide_distributed_model(wrap_with_ddp=False, use_cpu_initialization=True, bf16=True)
    state, missing, unexpected = dist_checkpointing.load({"model": model.sharded_state_dict()}, source, strict="return_all")
    print(f"rank {rank}: loaded; missing {sorted(missing)} unexpected {sorted(unexpected)}", model.load_state_dict(state["model"]), flush=True)
    target = Path(out, "iter_0000003")
    target.mkdir(parents=True, exist_ok=True)
    torch.distributed.barrier()
    dist_checkpointing.save({"model": model.sharded_state_dict(), "iteration": 3, "checkpoint_version": 3.0}, str(target))
    torch.distributed.barrier()
    if rank == 0:
        Path(out, "latest_checkpointed_iteration.txt").write_text("3")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    hf, source, out, tensor, pipeline = sys.argv[1:]
    ranks = int(tensor) * int(pipeline)
    mp.spawn(work, (hf, source, out, int(tensor), int(pipeline)), ranks)

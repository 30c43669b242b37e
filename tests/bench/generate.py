#!/usr/bin/env python3
"""Tokens a second of `flow generate`'s worker beside transformers' generate(): the same model, prompts and threads, by turns.

    python3 tests/bench/generate.py --flow-torch PATH [--device cpu] [--precision fp32] [--new 128] [--batch 1,8]

Makes a random Llama of --hidden and --layers in a temporary directory. Prefill: one new token of long prompts; decoding: what
further tokens take. Loading the model is not counted: the worker says when it is there. Needs torch and transformers; where there
is no transformers (--alone), flow's numbers alone.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import torch


def model(args, directory):
    """A Hugging Face directory of random weights, written without transformers."""
    from safetensors.torch import save_file
    h, layers, heads, kv, d, f, v = args.hidden, args.layers, args.hidden // 64, max(1, args.hidden // 256), 64, args.hidden * 7 // 2, args.vocab
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
    of = lambda *shape: (torch.randn(*shape) * 0.02).to(dtype)
    tensors = {"model.embed_tokens.weight": of(v, h), "lm_head.weight": of(v, h), "model.norm.weight": torch.ones(h, dtype=dtype)}
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, shape in {"self_attn.q_proj": (heads * d, h), "self_attn.k_proj": (kv * d, h), "self_attn.v_proj": (kv * d, h),
                            "self_attn.o_proj": (h, heads * d), "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f)}.items():
            tensors[f"{p}{name}.weight"] = of(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{p}{name}.weight"] = torch.ones(h, dtype=dtype)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": v, "hidden_size": h, "intermediate_size": f,
              "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": d, "hidden_act": "silu",
              "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
              "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16" if args.precision == "bf16" else "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    return sum(t.numel() for t in tensors.values())


class Flow:
    """A conversation with the worker."""

    def __init__(self, args, directory):
        job = {"job": "generate", "model": str(directory), "max_length": args.prompt + args.new, "batch_size": max(args.batches),
               "device": args.device, "precision": args.precision, "threads": args.threads, "tensor": 1}
        (directory / "job.json").write_text(json.dumps(job))
        env = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        self.worker = subprocess.Popen([args.flow_torch, "worker", str(directory / "job.json")], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True, env=env)
        assert "ready" in json.loads(self.worker.stdout.readline())
        self.asked = 0

    def generate(self, prompts, new):
        lines = [json.dumps({"ask": {"id": self.asked + i, "generate": {"tokens": p, "max_new_tokens": new}}}) for i, p in enumerate(prompts)]
        self.asked += len(prompts)
        start = time.perf_counter()
        self.worker.stdin.write("\n".join(lines) + "\n")
        self.worker.stdin.flush()
        made, left = {}, len(prompts)
        while left:
            told = json.loads(self.worker.stdout.readline())
            if "token" in told:
                made.setdefault(told["token"]["id"], []).append(told["token"]["token"])
            left -= "ended" in told
        return time.perf_counter() - start, [made[i] for i in sorted(made)]

    def cpu(self):
        fields = Path(f"/proc/{self.worker.pid}/stat").read_text().rsplit(") ")[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.worker.stdin.close()
        assert self.worker.wait() == 0


class Transformers:
    def __init__(self, args, directory):
        from transformers import LlamaForCausalLM
        torch.set_num_threads(args.threads)
        dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        self.device = args.device
        self.model = LlamaForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa").to(args.device).eval()

    def cpu(self):
        return time.process_time()

    @torch.no_grad()
    def generate(self, prompts, new):
        ids = torch.tensor(prompts, device=self.device)
        start = time.perf_counter()
        made = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
                                   eos_token_id=None, pad_token_id=0)
        made = made[:, ids.shape[1]:].tolist()
        return time.perf_counter() - start, made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flow-torch", required=True)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", dest="batches", default="1,8", type=lambda text: [int(n) for n in text.split(",")])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--alone", action="store_true", help="without transformers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        parameters = model(args, directory)
        print(f"{parameters / 1e6:.0f} M parameters, {args.precision}, {args.device}, {args.threads} threads, prompts of {args.prompt}")
        flow = Flow(args, directory)
        both = [("flow", flow)] + ([] if args.alone else [("transformers", Transformers(args, directory))])
        for batch in args.batches:
            prompts = torch.randint(3, args.vocab, (batch, args.prompt), generator=torch.Generator().manual_seed(batch)).tolist()
            best = {}
            for _ in range(args.rounds + 1):  # the first round warms up, and is overwritten by any that is faster
                for name, who in both:
                    cpu = [who.cpu()]
                    first, _ = who.generate(prompts, 1)
                    cpu.append(who.cpu())
                    all_of_it, made = who.generate(prompts, args.new)
                    cpu.append(who.cpu())
                    old = best.get(name, (1e9, 1e9, made, 1e9))
                    best[name] = (min(old[0], first), min(old[1], all_of_it - first), made, min(old[3], cpu[2] - 2 * cpu[1] + cpu[0]))
            for name, (first, rest, made, cpu) in best.items():
                print(f"batch {batch:3} {name:13} prefill {batch * args.prompt / first:9.0f} tokens/s, decoding {batch * (args.new - 1) / rest:8.1f} tokens/s, {1e3 * cpu / batch / (args.new - 1):.1f} ms CPU a token")
            if not args.alone:
                f, t = best["flow"], best["transformers"]
                same = sum(a == b for x, y in zip(f[2], t[2]) for a, b in zip(x, y)) / (batch * args.new)
                print(f"batch {batch:3} flow / transformers: prefill {t[0] / f[0]:.2f} ×, decoding {t[1] / f[1]:.2f} × ({t[3] / f[3]:.2f} × by CPU time); {same:.0%} of the tokens are the same")
        flow.end()


if __name__ == "__main__":
    main()

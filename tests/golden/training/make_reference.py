#!/usr/bin/env python3
"""Writes what is beside it: tiny Llamas, tokens, and what another implementation makes of
them: the trace of 20 training steps, every gradient of one batch, logits.

The other implementation is transformers' LlamaForCausalLM with torch.optim.AdamW, in fp32 on one CPU thread; batches are
dealt out by Megatron's GPTDataset as described in its documentation, written again here with NumPy's RandomState.

    python3 make_reference.py        # torch 2.11.0, transformers 4.57.6, numpy, safetensors
"""

import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
VOCAB, SEQ, GLOBAL_BATCH, STEPS, SEED = 256, 64, 8, 20, 42
LR, MIN_LR, WARMUP, BETAS, EPS, DECAY, CLIP = 1e-2, 1e-3, 4, (0.9, 0.95), 1e-8, 0.1, 1.0
VAL_INTERVAL, VAL_BATCHES = 5, 2


def config(tied):
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0,
        # The original context is shorter than a sequence, so that every branch of the scaling is taken.
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 32},
        tie_word_embeddings=tied, initializer_range=0.25, bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16",
        attn_implementation="eager",
    )


def write_model(name, tied):
    """A model of random bf16 weights as a Hugging Face directory; norms are not 1, so that they matter."""
    torch.manual_seed(7 if tied else 5)
    model = LlamaForCausalLM(config(tied))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(model.config.to_dict(), indent=1, sort_keys=True) + "\n")


def documents(count, seed):
    """Documents with a pattern to learn: mostly, the next token follows from the last."""
    random = np.random.RandomState(seed)
    result = []
    for _ in range(count):
        tokens = list(random.randint(3, VOCAB, 2))
        length = random.randint(20, 400)
        while len(tokens) < length:
            surprise = random.rand() < 0.1
            tokens.append(int(random.randint(3, VOCAB)) if surprise else (5 * tokens[-1] + 7) % 61)
        result.append(np.array(tokens + [2], dtype=np.uint16))
    return result


def write_dataset(name, docs):
    """Megatron's .bin/.idx."""
    (HERE / f"{name}.bin").write_bytes(b"".join(d.tobytes() for d in docs))
    lengths = np.array([len(d) for d in docs], dtype=np.int32)
    pointers = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64) * 2]).astype(np.int64)
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(docs), len(docs) + 1)
    ends = np.arange(len(docs) + 1, dtype=np.int64)
    (HERE / f"{name}.idx").write_bytes(header + lengths.tobytes() + pointers.tobytes() + ends.tobytes())


def samples(docs, count):
    """The first `count` samples of SEQ + 1 tokens, in GPTDataset's order."""
    tokens_per_epoch = sum(len(d) for d in docs)
    epochs = 1
    while epochs * tokens_per_epoch < count * SEQ + 1:
        epochs += 1
    sans_final = ((epochs - 1) * tokens_per_epoch - 1) // SEQ
    per_epoch = (tokens_per_epoch - 1) // SEQ
    separate = epochs > 1 and count - sans_final < int(0.80 * per_epoch)
    random = np.random.RandomState(SEED)

    def document_order(n):
        order = np.tile(np.arange(len(docs), dtype=np.int32), n)
        random.shuffle(order)
        return order

    order = np.concatenate([document_order(epochs - 1), document_order(1)]) if separate else document_order(epochs)
    stream = np.concatenate([docs[d] for d in order]).astype(np.int64)
    total = (epochs * tokens_per_epoch - 1) // SEQ

    def shuffled(begin, end):
        part = np.arange(begin, end, dtype=np.uint32)
        random.shuffle(part)
        return part

    shuffle = np.concatenate([shuffled(0, sans_final), shuffled(sans_final, total)]) if separate else shuffled(0, total)
    return np.stack([stream[int(i) * SEQ:int(i) * SEQ + SEQ + 1] for i in shuffle[:count]])


def learning_rate(completed):
    """Megatron's OptimizerParamScheduler, cosine."""
    if completed <= WARMUP:
        return LR * completed / WARMUP
    ratio = (completed - WARMUP) / (STEPS - WARMUP)
    return MIN_LR + 0.5 * (math.cos(math.pi * ratio) + 1.0) * (LR - MIN_LR)


def loss_of(model, rows):
    rows = torch.from_numpy(rows)
    logits = model(input_ids=rows[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


def trace(name, train, validation):
    model = LlamaForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager").train()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS)
    lines = []
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step - 1)
        optimizer.zero_grad()
        loss = loss_of(model, train[(step - 1) * GLOBAL_BATCH:step * GLOBAL_BATCH])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        line = {"step": step, "loss": loss.item(), "lr": learning_rate(step - 1), "grad_norm": norm.item()}
        if step % VAL_INTERVAL == 0:
            begin = (step // VAL_INTERVAL - 1) * VAL_BATCHES * GLOBAL_BATCH
            with torch.no_grad():
                line["val_loss"] = loss_of(model, validation[begin:begin + VAL_BATCHES * GLOBAL_BATCH]).item()
        lines.append(line)
    return lines


def write_gradients(name, rows):
    """The loss of two rows and its gradient by every parameter, under Hugging Face's names."""
    model = LlamaForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager").train()
    loss = loss_of(model, rows)
    loss.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    save_file(gradients, HERE / name / "gradients.safetensors", metadata={"format": "pt"})
    return {"rows": rows.tolist(), "loss": loss.item()}


def some_logits(name):
    model = LlamaForCausalLM.from_pretrained(HERE / name, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [(7 * i * i + 3 * i + 1) % VOCAB for i in range(300)]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return {"ids": ids, "at": {str(i): [round(x, 6) for x in logits[i, :8].tolist()] for i in (0, 1, 31, 150, 299)}}


def main():
    torch.set_num_threads(1)
    train, validation = documents(35, 1), documents(20, 2)
    write_dataset("train_document", train)
    write_dataset("validation_document", validation)
    rounds = STEPS // VAL_INTERVAL + 1
    train = samples(train, STEPS * GLOBAL_BATCH)
    validation = samples(validation, rounds * VAL_BATCHES * GLOBAL_BATCH)
    traces = {}
    for name, tied in [("untied", False), ("tied", True)]:
        write_model(name, tied)
        traces[name] = trace(name, train, validation)
    training = {
        "seq_length": SEQ, "micro_batch_size": 2, "global_batch_size": GLOBAL_BATCH, "max_steps": STEPS, "seed": SEED,
        "precision": "fp32", "gradient_clip": CLIP, "val_interval": VAL_INTERVAL, "limit_val_batches": VAL_BATCHES,
        "optim": {"lr": LR, "min_lr": MIN_LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY},
        "sched": {"name": "cosine", "warmup_steps": WARMUP},
    }
    reference = {
        "torch": torch.__version__.split("+")[0], "training": training, "traces": traces,
        "logits": {name: some_logits(name) for name in traces},
        "gradients": {name: write_gradients(name, train[:2]) for name in traces},
    }
    (HERE / "reference.json").write_text(json.dumps(reference, indent=None).replace('{"step"', '\n{"step"') + "\n")


if __name__ == "__main__":
    main()

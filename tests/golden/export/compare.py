"""Loads a Hugging Face directory that flow exported into transformers, and compares logits and eval.

    python compare.py HF_DIR FLOW_TORCH RESULTS_JSON DOCUMENTS.jsonl[.gz] LIMIT

Needs torch 2.11, transformers 4.57.6 and numpy. RESULTS_JSON is the output of flow's `eval` stage with the task `loss` for that model over
the first LIMIT documents. Prints the largest difference of fp32 logits, and both losses.
"""

import gzip
import json
import subprocess
import sys
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

directory, flow_torch, results, documents, limit = *sys.argv[1:5], int(sys.argv[5])
model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(directory)
vocab = model.config.vocab_size

ids = [(7 * i * i + 3 * i + 1) % vocab for i in range(96)]
with tempfile.TemporaryDirectory() as scratch:
    with open(f"{scratch}/ids.json", "w") as file:
        json.dump(ids, file)
    subprocess.run([flow_torch, "logits", directory, f"{scratch}/ids.json", f"{scratch}/out.npy"], check=True)
    ours = np.load(f"{scratch}/out.npy")
with torch.no_grad():
    theirs = model(torch.tensor([ids])).logits[0].numpy()
print(f"logits {ours.shape}: largest difference {np.abs(ours - theirs.reshape(ours.shape)).max():.2e}")

# Every token but a document's first is scored once. Windows as lm-evaluation-harness makes them: the first scores as
# many tokens as fit; each later one the next ones, with all the left context that fits.
window = min(2048, model.config.max_position_embeddings)  # eval's default `seq_length`
nll, tokens = 0.0, 0
opener = gzip.open if documents.endswith(".gz") else open
with opener(documents, "rt", encoding="utf-8") as file, torch.no_grad():
    for line in [next(file) for _ in range(limit)]:
        text = tokenizer(json.loads(line)["text"])["input_ids"]
        done, last = 0, len(text) - 1
        while done < last:
            new = min(window, last - done)
            end = done + new
            inputs = torch.tensor([text[max(0, end - window) : end]])
            logits = model(inputs).logits[0, -new:].log_softmax(-1)
            nll -= logits.gather(1, torch.tensor(text[done + 1 : end + 1])[:, None]).double().sum().item()
            done = end
        tokens += last
[task] = [task for task in json.load(open(results))["tasks"] if task["task"] == "loss"]
loss = next(metric for metric in task["metrics"] if metric["metric"] == "loss")["model"]["value"]
print(f"loss a token over {tokens} tokens: transformers {nll / tokens:.6f}, flow {loss:.6f}")
assert np.abs(ours - theirs.reshape(ours.shape)).max() < 1e-3
assert abs(nll / tokens - loss) < 1e-3
print("equal")

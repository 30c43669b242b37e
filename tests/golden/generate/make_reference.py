#!/usr/bin/env python3
"""Writes reference.json: what transformers answers, in fp32 on one CPU thread, when the models in ../training are asked how
likely tokens are, how prompts go on, and which probabilities sampling gives tokens.

    python3 make_reference.py        # torch 2.11.0, transformers 4.57.6, numpy
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM
from transformers.generation.logits_process import (
    LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
)

HERE = Path(__file__).parent
VOCAB = 256


def scores(model, random):
    """Requests of all lengths; some that the model finds likeliest, some that share their input."""
    requests = []
    for length, scored in [(2, 1), (3, 2), (40, 1), (40, 39), (129, 17), (333, 332), (513, 512)]:
        requests.append((random.randint(3, VOCAB, length).tolist(), scored))
    shared = random.randint(3, VOCAB, 25).tolist()
    requests += [(shared + [choice], 1) for choice in (9, 77, 200)] + [(shared + [9], 5)]
    for length, more in [(7, 1), (30, 6)]:
        prompt = torch.tensor([random.randint(3, VOCAB, length).tolist()])
        own = model.generate(prompt, max_new_tokens=more, do_sample=False, eos_token_id=None, pad_token_id=0)
        requests.append((own[0].tolist(), more))
    answers = []
    for tokens, scored in requests:
        logprobs = torch.log_softmax(model(torch.tensor([tokens[:-1]])).logits[0, -scored:].double(), -1)
        target = torch.tensor(tokens[-scored:])
        answers.append({
            "tokens": tokens, "scored": scored,
            "logprob": logprobs.gather(1, target[:, None]).sum().item(),
            "greedy": bool((logprobs.argmax(-1) == target).all()),
        })
    return answers


def generations(model, random):
    """Greedy, prompts of different lengths, one of them to the end of the positions; with and without a penalty."""
    answers = []
    for length, more, penalty in [(1, 60, 1.0), (3, 40, 1.0), (17, 200, 1.0), (300, 212, 1.0), (64, 33, 1.0), (9, 80, 1.3),
                                  (5, 1, 1.0)]:
        prompt = random.randint(3, VOCAB, length).tolist()
        made = model.generate(torch.tensor([prompt]), max_new_tokens=more, do_sample=False, eos_token_id=None, pad_token_id=0,
                              repetition_penalty=penalty)
        answers.append({"prompt": prompt, "penalty": penalty, "made": made[0, length:].tolist()})
    return answers


def distributions(model, random):
    """Probabilities after processors, in the order in which generate() puts them."""
    answers = []
    for penalty, temperature, k, p in [(1.0, 1.0, 0, 1.0), (1.0, 0.7, 0, 1.0), (1.0, 1.0, 5, 1.0), (1.0, 1.0, 0, 0.8),
                                       (1.3, 1.0, 0, 1.0), (1.2, 1.5, 20, 0.5), (0.8, 0.3, 3, 0.99), (1.0, 1.0, 0, 1e-6)]:
        prompt = random.randint(3, VOCAB, 12).tolist()
        processors = LogitsProcessorList()
        if penalty != 1.0:
            processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if temperature != 1.0:
            processors.append(TemperatureLogitsWarper(temperature))
        if k:
            processors.append(TopKLogitsWarper(k))
        if p != 1.0:
            processors.append(TopPLogitsWarper(p))
        ids = torch.tensor([prompt])
        probabilities = torch.softmax(processors(ids, model(ids).logits[:, -1].float()), -1)[0]
        answers.append({
            "prompt": prompt,
            "sampling": {"temperature": temperature, "top_k": k, "top_p": p, "repetition_penalty": penalty},
            "probabilities": {i: x for i, x in enumerate(probabilities.tolist()) if x > 0.0},
        })
    return answers


def main():
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    reference = {}
    for seed, name in enumerate(["untied", "tied"]):
        model = LlamaForCausalLM.from_pretrained(HERE / "../training" / name, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
        random = np.random.RandomState(seed)
        reference[name] = {f.__name__: f(model, random) for f in (scores, generations, distributions)}
    lines = json.dumps(reference, indent=1)
    lines = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", lines)
    (HERE / "reference.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()

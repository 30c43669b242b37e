"""What lm-evaluation-harness asks a model in these tasks, and what it makes of the answers: golden.json.

    python make_golden.py MODEL_DIR

MODEL_DIR is the result of the stage `model` of pipeline.toml (`flow run pipeline.toml model; flow path pipeline.toml model`).
Needs lm_eval 0.4.13, torch 2.11.0 and transformers 4.57.6. Each task file of flow becomes a task of lm-eval's, field by field.
"""

import json
import sys
import tomllib
from pathlib import Path

import torch
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer

# What it looks up about the machine takes longer than all else.
evaluator.add_env_info = evaluator.add_tokenizer_info = lambda *_: None
evaluator.get_git_commit_hash = lambda: None

here = Path(__file__).parent
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
# transformers 5 does not do it, nor does flow.
tokenizer.clean_up_tokenization_spaces = False

asked, answered = [], []


class Asked(HFLM):
    """lm-eval's model, with what it is asked and answers written down."""

    def _loglikelihood_tokens(self, requests, **kwargs):
        answers = super()._loglikelihood_tokens(requests, **kwargs)
        for (_, context, continuation), (logprob, greedy) in zip(requests, answers):
            tokens = (context + continuation)[-(self.max_length + 1) :]
            asked.append({"score": {"tokens": tokens, "scored": len(continuation)}})
            answered.append({"score": {"logprob": float(logprob), "greedy": bool(greedy)}})
        return answers

    def _model_generate(self, context, **kwargs):
        out = super()._model_generate(context, **kwargs)
        written = out[0, context.shape[1] :].tolist()
        asked.append({"generate": {"tokens": context[0].tolist()}})
        if self.eot_token_id in written:
            written = written[: written.index(self.eot_token_id)]
        answered.append({"generate": {"tokens": written, "ended": "length"}})
        return out


KINDS = {
    "multiple-choice": "multiple_choice",
    "log-likelihood": "loglikelihood",
    "perplexity": "loglikelihood_rolling",
    "generate": "generate_until",
}


def config_of(task):
    """A task file → a configuration of lm-eval's."""
    kind, shots = task["kind"], task.get("fewshot", {})
    config = {
        "task": task["task"],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(here / "tasks" / task["data"])}},
        "test_split": "test",
        "output_type": KINDS[kind],
        "metric_list": [{"metric": name} for name in task["metrics"]],
        "target_delimiter": task.get("target_delimiter", " "),
        "fewshot_delimiter": shots.get("delimiter", "\n\n"),
        "num_fewshot": shots.get("count", 0),
    }
    if "description" in task:
        config["description"] = task["description"]
    if "contexts" in task:
        config["doc_to_text"] = task["label"]
        config["doc_to_choice"] = "{{[%s]}}" % ", ".join(text.strip("{}") for text in task["contexts"])
        config["doc_to_target"] = task["target"]
    elif kind == "perplexity":
        config |= {"doc_to_text": "", "doc_to_target": task["text"]}
    else:
        config |= {"doc_to_text": task["text"], "doc_to_target": task["target"]}
        if "choices" in task:
            config["doc_to_choice"] = "{{[%s]}}" % ", ".join(text.strip("{}") for text in task["choices"])
    if kind == "generate":
        config["generation_kwargs"] = {"max_gen_toks": task["max_new_tokens"], "do_sample": False}
        if "until" in task:
            config["generation_kwargs"]["until"] = task["until"]
        if "remove_whitespace" in task.get("filters", []):
            steps = [{"function": "remove_whitespace"}, {"function": "take_first"}]
            config["filter_list"] = [{"name": "none", "filter": steps}]
        config["metric_list"] = [{"metric": "exact_match"} | task.get("exact_match", {})]
    if shots:
        split = "test"
        if "data" in shots:
            config["dataset_kwargs"]["data_files"]["shots"] = str(here / "tasks" / shots["data"])
            split = "shots"
        config["fewshot_split"] = split
        config["fewshot_config"] = {"sampler": "first_n" if shots.get("sampler") == "first" else "default"}
    return config


golden = {}
for path in tomllib.loads((here / "pipeline.toml").read_text())["stage"]["eval"]["tasks"]:
    task = tomllib.loads((here / path).read_text())
    asked.clear(), answered.clear()
    lm = Asked(pretrained=model, tokenizer=tokenizer, batch_size=1, logits_cache=False, device="cpu")
    out = evaluator.simple_evaluate(
        lm, tasks=[ConfigurableTask(config=config_of(task))], log_samples=True, bootstrap_iters=100_000, fewshot_random_seed=1234
    )
    numbers = {}
    for name, value in out["results"][task["task"]].items():
        metric, _, filtered = name.partition(",")
        if filtered and isinstance(value, (int, float)):
            numbers[metric] = value
    samples = sorted(out["samples"][task["task"]], key=lambda sample: sample["doc_id"])
    golden[task["task"]] = {
        "requests": list(asked),
        "answers": list(answered),
        "numbers": numbers,
        "texts": [sample["filtered_resps"][0] for sample in samples] if task["kind"] == "generate" else [],
    }
with open(here / "golden.json", "w") as file:
    tasks = []
    for name, of in golden.items():
        lines = [f' "{key}": {json.dumps(value, ensure_ascii=False, separators=(",", ":"))}' for key, value in of.items()]
        tasks.append(f'"{name}": {{\n' + ",\n".join(lines) + "}")
    file.write("{\n" + ",\n".join(tasks) + "}\n")

"""What lm-evaluation-harness asks a model in these tasks, and what it makes of the answers: golden.json.

    python make_golden.py MODEL_DIR

MODEL_DIR is the result of the stage `model` of pipeline.toml (`flow run pipeline.toml model; flow path pipeline.toml model`).
Beside it shipped.json, with lm-eval's own task files over the documents of the tasks that come with flow.
Needs lm_eval 0.4.13, torch 2.11.0 and transformers 4.57.6. Each task file of flow becomes a task of lm-eval's, field by field.
"""

import json
import sys
import tomllib
from pathlib import Path

import lm_eval.tasks
import torch
from lm_eval import evaluator
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.squadv2.task import SQuAD2
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


def result_of(task, has_texts=False):
    """What is asked in a task of lm-eval's, what is answered, and what comes of it."""
    asked.clear(), answered.clear()
    lm = Asked(pretrained=model, tokenizer=tokenizer, batch_size=1, logits_cache=False, device="cpu")
    out = evaluator.simple_evaluate(
        lm, tasks=[task], log_samples=True, bootstrap_iters=100_000, fewshot_random_seed=1234
    )
    name = task.config.task
    numbers = {}
    for metric, value in out["results"][name].items():
        metric, _, filtered = metric.partition(",")
        if filtered and isinstance(value, (int, float)):
            numbers[metric] = value
    samples = sorted(out["samples"][name], key=lambda sample: sample["doc_id"])
    return {
        "requests": list(asked),
        "answers": list(answered),
        "numbers": numbers,
        "texts": [sample["filtered_resps"][0] for sample in samples] if has_texts else [],
    }


def write(golden, name):
    with open(here / name, "w") as file:
        tasks = []
        for task, of in golden.items():
            lines = [f' "{key}": {json.dumps(value, ensure_ascii=False, separators=(",", ":"))}' for key, value in of.items()]
            tasks.append(f'"{task}": {{\n' + ",\n".join(lines) + "}")
        file.write("{\n" + ",\n".join(tasks) + "}\n")


golden = {}
for path in tomllib.loads((here / "pipeline.toml").read_text())["stage"]["eval"]["tasks"]:
    task = tomllib.loads((here / path).read_text())
    golden[task["task"]] = result_of(ConfigurableTask(config=config_of(task)), task["kind"] == "generate")
write(golden, "golden.json")

# The tasks that come with flow: lm-eval's own files, with its own functions, over the documents of flow's.
SHIPPED = {
    "boolq": "super_glue/boolq/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "race": "race/race.yaml",
    "winogrande": "winogrande/default.yaml",
}
theirs = Path(lm_eval.tasks.__file__).parent
shipped = {}
for name, path in SHIPPED.items():
    config = load_yaml(theirs / path)
    for key in ["dataset_name", "training_split", "validation_split", "test_split", "tag"]:
        config.pop(key, None)
    data = {"test": str(here / "../../../examples/eval/tasks" / f"{name}.jsonl")}
    config |= {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": data}, "test_split": "test"}
    shipped[name] = result_of(ConfigurableTask(config=config))
# `squadv2` is a class that fetches its data: its prompts alone.
lines = (here / "../../../examples/eval/tasks/squad.jsonl").read_text().splitlines()
prompts = [SQuAD2.doc_to_text(None, json.loads(line)) for line in lines]
requests = [{"generate": {"tokens": tokenizer(prompt)["input_ids"][-256:]}} for prompt in prompts]
shipped["squad"] = {"requests": requests, "answers": [], "numbers": {}, "texts": []}
write(shipped, "shipped.json")

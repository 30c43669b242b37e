//! What a checkpoint's `common.pt` says of the optimizer, in Megatron-Core's words: its groups, how its state is cut, and
//! the learning rate's schedule. flow itself goes on from `flow_state.json`; this is for who goes on with Megatron.

use flow_formats::{pickle::Value, torch_dist};
use flow_plan::{SchedName, Schedule, Training};

use crate::checkpoint::State;

/// Entries of `common.pt`.
pub type Common = Vec<(&'static str, Value)>;

/// How the optimizer's tensors are cut: any way, under the names of the model's own.
const SHARDING: (&str, &str) = ("distrib_optim_sharding_type", "fully_reshardable");

/// The entries of a run that stands at `state`.
pub fn of(training: &Training, state: &State) -> Common {
    let [matrices, norms] = [1.0, 0.0].map(|multiplier| group(training, state, multiplier));
    let optimizer = [
        ("optimizer", Value::dict([("param_groups", Value::List(vec![matrices, norms]))])),
        ("param_state_sharding_type", Value::str(SHARDING.1)),
    ];
    let content =
        [(SHARDING.0, Value::str(SHARDING.1)), ("distrib_optim_fully_reshardable_mem_efficient", Value::Bool(false))];
    vec![
        ("content_metadata", Value::dict(content.into_iter().chain(torch_dist::CONTENT))),
        ("optimizer", Value::dict(optimizer)),
        ("opt_param_scheduler", scheduler(training, state)),
    ]
}

/// Megatron knows a group by its multiples of weight decay and learning rate. Fused optimizers ask for `bias_correction` and
/// keep the count of updates here; PyTorch's own asks for the rest.
fn group(training: &Training, state: &State, decays: f64) -> Value {
    let optim = &training.optim;
    let [no, yes] = [false, true].map(Value::Bool);
    Value::dict([
        ("is_expert_parallel", no.clone()),
        ("default_config", yes.clone()),
        ("wd_mult", Value::Float(decays)),
        ("lr_mult", Value::Float(1.0)),
        ("is_decoupled_lr", no.clone()),
        ("max_lr", Value::Float(optim.lr)),
        ("min_lr", Value::Float(optim.min_lr)),
        ("lr", Value::Float(Schedule::new(training).lr(state.step))),
        ("bias_correction", yes.clone()),
        ("betas", Value::Tuple(optim.betas.map(Value::Float).to_vec())),
        ("eps", Value::Float(optim.eps)),
        ("weight_decay", Value::Float(decays * optim.weight_decay)),
        ("amsgrad", no.clone()),
        ("maximize", no.clone()),
        ("foreach", Value::None),
        ("capturable", no.clone()),
        ("differentiable", no),
        ("fused", Value::None),
        ("decoupled_weight_decay", yes),
        ("step", Value::Int(state.updates as i64)),
    ])
}

/// `OptimizerParamScheduler`, which counts samples.
fn scheduler(training: &Training, state: &State) -> Value {
    let optim = &training.optim;
    let samples = |steps: u64| Value::Int((steps * training.global_batch_size as u64) as i64);
    let style = match training.sched.name {
        SchedName::Cosine => "cosine",
        SchedName::Linear => "linear",
        SchedName::Constant => "constant",
    };
    Value::dict([
        ("max_lr", Value::Float(optim.lr)),
        ("lr_warmup_steps", samples(training.sched.warmup_steps)),
        ("num_steps", samples(state.step)),
        ("lr_decay_style", Value::str(style)),
        ("lr_decay_steps", samples(training.decay_steps())),
        ("min_lr", Value::Float(optim.min_lr)),
        ("start_wd", Value::Float(optim.weight_decay)),
        ("end_wd", Value::Float(optim.weight_decay)),
        ("wd_incr_style", Value::str("constant")),
        ("wd_incr_steps", samples(training.max_steps)),
    ])
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::{Value as Json, json};

    use super::*;

    /// What Megatron-Core 0.16.1 writes beside tensors is there, and of its type: `tests/golden/megatron_ckpt/README.md`.
    #[test]
    fn everything_that_megatron_writes_is_there() {
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/megatron_ckpt/optimizer_common.json");
        let theirs: Json = serde_json::from_slice(&fs::read(golden).unwrap()).unwrap();
        let training = json!({
            "seq_length": 8, "micro_batch_size": 1, "global_batch_size": 2, "max_steps": 80, "sched": {"warmup_steps": 8},
            "optim": {"lr": 1e-3, "min_lr": 1e-5, "weight_decay": 0.1},
        });
        let state = State { step: 10, updates: 9, ..State::default() };
        let ours = json(&Value::dict(of(&serde_json::from_value(training).unwrap(), &state)));
        has(&ours, &theirs, "");
        let groups = &ours["optimizer"]["optimizer"]["param_groups"];
        assert_eq!([&groups[0]["weight_decay"], &groups[1]["weight_decay"]], [&json!(0.1), &json!(0.0)]);
        assert_eq!((&groups[0]["step"], &ours["opt_param_scheduler"]["num_steps"]), (&json!(9), &json!(20)));
    }

    fn has(ours: &Json, theirs: &Json, place: &str) {
        match (ours, theirs) {
            (Json::Object(ours), Json::Object(theirs)) => {
                for (name, value) in theirs {
                    has(ours.get(name).unwrap_or_else(|| panic!("{place}.{name}")), value, &format!("{place}.{name}"));
                }
            }
            (Json::Array(ours), Json::Array(theirs)) => {
                assert_eq!(ours.len(), theirs.len(), "{place}");
                ours.iter().zip(theirs).for_each(|(ours, theirs)| has(ours, theirs, place));
            }
            // A setting that a model need not have.
            (Json::Number(_), Json::Null | Json::Number(_)) => {}
            _ => assert_eq!(ours, theirs, "{place}"),
        }
    }

    fn json(value: &Value) -> Json {
        match value {
            Value::None => Json::Null,
            Value::Bool(truth) => json!(truth),
            Value::Int(number) => json!(number),
            Value::Float(number) => json!(number),
            Value::Str(text) => json!(text),
            Value::List(values) | Value::Tuple(values) => values.iter().map(json).collect(),
            Value::Dict(entries) => {
                let name = |key: &Value| json(key).as_str().unwrap().to_owned();
                Json::Object(entries.iter().map(|(key, value)| (name(key), json(value))).collect())
            }
            other => panic!("{other:?} is not plain data"),
        }
    }
}

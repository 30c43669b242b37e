//! [`Schedule`]: the learning rate over time.
//!
//! Megatron's `OptimizerParamScheduler` with `init_lr = 0`, counted in steps: the step that is taken when `n` steps
//! are done has
//!
//! - `lr · n / warmup` while `n ≤ warmup` (so the very first step of a run with a warm-up has learning rate 0);
//! - then `min_lr + (lr − min_lr) · c(r)`, `r = (n − warmup) / (decay − warmup)`, `c(r) = (1 + cos πr) / 2` or `1 − r`;
//! - `min_lr` when `n > decay`, and `lr` for ever with `constant`.
//!
//! `decay` is `sched.decay_steps`, else `max_steps − constant_steps`. With `constant_steps > 0` this is NeMo's
//! `CosineAnnealing` too; without, NeMo's differs in the warm-up alone: `lr · (n + 1) / (warmup + 1)`.

use std::f64::consts::PI;

use crate::{SchedName, Training};

/// The learning rate over time.
#[derive(Clone, Debug)]
pub struct Schedule {
    name: SchedName,
    lr: f64,
    min_lr: f64,
    warmup: u64,
    decay: u64,
}

impl Schedule {
    /// The schedule of a run.
    #[must_use]
    pub fn new(training: &Training) -> Self {
        let sched = &training.sched;
        Self {
            name: sched.name,
            lr: training.optim.lr,
            min_lr: training.optim.min_lr,
            warmup: sched.warmup_steps,
            decay: training.decay_steps(),
        }
    }

    /// The learning rate of the step that is taken when `completed` steps are done.
    #[must_use]
    pub fn lr(&self, completed: u64) -> f64 {
        if self.warmup > 0 && completed <= self.warmup {
            return self.lr * completed as f64 / self.warmup as f64;
        }
        if self.name == SchedName::Constant {
            return self.lr;
        }
        if completed > self.decay {
            return self.min_lr;
        }
        let ratio = (completed - self.warmup) as f64 / (self.decay - self.warmup) as f64;
        let left = match self.name {
            SchedName::Cosine => 0.5 * ((PI * ratio).cos() + 1.0),
            SchedName::Linear => 1.0 - ratio,
            SchedName::Constant => unreachable!("returned above"),
        };
        self.min_lr + left * (self.lr - self.min_lr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::training;

    /// Numbers of Megatron's formula, by `tests/golden/schedule/make.py`.
    #[test]
    fn learning_rates_are_megatrons() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/schedule/lr.json");
        let cases: Vec<serde_json::Value> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let mut training = training();
            training.max_steps = case["max_steps"].as_u64().unwrap();
            training.optim.lr = case["lr"].as_f64().unwrap();
            training.optim.min_lr = case["min_lr"].as_f64().unwrap();
            training.sched = serde_json::from_value(case["sched"].clone()).unwrap();
            let schedule = Schedule::new(&training);
            for (completed, expected) in case["lrs"].as_array().unwrap().iter().enumerate() {
                let (lr, expected) = (schedule.lr(completed as u64), expected.as_f64().unwrap());
                assert!((lr - expected).abs() <= 1e-15 * expected.abs(), "{case} after {completed}: {lr} {expected}");
            }
        }
    }
}

//! [`MemoryEstimate`]: how much memory a rank needs, before anything is started.
//!
//! Weights, gradients and optimizer are exact. Activations are what the backward pass of one layer keeps with fused
//! attention: the inputs of its matrix products and of its element-wise functions. What an allocator adds is not known.

use std::fmt;

use crate::{Mesh, ModelConfig, Precision, Recompute, Training};

/// The loss is computed over so many tokens at a time: the logits of a whole sequence are never in memory.
pub const LOSS_CHUNK_TOKENS: usize = 1024;

/// Bytes of the rank that needs most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters of the whole model.
    pub model_parameters: u64,
    /// Parameters on this rank.
    pub parameters: u64,
    /// Weights.
    pub weights: u64,
    /// Gradients: fp32 sums, and with bf16 those of one backward pass.
    pub gradients: u64,
    /// Moments, and with bf16 the fp32 weights.
    pub optimizer: u64,
    /// What forward keeps for backward.
    pub activations: u64,
    /// A chunk of logits in fp32, its softmax and its gradient.
    pub logits: u64,
}

impl MemoryEstimate {
    /// The estimate for the rank that needs most. The training must have passed [`Training::check`] with this model.
    #[must_use]
    pub fn of(training: &Training, model: &ModelConfig) -> Self {
        let stages = 0..training.parallel.pipeline;
        let estimates = stages.map(|stage| Self::of_stage(training, model, stage));
        estimates.max_by_key(Self::total).unwrap_or_default()
    }

    /// All of it, in bytes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.logits
    }

    fn of_stage(training: &Training, model: &ModelConfig, stage: usize) -> Self {
        let parallel = &training.parallel;
        let last = stage + 1 == parallel.pipeline;
        let layers = Mesh::new(parallel).layers(model.num_hidden_layers, stage).len() as u64;
        let parameters = parameters(model, layers, stage == 0, last, parallel.tensor as u64);
        let element = match training.precision {
            Precision::Fp32 => 4,
            Precision::Bf16 => 2,
        };
        let (gradient, state) = match training.precision {
            Precision::Fp32 => (4, 8),
            Precision::Bf16 => (4 + 2, 12),
        };
        let tokens = (training.micro_batch_size * training.seq_length / parallel.context) as u64;
        // In a 1F1B pipeline the first stage is ahead of the last by as many micro batches as there are stages.
        let in_flight = (parallel.pipeline - stage).min(training.accumulation()) as u64;
        let chunk = tokens.min(LOSS_CHUNK_TOKENS as u64) * model.vocab_size as u64 / parallel.tensor as u64;
        Self {
            model_parameters: parameters_of(model),
            parameters,
            weights: parameters * element,
            gradients: parameters * gradient,
            // All of it on every rank: the trainer does not shard it over the data axis.
            optimizer: parameters * state,
            activations: in_flight * kept(training, model, layers) * tokens * element,
            logits: if last { 3 * 4 * chunk } else { 0 },
        }
    }
}

fn parameters_of(model: &ModelConfig) -> u64 {
    parameters(model, model.num_hidden_layers as u64, true, true, 1)
}

/// Parameters of a rank with so many layers, one of `tensor` that share each matrix.
fn parameters(model: &ModelConfig, layers: u64, first: bool, last: bool, tensor: u64) -> u64 {
    let (hidden, vocab) = (model.hidden_size as u64, model.vocab_size as u64);
    let heads = (model.num_attention_heads + model.num_key_value_heads) as u64 * model.head_dim as u64;
    let matrices = 2 * hidden * heads + 3 * hidden * model.intermediate_size as u64;
    let embedding = vocab * hidden / tensor;
    // A tied embedding is on both ends of a pipeline, and once where the ends are one.
    let ends = u64::from(first) + u64::from(last && !(first && model.tie_word_embeddings));
    layers * (matrices / tensor + 2 * hidden) + ends * embedding + if last { hidden } else { 0 }
}

/// Elements a token that forward keeps for backward, over so many layers.
fn kept(training: &Training, model: &ModelConfig, layers: u64) -> u64 {
    let tensor = training.parallel.tensor as u64;
    let hidden = model.hidden_size as u64 / if training.parallel.sequence { tensor } else { 1 };
    let head = model.head_dim as u64;
    let (heads, groups) = (model.num_attention_heads as u64, model.num_key_value_heads as u64);
    // Two norms: input and output of each. Attention: q, k, v and its output. Feed-forward: gate, up, SiLU, product.
    let norms = 4 * hidden;
    let attention = (2 * heads + 2 * groups) * head / tensor;
    let feed_forward = 4 * model.intermediate_size as u64 / tensor;
    match training.memory.recompute {
        // The trainer's attention keeps no scores, so that there is nothing for `selective` to leave out.
        Recompute::None | Recompute::Selective => layers * (norms + attention + feed_forward),
        Recompute::Full => layers * hidden + norms + attention + feed_forward,
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1 << 30));
        write!(
            f,
            "{} GiB a rank = weights {} + gradients {} + optimizer {} + activations {} + logits {}",
            gib(self.total()),
            gib(self.weights),
            gib(self.gradients),
            gib(self.optimizer),
            gib(self.activations),
            gib(self.logits)
        )
    }
}

impl Training {
    /// What `flow plan` shows of a run: processes, batches, tokens, and with the model's geometry, memory.
    #[must_use]
    pub fn plan_lines(&self, model: Option<&ModelConfig>) -> Vec<String> {
        let p = &self.parallel;
        let step = self.consumed_tokens(self.global_batch_size as u64);
        let mut lines = vec![
            format!(
                "processes: {} = tensor {} × context {} × data {} × pipeline {}",
                p.world_size(),
                p.tensor,
                p.context,
                p.data,
                p.pipeline
            ),
            format!(
                "batch: {} sequences = micro {} × data {} × {} accumulated; {step} tokens a step",
                self.global_batch_size,
                self.micro_batch_size,
                p.data,
                self.accumulation()
            ),
            format!("tokens: {} in {} steps", step * self.max_steps, self.max_steps),
        ];
        if let Some(model) = model {
            let estimate = MemoryEstimate::of(self, model);
            lines.push(format!("parameters: {}, {} a rank", estimate.model_parameters, estimate.parameters));
            lines.push(format!("memory: {estimate}"));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Parallel,
        tests::{llama_8b, model, training},
    };

    #[test]
    fn parameters_are_counted_exactly() {
        // As Hugging Face's model card and safetensors index say of Llama-3.1-8B.
        assert_eq!(parameters_of(&llama_8b()), 8_030_261_248);
        let mut tied = model();
        let untied = parameters_of(&tied);
        tied.tie_word_embeddings = true;
        assert_eq!(untied - parameters_of(&tied), (tied.vocab_size * tied.hidden_size) as u64);
    }

    #[test]
    fn the_ranks_of_a_pipeline_hold_the_model_once() {
        let model = llama_8b();
        let stages: u64 = (0..4).map(|stage| parameters(&model, 8, stage == 0, stage == 3, 1)).sum();
        assert_eq!(stages, parameters_of(&model));
    }

    #[test]
    fn every_means_to_save_memory_saves() {
        let mut training = training();
        training.parallel = Parallel { data: 2, ..Parallel::default() };
        let model = llama_8b();
        let plain = MemoryEstimate::of(&training, &model);
        assert_eq!(plain.weights, 2 * 8_030_261_248);
        assert_eq!(plain.optimizer, 12 * 8_030_261_248);
        let with = |change: fn(&mut Training)| {
            let mut training = training.clone();
            change(&mut training);
            MemoryEstimate::of(&training, &model)
        };
        assert!(with(|t| t.memory.recompute = Recompute::Full).activations < plain.activations);
        let tensor = with(|t| t.parallel.tensor = 4);
        assert!(tensor.weights < plain.weights / 3 && tensor.activations < plain.activations);
        assert!(with(|t| (t.parallel.tensor, t.parallel.sequence) = (4, true)).activations < tensor.activations);
        assert!(with(|t| t.parallel.pipeline = 4).total() < plain.total() / 2);
    }

    #[test]
    fn plan_lines_say_what_will_happen() {
        let lines = training().plan_lines(Some(&model())).join("\n");
        assert!(lines.contains("batch: 12 sequences = micro 2 × data 2 × 3 accumulated; 768 tokens a step"), "{lines}");
        assert!(lines.contains("GiB a rank = weights"), "{lines}");
    }
}

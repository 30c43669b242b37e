//! [`MemoryEstimate`]: how much memory a rank needs, before anything is started.
//!
//! Weights, gradients and optimizer are exact. Activations are what the trainer's forward pass keeps for its backward pass
//! with fused attention: the inputs of matrix products and of element-wise functions. What an allocator and CUDA's own
//! context add is not known.

use std::fmt;

use crate::{Device, Mesh, ModelConfig, Precision, Recompute, Training};

/// The loss is computed over so many tokens at a time: the logits of a whole sequence are never in memory.
pub const LOSS_CHUNK_TOKENS: usize = 2048;

/// Bytes of the rank that needs most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Parameters of the whole model.
    pub model_parameters: u64,
    /// Parameters on this rank.
    pub parameters: u64,
    /// Weights.
    pub weights: u64,
    /// Gradients, summed in fp32.
    pub gradients: u64,
    /// Moments, and with bf16 the fp32 weights: this rank's part of them with the distributed optimizer.
    pub optimizer: u64,
    /// What forward keeps for backward.
    pub activations: u64,
    /// A chunk of logits in fp32, and in bf16 as they come and as their gradient goes.
    pub logits: u64,
    /// What is there for a moment: the gradients of one layer or of the output layer in the weights' type, those of
    /// a layer's activations, a piece of a norm in fp64.
    pub buffers: u64,
    /// The copy that a checkpoint is written from while training goes on, of weights and optimizer: on the CPU.
    pub copy: u64,
    /// The same where it is in the machine's memory and the rest in a GPU's, so no part of the whole.
    pub host_copy: u64,
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
        self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers + self.copy
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
        let state = match training.precision {
            Precision::Fp32 => 8,
            Precision::Bf16 => 12,
        };
        let sharing = if training.optim.distributed { parallel.data * parallel.context } else { 1 } as u64;
        let tokens = (training.micro_batch_size * training.seq_length / parallel.context) as u64;
        // In a 1F1B pipeline the first stage is ahead of the last by as many micro batches as there are stages.
        let in_flight = (parallel.pipeline - stage).min(training.accumulation()) as u64;
        let tensor = parallel.tensor as u64;
        let vocab = model.vocab_size as u64 / tensor;
        let chunk = tokens.min(LOSS_CHUNK_TOKENS as u64) * vocab;
        let logits = match training.precision {
            Precision::Fp32 => 4,
            Precision::Bf16 => 4 + 2 + 2,
        };
        let kept = Kept::of(training, model);
        let (weights, optimizer) = (parameters * element, (parameters * state).div_ceil(sharing));
        let copied = if training.checkpoint.copies() { weights + optimizer } else { 0 };
        let (copy, host_copy) = if training.device == Device::Cpu { (copied, 0) } else { (0, copied) };
        let largest = matrices(model).max(model.vocab_size as u64 * model.hidden_size as u64) / tensor;
        Self {
            model_parameters: parameters_of(model),
            parameters,
            weights,
            gradients: parameters * 4,
            optimizer,
            activations: (in_flight * kept.by_layers(training.memory.recompute, layers)
                + kept.again(training.memory.recompute))
                * tokens
                * element,
            logits: if last { logits * chunk } else { 0 },
            buffers: largest * element
                + kept.feed_forward * tokens * element
                + 16 * parameters.min(NORM_CHUNK)
                + masks(training, tokens, element),
            copy,
            host_copy,
        }
    }
}

/// Who sees whom, where attention stays within documents and there is no kernel that takes their lengths: as truths, and in
/// the scores' type.
fn masks(training: &Training, tokens: u64, element: u64) -> u64 {
    let by_lengths = training.precision == Precision::Bf16 && training.parallel.context == 1;
    if training.reset_attention_mask && !by_lengths { (1 + element) * tokens * training.seq_length as u64 } else { 0 }
}

/// Elements that the trainer's norm looks at in one go, twice in fp64.
const NORM_CHUNK: u64 = 1 << 24;

fn parameters_of(model: &ModelConfig) -> u64 {
    parameters(model, model.num_hidden_layers as u64, true, true, 1)
}

/// Elements of a layer's matrices.
fn matrices(model: &ModelConfig) -> u64 {
    let heads = (model.num_attention_heads + model.num_key_value_heads) as u64 * model.head_dim as u64;
    model.hidden_size as u64 * (2 * heads + 3 * model.intermediate_size as u64)
}

/// Parameters of a rank with so many layers, one of `tensor` that share each matrix.
pub(crate) fn parameters(model: &ModelConfig, layers: u64, first: bool, last: bool, tensor: u64) -> u64 {
    let (hidden, vocab) = (model.hidden_size as u64, model.vocab_size as u64);
    let embedding = vocab * hidden / tensor;
    // A tied embedding is on both ends of a pipeline, and once where the ends are one.
    let ends = u64::from(first) + u64::from(last && !(first && model.tie_word_embeddings));
    layers * (matrices(model) / tensor + 2 * hidden) + ends * embedding + if last { hidden } else { 0 }
}

/// Elements a token that the forward pass of a layer keeps for its backward pass.
struct Kept {
    /// The residual stream: a layer's input.
    residual: u64,
    /// Its normed self, then q, k, v and attention's output.
    attention: u64,
    /// The normed residual, then gate, up, SiLU, product.
    feed_forward: u64,
}

impl Kept {
    fn of(training: &Training, model: &ModelConfig) -> Self {
        let parallel = &training.parallel;
        let tensor = parallel.tensor as u64;
        let residual = model.hidden_size as u64 / if parallel.sequence { tensor } else { 1 };
        // What enters a matrix product is the whole sequence again.
        let entering = model.hidden_size as u64;
        let (heads, groups) = (model.num_attention_heads as u64, model.num_key_value_heads as u64);
        // Keys and values are those of all context ranks.
        let all = groups * parallel.context as u64;
        Self {
            residual,
            attention: entering + (2 * heads + 2 * all) * model.head_dim as u64 / tensor,
            feed_forward: entering + 4 * model.intermediate_size as u64 / tensor,
        }
    }

    /// What so many layers keep.
    fn by_layers(&self, recompute: Recompute, layers: u64) -> u64 {
        layers
            * match recompute {
                Recompute::None => 2 * self.residual + self.attention + self.feed_forward,
                Recompute::Selective => 2 * self.residual + self.attention,
                Recompute::Full => self.residual,
            }
    }

    /// What is made again, one layer at a time.
    fn again(&self, recompute: Recompute) -> u64 {
        match recompute {
            Recompute::None => 0,
            Recompute::Selective => self.feed_forward,
            Recompute::Full => self.residual + self.attention + self.feed_forward,
        }
    }
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1 << 30));
        write!(
            f,
            "{} GiB a rank = weights {} + gradients {} + optimizer {} + activations {} + logits {} + buffers {}",
            gib(self.total()),
            gib(self.weights),
            gib(self.gradients),
            gib(self.optimizer),
            gib(self.activations),
            gib(self.logits),
            gib(self.buffers)
        )?;
        for (bytes, words) in [(self.copy, " +"), (self.host_copy, "; in the machine's memory, a")] {
            if bytes > 0 {
                write!(f, "{words} checkpoint copy {}", gib(bytes))?;
            }
        }
        Ok(())
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
            let limit = self.memory_limit.as_ref().map(|limit| format!(", of {limit}")).unwrap_or_default();
            lines.push(format!("memory: {estimate}{limit}"));
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
        let selective = with(|t| t.memory.recompute = Recompute::Selective).activations;
        assert!(selective < plain.activations / 2);
        assert!(with(|t| t.memory.recompute = Recompute::Full).activations < selective / 2);
        assert_eq!(with(|t| t.optim.distributed = true).optimizer, plain.optimizer / 2);
        let tensor = with(|t| t.parallel.tensor = 4);
        assert!(tensor.weights < plain.weights / 3 && tensor.activations < plain.activations);
        assert!(with(|t| (t.parallel.tensor, t.parallel.sequence) = (4, true)).activations < tensor.activations);
        assert!(with(|t| t.parallel.pipeline = 4).total() < plain.total() / 2);
    }

    #[test]
    fn a_checkpoint_in_the_background_takes_a_copy() {
        let mut training = training();
        let of = |training: &Training| MemoryEstimate::of(training, &llama_8b());
        let without = of(&training);
        assert_eq!((without.copy, without.host_copy), (0, 0));
        training.checkpoint.interval = 10;
        let beside = of(&training);
        assert_eq!((beside.total(), beside.host_copy), (without.total(), without.weights + without.optimizer));
        assert!(beside.to_string().contains("; in the machine's memory, a checkpoint copy"), "{beside}");
        training.device = Device::Cpu;
        let inside = of(&training);
        assert_eq!((inside.total(), inside.host_copy), (without.total() + beside.host_copy, 0));
        training.checkpoint.background = false;
        assert_eq!(of(&training).total(), without.total());
    }

    #[test]
    fn plan_lines_say_what_will_happen() {
        let lines = training().plan_lines(Some(&model())).join("\n");
        assert!(lines.contains("batch: 12 sequences = micro 2 × data 2 × 3 accumulated; 768 tokens a step"), "{lines}");
        assert!(lines.contains("GiB a rank = weights"), "{lines}");
    }
}

//! The arithmetic of a run, and what of it cannot work: said with the field, the reason and the fix.

use flow_core::Diagnostic;

use crate::{ModelConfig, SchedName, Splits, Training};

/// What is known before the run about the model and the tokens.
#[derive(Clone, Debug, Default)]
pub struct KnownData {
    /// The model's geometry.
    pub model: Option<ModelConfig>,
    /// Tokens of the tokenizer, added ones included.
    pub tokenizer_vocab: Option<u64>,
    /// The largest id in the data.
    pub max_token_id: Option<u64>,
}

/// The largest size that is believed: beyond it a number is a slip of the keyboard.
const LARGEST: u64 = u32::MAX as u64;

/// Fields that are nothing to compute with: they were made up, or are said to be wrong. What would follow from them is
/// not said.
#[derive(Debug, Default)]
struct Unsure(Vec<String>);

impl Unsure {
    /// Whether all of these can be computed with.
    fn spares(&self, fields: &[&str]) -> bool {
        let is_in = |field: &str, unsure: &str| {
            field.strip_prefix(unsure).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        !fields.iter().any(|field| self.0.iter().any(|unsure| is_in(field, unsure)))
    }
}

impl Training {
    /// Micro batches in one step of one rank: global = micro × data × accumulation. Right once [`Training::check`]
    /// has found nothing.
    #[must_use]
    pub fn accumulation(&self) -> usize {
        (self.global_batch_size / (self.micro_batch_size * self.parallel.data).max(1)).max(1)
    }

    /// The tokens in so many samples.
    #[must_use]
    pub fn consumed_tokens(&self, samples: u64) -> u64 {
        samples * self.seq_length as u64
    }

    /// Samples that all validations of the run read, as Megatron asks for them; `None` when nothing is validated.
    #[must_use]
    pub fn validation_samples(&self) -> Option<u64> {
        let rounds = self.max_steps.checked_div(self.val_interval)? + 1;
        Some(rounds * self.limit_val_batches * self.global_batch_size as u64)
    }

    /// The number of completed steps after which the learning rate has come down to `min_lr`.
    #[must_use]
    pub fn decay_steps(&self) -> u64 {
        self.sched.decay_steps.unwrap_or(self.max_steps.saturating_sub(self.sched.constant_steps))
    }

    /// Everything that cannot work. Each diagnostic names its field.
    #[must_use]
    pub fn check(&self, known: &KnownData) -> Vec<Diagnostic> {
        let mut errors = self.check_sound(known, Unsure::default());
        if errors.is_empty() {
            let wrong = self.check_memory(known.model.as_ref());
            errors.extend(wrong.map(|wrong| wrong.field("memory_limit")));
        }
        errors
    }

    /// What cannot work whatever the fields `made_up` are, such as `sched.name`: these could not be read.
    #[must_use]
    pub fn check_but(&self, made_up: &[String]) -> Vec<Diagnostic> {
        self.check_sound(&KnownData::default(), Unsure(made_up.to_vec()))
    }

    fn check_sound(&self, known: &KnownData, mut unsure: Unsure) -> Vec<Diagnostic> {
        let mut errors = Vec::new();
        let mut error = |field: &str, error: Diagnostic| errors.push(error.field(field));
        self.check_sizes(&mut unsure, &mut error);
        self.check_optimizer(&unsure, &mut error);
        self.check_schedule(&unsure, &mut error);
        if unsure.spares(&["splits"])
            && let Some(Err(wrong)) = self.splits.as_deref().map(Splits::parse)
        {
            error("splits", Diagnostic::new(wrong.to_string()).hint("Megatron's form: splits = \"98,1,1\""));
        }
        self.check_batches(&unsure, &mut error);
        if let Some(model) = &known.model {
            self.check_model(model, known, &unsure, &mut error);
        }
        errors
    }

    /// Every size is at least 1, so that one may divide by it, and what is multiplied later fits its type. What is not so
    /// is unsure from here on.
    fn check_sizes(&self, unsure: &mut Unsure, error: &mut dyn FnMut(&str, Diagnostic)) {
        let parallel = &self.parallel;
        let sizes = [
            ("seq_length", self.seq_length as u64),
            ("micro_batch_size", self.micro_batch_size as u64),
            ("global_batch_size", self.global_batch_size as u64),
            ("max_steps", self.max_steps),
            ("limit_val_batches", self.limit_val_batches),
            ("parallel.tensor", parallel.tensor as u64),
            ("parallel.pipeline", parallel.pipeline as u64),
            ("parallel.context", parallel.context as u64),
            ("parallel.data", parallel.data as u64),
        ];
        for (field, size) in sizes {
            let (wrong, hint) = match size {
                0 => (format!("`{field}` is 0"), "the smallest that works is 1".to_owned()),
                1..=LARGEST => continue,
                _ => (format!("`{field}` is {size}"), format!("at most {LARGEST} works")),
            };
            if unsure.spares(&[field]) {
                error(field, Diagnostic::new(wrong).hint(hint));
                unsure.0.push(field.to_owned());
            }
        }
        let step = self.global_batch_size as u128 * self.seq_length as u128;
        let steps = u128::from(self.max_steps.max(self.limit_val_batches));
        let tokens = || step * steps * u128::from(self.limit_val_batches.max(1));
        let counted = ["seq_length", "global_batch_size", "max_steps", "limit_val_batches"];
        if unsure.spares(&counted) && tokens() > u128::from(u64::MAX >> 8) {
            let wrong =
                Diagnostic::new("max_steps × global_batch_size × seq_length is more tokens than can be counted");
            error("max_steps", wrong.hint("make one of them smaller"));
        }
        let mesh = [parallel.tensor, parallel.pipeline, parallel.context, parallel.data];
        let processes = || mesh.iter().map(|size| *size as u128).product::<u128>();
        let of_mesh = ["parallel.tensor", "parallel.pipeline", "parallel.context", "parallel.data"];
        if unsure.spares(&of_mesh) && processes() > u128::from(u16::MAX) {
            let wrong = Diagnostic::new(format!("the mesh has {} processes", processes()));
            error("parallel", wrong.hint(format!("at most {} work", u16::MAX)));
            unsure.0.push("parallel".to_owned());
        }
    }

    fn check_batches(&self, unsure: &Unsure, error: &mut dyn FnMut(&str, Diagnostic)) {
        let (global, micro, data) = (self.global_batch_size, self.micro_batch_size, self.parallel.data);
        let unit = micro.saturating_mul(data);
        let is_sure = unsure.spares(&["global_batch_size", "micro_batch_size", "parallel.data"]);
        if is_sure && !global.is_multiple_of(unit) {
            let (below, above) = (global / unit * unit, (global / unit + 1).saturating_mul(unit));
            let near = if below > 0 { format!("{below} or {above}") } else { above.to_string() };
            let mut wrong = Diagnostic::new(format!(
                "global_batch_size {global} is not a multiple of micro_batch_size × data = {micro} × {data} = {unit}"
            ))
            .hint(format!("global_batch_size = {near} would do"));
            if global.is_multiple_of(data) {
                let fits = (1..=micro).rev().find(|micro| (global / data).is_multiple_of(*micro));
                wrong = wrong.hint(format!("or micro_batch_size = {}", fits.unwrap_or(1)));
            }
            error("global_batch_size", wrong);
        }
        let (context, tensor) = (self.parallel.context, self.parallel.tensor);
        // Each of n context ranks has two of 2 n chunks.
        let chunks = if context > 1 { context.saturating_mul(2) } else { 1 };
        let split = if self.parallel.sequence { chunks.saturating_mul(tensor) } else { chunks };
        let is_sure = unsure.spares(&["seq_length", "parallel.context", "parallel.tensor", "parallel.sequence"]);
        if is_sure && !self.seq_length.is_multiple_of(split) {
            let above = (self.seq_length / split + 1).saturating_mul(split);
            let by = match (context > 1, self.parallel.sequence) {
                (true, true) => "2 × context × tensor (sequence parallel)",
                (true, false) => "2 × context",
                (false, _) => "tensor (sequence parallel)",
            };
            error(
                "seq_length",
                Diagnostic::new(format!("seq_length {} is not a multiple of {by} = {split}", self.seq_length))
                    .hint(format!("seq_length = {above} would do")),
            );
        }
    }

    fn check_optimizer(&self, unsure: &Unsure, error: &mut dyn FnMut(&str, Diagnostic)) {
        let optim = &self.optim;
        let mut range = |field: &str, value: f64, right: bool, must: &str| {
            if !right && unsure.spares(&[field]) {
                error(field, Diagnostic::new(format!("`{field}` is {value}: it must be {must}")));
            }
        };
        let at_least_0 = |value: f64| value.is_finite() && value >= 0.0;
        let right = at_least_0(optim.lr) && optim.lr > 0.0;
        range("optim.lr", optim.lr, right, "above 0");
        if right && unsure.spares(&["optim.lr"]) {
            let ordered = at_least_0(optim.min_lr) && optim.min_lr <= optim.lr;
            range("optim.min_lr", optim.min_lr, ordered, &format!("from 0 to lr ({})", optim.lr));
        } else {
            range("optim.min_lr", optim.min_lr, at_least_0(optim.min_lr), "at least 0");
        }
        for beta in optim.betas {
            range("optim.betas", beta, (0.0..1.0).contains(&beta), "from 0 to below 1");
        }
        range("optim.eps", optim.eps, at_least_0(optim.eps) && optim.eps > 0.0, "above 0");
        range("optim.weight_decay", optim.weight_decay, at_least_0(optim.weight_decay), "at least 0");
        range("gradient_clip", self.gradient_clip, at_least_0(self.gradient_clip), "at least 0 (0 is off)");
    }

    fn check_schedule(&self, unsure: &Unsure, error: &mut dyn FnMut(&str, Diagnostic)) {
        if !unsure.spares(&["sched.decay_steps", "sched.constant_steps"]) {
            return;
        }
        let is_sure = unsure.spares(&["max_steps"]);
        let sched = &self.sched;
        let max_steps = self.max_steps;
        if sched.decay_steps.is_some() && sched.constant_steps > 0 {
            let wrong = Diagnostic::new("`decay_steps` and `constant_steps` both say when the decay ends");
            error("sched.decay_steps", wrong.hint("keep one: decay_steps = max_steps - constant_steps"));
        } else if is_sure && sched.constant_steps > 0 && sched.constant_steps >= max_steps {
            let wrong = format!("`constant_steps` {} leave none of the {max_steps} steps", sched.constant_steps);
            error("sched.constant_steps", Diagnostic::new(wrong).hint("it must be below max_steps"));
        } else if !is_sure || !unsure.spares(&["sched.name", "sched.warmup_steps"]) {
            // How long the warm-up may be follows from all of them.
        } else if sched.name == SchedName::Constant {
            if sched.warmup_steps > max_steps {
                let wrong = format!("warm-up of {} steps in a run of {max_steps}", sched.warmup_steps);
                error("sched.warmup_steps", Diagnostic::new(wrong).hint(format!("at most {max_steps}")));
            }
        } else if self.decay_steps() > 0 && sched.warmup_steps >= self.decay_steps() {
            let end = self.decay_steps();
            let wrong = format!("warm-up of {} steps, and the decay ends after {end}", sched.warmup_steps);
            let hint = format!("warmup_steps must be below {end}, such as {}", end / 10);
            error("sched.warmup_steps", Diagnostic::new(wrong).hint(hint));
        }
    }

    /// Whoever looks at ends of documents knows the token that they are.
    fn check_documents(&self, model: &ModelConfig, error: &mut dyn FnMut(&str, Diagnostic)) {
        let Some(field) = self.document_option() else { return };
        match self.eod_token_id.or(model.eos_token_id) {
            None => {
                let wrong =
                    format!("`{field}` needs the token that ends a document, and the model's config names no one");
                error("eod_token_id", Diagnostic::new(wrong).hint("eod_token_id = 128001 in Llama 3's vocabulary"));
            }
            Some(eod) if !usize::try_from(eod).is_ok_and(|eod| eod < model.vocab_size) => {
                let wrong = format!("token {eod} ends no document: the model's vocabulary has {}", model.vocab_size);
                error("eod_token_id", Diagnostic::new(wrong));
            }
            Some(_) => {}
        }
    }

    fn check_model(
        &self,
        model: &ModelConfig,
        known: &KnownData,
        unsure: &Unsure,
        error: &mut dyn FnMut(&str, Diagnostic),
    ) {
        let vocab = model.vocab_size as u64;
        self.check_documents(model, error);
        if let Some(largest) = known.max_token_id.filter(|largest| *largest >= vocab) {
            let wrong =
                format!("the data holds token {largest}, and the model's vocabulary has {vocab} (0 to {})", vocab - 1);
            error("train", Diagnostic::new(wrong).hint("tokenize with the model's own tokenizer"));
        } else if let Some(tokens) = known.tokenizer_vocab.filter(|tokens| *tokens > vocab) {
            let wrong = format!("the data's tokenizer has {tokens} tokens, and the model's vocabulary has {vocab}");
            error("train", Diagnostic::new(wrong).hint("tokenize with the model's own tokenizer"));
        }
        let longest = model.max_position_embeddings;
        if self.seq_length > longest && unsure.spares(&["seq_length"]) {
            let wrong = format!("seq_length {} is longer than the model's {longest} positions", self.seq_length);
            let hint = format!("at most seq_length = {longest} (max_position_embeddings in config.json)");
            error("seq_length", Diagnostic::new(wrong).hint(hint));
        }
        let shares = [
            ("parallel.tensor", self.parallel.tensor, "attention heads", model.num_attention_heads),
            ("parallel.tensor", self.parallel.tensor, "key and value heads", model.num_key_value_heads),
            ("parallel.tensor", self.parallel.tensor, "columns of the feed-forward layer", model.intermediate_size),
            ("parallel.tensor", self.parallel.tensor, "rows of the embedding", model.vocab_size),
            ("parallel.pipeline", self.parallel.pipeline, "layers", model.num_hidden_layers),
        ];
        // One error a field: the others follow from the same number.
        let mut said = "";
        for (field, parts, what, count) in shares {
            if said != field && unsure.spares(&[field]) && !count.is_multiple_of(parts) {
                said = field;
                let all = |parts: usize| shares.iter().all(|s| s.0 != field || s.3.is_multiple_of(parts));
                let fits = (1..parts).rev().find(|parts| all(*parts)).unwrap_or(1);
                let wrong = format!("the model's {count} {what} do not divide by {parts}");
                error(
                    field,
                    Diagnostic::new(wrong).hint(format!("{} = {fits} divides", field.replace("parallel.", ""))),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{model, training};

    fn fields(training: &Training, known: &KnownData) -> Vec<(String, String)> {
        let errors = training.check(known);
        errors.into_iter().map(|e| (e.field.unwrap(), format!("{}; {}", e.message, e.hints.join("; ")))).collect()
    }

    #[track_caller]
    fn only(change: impl FnOnce(&mut Training), field: &str, says: &[&str]) {
        let mut training = training();
        change(&mut training);
        let known = KnownData { model: Some(model()), tokenizer_vocab: Some(512), max_token_id: Some(511) };
        let found = fields(&training, &known);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, field);
        for text in says {
            assert!(found[0].1.contains(text), "{text:?} in {:?}", found[0].1);
        }
    }

    #[test]
    fn what_works_is_not_complained_about() {
        let known = KnownData { model: Some(model()), tokenizer_vocab: Some(512), max_token_id: None };
        assert_eq!(fields(&training(), &known), []);
        assert_eq!(fields(&training(), &KnownData::default()), []);
        assert_eq!(training().accumulation(), 3);
        assert_eq!(training().validation_samples(), Some((20 / 5 + 1) * 2 * 12));
    }

    #[test]
    fn batches_that_do_not_divide_name_those_that_do() {
        only(|t| t.global_batch_size = 14, "global_batch_size", &["12 or 16", "micro_batch_size = 1"]);
        only(|t| t.global_batch_size = 3, "global_batch_size", &["global_batch_size = 4 "]);
        only(|t| t.parallel.data = 0, "parallel.data", &["smallest"]);
        only(|t| t.parallel.data = 1 << 40, "parallel.data", &["at most"]);
        only(|t| (t.parallel.data, t.parallel.context) = (1 << 12, 1 << 12), "parallel", &["16777216 processes"]);
        only(|t| (t.max_steps, t.global_batch_size) = (1 << 31, 1 << 31), "max_steps", &["make one of them smaller"]);
        only(|t| (t.parallel.context, t.seq_length) = (3, 64), "seq_length", &["66"]);
        only(|t| (t.parallel.tensor, t.parallel.sequence, t.seq_length) = (2, true, 63), "seq_length", &["64"]);
    }

    #[test]
    fn what_is_wrong_hides_nothing_but_what_follows_from_it() {
        let named = |change: fn(&mut Training), made_up: &[&str]| -> Vec<String> {
            let mut training = training();
            change(&mut training);
            let made_up: Vec<String> = made_up.iter().map(|field| (*field).to_owned()).collect();
            let known = KnownData { model: Some(model()), ..KnownData::default() };
            let errors = if made_up.is_empty() { training.check(&known) } else { training.check_but(&made_up) };
            errors.into_iter().map(|error| error.field.unwrap()).collect()
        };
        let both = ["seq_length", "global_batch_size"];
        assert_eq!(named(|t| (t.seq_length, t.global_batch_size) = (0, 14), &[]), both);
        assert_eq!(named(|t| (t.parallel.data, t.global_batch_size) = (0, 14), &[]), ["parallel.data"]);
        assert_eq!(
            named(|t| (t.parallel.pipeline, t.parallel.tensor) = (0, 4), &[]),
            ["parallel.pipeline", "parallel.tensor"]
        );
        assert_eq!(named(|t| (t.max_steps, t.sched.constant_steps) = (0, 3), &[]), ["max_steps"]);
        assert_eq!(named(|t| t.optim.lr = -1.0, &[]), ["optim.lr"]);

        let wrong = |t: &mut Training| (t.optim.lr, t.global_batch_size, t.sched.warmup_steps) = (-1.0, 14, 20);
        assert_eq!(named(wrong, &["sched.name", "precision"]), ["optim.lr", "global_batch_size"]);
        assert_eq!(named(wrong, &["optim.name"]), ["optim.lr", "sched.warmup_steps", "global_batch_size"]);
        assert_eq!(named(wrong, &["optim", "max_steps", "parallel"]), [""; 0]);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        only(|t| t.optim.lr = 0.0, "optim.lr", &[]);
        only(|t| t.optim.min_lr = 1.0, "optim.min_lr", &["from 0 to lr"]);
        only(|t| t.optim.betas = [0.9, 1.0], "optim.betas", &[]);
        only(|t| t.gradient_clip = f64::NAN, "gradient_clip", &[]);
        only(|t| t.sched.warmup_steps = 20, "sched.warmup_steps", &["below 20", "such as 2"]);
        only(|t| t.sched.constant_steps = 20, "sched.constant_steps", &[]);
        only(|t| (t.sched.constant_steps, t.sched.decay_steps) = (2, Some(10)), "sched.decay_steps", &[]);
        only(|t| t.splits = Some("0,0".into()), "splits", &["98,1,1"]);
        only(|t| t.memory_limit = Some("48".into()), "memory_limit", &["48GB"]);
        only(|t| t.memory_limit = Some("1MB".into()), "memory_limit", &["a rank needs", "would do"]);
    }

    #[test]
    fn a_model_that_does_not_fit_is_refused() {
        only(|t| t.seq_length = 4096, "seq_length", &["128"]);
        only(|t| t.parallel.tensor = 4, "parallel.tensor", &["2 key and value heads", "tensor = 2"]);
        only(|t| t.parallel.pipeline = 3, "parallel.pipeline", &["4 layers", "pipeline = 2"]);
        only(|t| t.eod_mask_loss = true, "eod_token_id", &["`eod_mask_loss` needs"]);
        only(|t| (t.reset_position_ids, t.eod_token_id) = (true, Some(512)), "eod_token_id", &["512"]);
        let known = |max_token_id, tokenizer_vocab| KnownData { model: Some(model()), tokenizer_vocab, max_token_id };
        for known in [known(Some(512), None), known(None, Some(513)), known(Some(600), Some(601))] {
            let found = fields(&training(), &known);
            assert!(
                matches!(&found[..], [(field, text)] if field == "train" && text.contains("tokenizer")),
                "{found:?}"
            );
        }
    }
}

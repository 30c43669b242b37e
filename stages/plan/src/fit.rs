//! Whether a training fits into the memory of a device, and if not, what is the cheapest change that makes it fit.

use flow_core::Diagnostic;

use crate::{Device, MemoryEstimate, ModelConfig, Recompute, Training};

/// A size in bytes: `"48GB"` (1000), `"80GiB"` (1024), `"512 MB"`.
///
/// # Errors
/// It is no size; the text says what is.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "B" => 1,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1_u64 << 40,
        _ => return Err(format!("{text:?} is no size: write it as \"48GB\" or \"80GiB\"")),
    };
    let number: f64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    let bytes = number * factor as f64;
    if !(1.0..1e18).contains(&bytes) {
        return Err(format!("{text:?} is no size of a memory"));
    }
    Ok(bytes as u64)
}

impl Training {
    /// What is wrong with `memory_limit`, if anything.
    pub(crate) fn check_memory(&self, model: Option<&ModelConfig>) -> Option<Diagnostic> {
        let limit = match parse_bytes(self.memory_limit.as_deref()?) {
            Ok(limit) => limit,
            Err(wrong) => return Some(Diagnostic::new(wrong)),
        };
        self.exceeds(model?, limit, "memory_limit")
    }

    /// Why the training does not fit into `limit` bytes a rank, called `what`, and what would make it fit.
    #[must_use]
    pub fn exceeds(&self, model: &ModelConfig, limit: u64, what: &str) -> Option<Diagnostic> {
        let estimate = MemoryEstimate::of(self, model);
        if estimate.total() <= limit {
            return None;
        }
        let gib = |bytes: u64| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30));
        let mut wrong =
            Diagnostic::new(format!("a rank needs {}, and {what} is {}", gib(estimate.total()), gib(limit)));
        wrong = wrong.hint(format!("memory: {estimate}"));
        Some(match self.cheapest(model, limit) {
            Some((changes, needs)) => wrong.hint(format!("{changes} would do: {}", gib(needs))),
            None => wrong.hint("nothing but more ranks would do: tensor, pipeline, or data with optim.distributed"),
        })
    }

    /// The changes that cost least and suffice, and what a rank needs then: one of them alone, else the first ones together,
    /// else with more ranks that share each layer.
    fn cheapest(&self, model: &ModelConfig, limit: u64) -> Option<(String, u64)> {
        let fits = |training: &Training| {
            let needs = MemoryEstimate::of(training, model).total();
            (needs <= limit).then_some(needs)
        };
        let changes = self.changes();
        for (name, change) in &changes {
            let mut changed = self.clone();
            change(&mut changed);
            if let Some(needs) = fits(&changed) {
                return Some((name.clone(), needs));
            }
        }
        let mut all = self.clone();
        let mut names: Vec<&str> = Vec::new();
        for (name, change) in &changes {
            change(&mut all);
            // A later change of the same field takes the place of the one before.
            let field = |name: &str| name.split(" = ").next().map(str::to_owned);
            names.retain(|before| field(before) != field(name));
            names.push(name);
            if let Some(needs) = fits(&all) {
                return Some((names.join(", "), needs));
            }
        }
        let divides = |n: &usize| {
            [model.num_attention_heads, model.num_key_value_heads, model.intermediate_size, model.vocab_size]
                .iter()
                .all(|size| size.is_multiple_of(*n))
        };
        let more = (self.parallel.tensor + 1..=model.num_key_value_heads).filter(divides);
        for tensor in more.filter(|tensor| self.seq_length.is_multiple_of(*tensor)) {
            all.parallel.tensor = tensor;
            all.parallel.sequence = true;
            if let Some(needs) = fits(&all) {
                names.retain(|name| !name.starts_with("parallel.sequence"));
                let more = format!("parallel.tensor = {tensor}, parallel.sequence = true");
                return Some(([&names[..], &[more.as_str()]].concat().join(", "), needs));
            }
        }
        None
    }

    /// What saves memory, cheapest first: what costs no time, then what costs a little.
    fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = Vec::new();
        let parallel = &self.parallel;
        if self.checkpoint.copies() && self.device == Device::Cpu {
            changes.push(("checkpoint.background = false".to_owned(), Box::new(|t| t.checkpoint.background = false)));
        }
        if parallel.tensor > 1 && !parallel.sequence && self.seq_length.is_multiple_of(parallel.tensor) {
            changes.push(("parallel.sequence = true".to_owned(), Box::new(|t| t.parallel.sequence = true)));
        }
        if parallel.data * parallel.context > 1 && !self.optim.distributed {
            changes.push(("optim.distributed = true".to_owned(), Box::new(|t| t.optim.distributed = true)));
        }
        if self.memory.recompute == Recompute::None {
            let selective: Change = (
                "memory.recompute = \"selective\"".to_owned(),
                Box::new(|t| t.memory.recompute = Recompute::Selective),
            );
            changes.push(selective);
        }
        let micro = self.micro_batch_size;
        for smaller in (1..micro).rev().filter(|smaller| micro.is_multiple_of(*smaller)) {
            changes.push((format!("micro_batch_size = {smaller}"), Box::new(move |t| t.micro_batch_size = smaller)));
        }
        if self.memory.recompute != Recompute::Full {
            let full: Change =
                ("memory.recompute = \"full\"".to_owned(), Box::new(|t| t.memory.recompute = Recompute::Full));
            changes.push(full);
        }
        changes
    }
}

/// A change as one writes it, and what it does.
type Change = (String, Box<dyn Fn(&mut Training)>);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Parallel,
        tests::{llama_8b, training},
    };

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_bytes("48GB"), Ok(48_000_000_000));
        assert_eq!(parse_bytes(" 1.5 GiB"), Ok(3 << 29));
        for wrong in ["48", "GB", "4.8.0GB", "48 gigs", "0GB", "1e3GB"] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    /// Llama-3.1-8B, sequences of 8192.
    fn large(change: fn(&mut Training)) -> Training {
        let mut training = training();
        training.parallel = Parallel::default();
        (training.seq_length, training.micro_batch_size, training.global_batch_size) = (8192, 4, 16);
        change(&mut training);
        training
    }

    #[track_caller]
    fn said(training: &Training, limit: &str) -> String {
        let limit = parse_bytes(limit).unwrap();
        let wrong = training.exceeds(&llama_8b(), limit, "memory_limit").expect("it does not fit");
        format!("{} {}", wrong.message, wrong.hints.join(" "))
    }

    #[test]
    fn the_cheapest_change_that_fits_is_named() {
        let whole = large(|_| ());
        let needs = MemoryEstimate::of(&whole, &llama_8b()).total();
        assert!(whole.exceeds(&llama_8b(), needs, "memory_limit").is_none());
        assert!(
            said(&whole, "250GiB").contains("memory.recompute = \"selective\" would do"),
            "{}",
            said(&whole, "250GiB")
        );
        assert!(said(&whole, "165GiB").contains("memory.recompute = \"full\" would do"), "{}", said(&whole, "165GiB"));
        let eight = large(|t| (t.parallel.data, t.optim.distributed) = (8, false));
        assert!(said(&eight, "250GiB").contains("optim.distributed = true would do"), "{}", said(&eight, "250GiB"));
        // Sixteen bytes a parameter do not fit, whatever is computed again.
        let more = said(&whole, "80GiB");
        assert!(more.contains("micro_batch_size = 1") && more.contains("parallel.tensor = 2"), "{more}");
        assert!(said(&whole, "1GiB").contains("more ranks"));
    }

    /// Every hint, done, does what it says.
    #[test]
    fn what_is_hinted_fits() {
        for gib in (20..400).step_by(10) {
            let (training, limit) = (large(|t| t.parallel.data = 2), gib << 30);
            if let Some((changes, needs)) = training.cheapest(&llama_8b(), limit) {
                let mut changed = training.clone();
                for (name, change) in training.changes() {
                    if changes.split(", ").any(|wanted| wanted == name) {
                        change(&mut changed);
                    }
                }
                if changes.contains("parallel.tensor") {
                    continue;
                }
                assert_eq!(MemoryEstimate::of(&changed, &llama_8b()).total(), needs, "{changes}");
                assert!(needs <= limit);
            }
        }
    }
}

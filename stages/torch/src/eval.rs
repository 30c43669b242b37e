//! Evaluation: the log-likelihood of documents, every token but the first of each scored once.
//!
//! Long documents are cut as lm-evaluation-harness does it (`loglikelihood_rolling`): windows score disjoint runs of
//! tokens; a later window's input are the tokens right before its end, so that the last, short run keeps a full context.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    ops::Range,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use flow_core::Unit;
use flow_plan::{EvalJob, EvalResults, ModelConfig, Rank, Recompute};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::{
    Ended, device,
    events::Voice,
    model::{
        Input, Llama, Sight, Spread,
        params::{Layout, Share},
    },
    signals, weights,
};

/// Windows that are sorted by length together: bounds the memory, whatever the number of documents.
const POOL: usize = 1024;

#[derive(Deserialize)]
struct Document {
    /// The first is context alone.
    tokens: Vec<i64>,
    /// Of its text.
    bytes: u64,
}

/// A piece of a document: what goes in, and how many tokens at its end are scored.
struct Window {
    /// Tokens, one more than go in.
    tokens: Vec<i64>,
    scored: usize,
    document: usize,
}

/// Evaluates as `job` says.
pub fn eval(job: &EvalJob, me: &Rank) -> Result<Ended> {
    ensure!(me.world_size == 1, "an evaluation is done by one process, and WORLD_SIZE is {}", me.world_size);
    ensure!(job.seq_length > 0 && job.batch_size > 0, "seq_length and batch_size must be at least 1");
    let device = device::set_up(job.device, me, job.threads, true)?;
    let voice = Voice::new(&job.node, 0);
    let (config, model) = open(&job.model, weights::kind(job.precision), device, job.seq_length)?;
    let mut scorer = Scorer { job, model: &model, vocab: config.vocab_size as i64, device };

    let path = &job.documents;
    let total = count_lines(path)?;
    let documents = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    let mut results = EvalResults { documents: 0, tokens: 0, bytes: 0, nll: 0.0 };
    let mut pool: Vec<Window> = Vec::new();
    let mut sums: Vec<f64> = Vec::new();
    for (at, line) in documents.lines().enumerate() {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        let document: Document =
            serde_json::from_str(&line).with_context(|| format!("{}, line {}", path.display(), at + 1))?;
        let scored = document.tokens.len().saturating_sub(1);
        if scored > 0 {
            results.documents += 1;
            results.tokens += scored as u64;
            results.bytes += document.bytes;
            for (input, count) in windows(document.tokens.len(), job.seq_length) {
                pool.push(Window { tokens: document.tokens[input].to_vec(), scored: count, document: sums.len() });
            }
            sums.push(0.0);
        }
        if pool.len() >= POOL {
            scorer.score(&mut pool, &mut sums)?;
            results.nll += sums.drain(..).sum::<f64>();
            voice.progress(at as u64 + 1, Some(total), Unit::Documents);
        }
        if signals::asked_to_stop() {
            return Ok(Ended::Interrupted);
        }
    }
    scorer.score(&mut pool, &mut sums)?;
    results.nll += sums.drain(..).sum::<f64>();
    if !results.nll.is_finite() {
        bail!(
            "the log-likelihood is {}: the model's weights are damaged, or {:?} does not suffice",
            results.nll,
            job.precision
        );
    }
    voice.progress(total, Some(total), Unit::Documents);
    publish(&job.out, &results)?;
    Ok(Ended::Done)
}

/// Opens a Hugging Face directory as a model of one rank, for sequences up to `positions`.
pub fn open(dir: &Path, kind: Kind, device: Device, positions: usize) -> Result<(ModelConfig, Llama)> {
    let config = ModelConfig::read(dir)?;
    let layout = Layout::new(&config, Share::WHOLE);
    let flat = Tensor::zeros([layout.total as i64], (kind, device));
    weights::read_hf(dir, &config, &layout, &flat)?;
    let model = Llama::new(&config, &layout, &flat, positions, Spread::none(), Recompute::None, None)?;
    Ok((config, model))
}

struct Scorer<'a> {
    job: &'a EvalJob,
    model: &'a Llama,
    vocab: i64,
    device: Device,
}

impl Scorer<'_> {
    /// Scores and empties `pool`; adds −ln p to the sums of the windows' documents, in the documents' order.
    fn score(&mut self, pool: &mut Vec<Window>, sums: &mut [f64]) -> Result<()> {
        // Windows of like length go together, so that little is computed for padding.
        let mut order: Vec<usize> = (0..pool.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(pool[i].tokens.len()));
        let mut scores = vec![0.0; pool.len()];
        for batch in order.chunks(self.job.batch_size) {
            let windows: Vec<&Window> = batch.iter().map(|&i| &pool[i]).collect();
            for (&i, score) in batch.iter().zip(self.batch(&windows)?) {
                scores[i] = score;
            }
        }
        for (window, score) in pool.drain(..).zip(scores) {
            sums[window.document] += score;
        }
        Ok(())
    }

    fn batch(&self, windows: &[&Window]) -> Result<Vec<f64>> {
        let longest = windows.iter().map(|window| window.tokens.len()).max().context("a batch has windows")?;
        let mut rows = Vec::with_capacity(windows.len() * longest);
        for window in windows {
            if let Some(id) = window.tokens.iter().find(|id| !(0..self.vocab).contains(id)) {
                bail!("the documents hold token {id}, and the model's vocabulary has {}", self.vocab);
            }
            rows.extend_from_slice(&window.tokens);
            // On the right, where causal attention lets nobody see it.
            rows.resize(rows.len() + longest - window.tokens.len(), 0);
        }
        let (b, s) = (windows.len() as i64, longest as i64 - 1);
        let rows_bs = Tensor::from_slice(&rows).view([b, s + 1]).to_device(self.device);
        let hidden_bsh = self.model.hidden(Input::Tokens(&rows_bs.narrow(1, 0, s)), &Sight::default())?;
        let nll_bs = self.model.nll(&hidden_bsh, &rows_bs.narrow(1, 1, s))?;
        Ok(windows
            .iter()
            .zip(0..)
            .map(|(window, row)| {
                let end = window.tokens.len() as i64 - 1;
                let scored = window.scored as i64;
                nll_bs.get(row).narrow(0, end - scored, scored).sum(Kind::Double).double_value(&[])
            })
            .collect())
    }
}

/// The windows of a document of `length` tokens: which tokens (one more than go in), and how many at the end are scored.
fn windows(length: usize, longest: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    (1..length).step_by(longest).map(move |from| {
        let end = (from + longest).min(length);
        (end.saturating_sub(longest + 1)..end, end - from)
    })
}

fn count_lines(path: &Path) -> Result<u64> {
    let mut reader = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?);
    let mut lines = 0;
    loop {
        let block = reader.fill_buf()?;
        if block.is_empty() {
            return Ok(lines);
        }
        lines += block.iter().filter(|byte| **byte == b'\n').count() as u64;
        let n = block.len();
        reader.consume(n);
    }
}

fn publish(dir: &Path, results: &EvalResults) -> Result<()> {
    let temporary = dir.join("results.json.tmp");
    let mut file = File::create(&temporary).with_context(|| format!("cannot write {}", temporary.display()))?;
    serde_json::to_writer(&mut file, results)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join("results.json")).context("cannot name results.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_scored_once() {
        for length in 0..40 {
            for longest in 1..12 {
                let mut next = 1;
                for (window, scored) in windows(length, longest) {
                    assert_eq!(window.end - scored, next);
                    assert!(window.len() <= longest + 1 && scored < window.len());
                    // A full left context, where there is that much before.
                    assert!(window.start == 0 || window.len() == longest + 1);
                    next = window.end;
                }
                assert_eq!(next, length.max(1));
            }
        }
    }
}

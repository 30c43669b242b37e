//! Evaluation: answers requests, line by line as they were asked.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use flow_core::Unit;
use flow_plan::{EvalAnswer, EvalJob, EvalRequest, Parallel, Rank, Score};

use crate::{Ended, device, events::Voice, opened::Opened, ranks::Ranks, score::Scorer, weights};

/// Requests that are sorted by length together: bounds the memory, whatever their number.
const POOL: usize = 4096;

/// Answers as `job` says. `ranks` is where others are told of a failure.
pub fn eval(job: &EvalJob, me: &Rank, ranks: &mut Option<Ranks>) -> Result<Ended> {
    ensure!(job.max_length > 0 && job.batch_size > 0, "max_length and batch_size must be at least 1");
    let device = device::set_up(job.device, me, job.threads, true)?;
    let parallel = Parallel { tensor: job.tensor, ..Parallel::default() };
    let ranks = ranks.insert(Ranks::meet(me, &parallel, device)?);
    let voice = Voice::new(&job.node, me.rank);
    let opened = Opened::with(ranks, &job.model, weights::kind(job.precision), device, job.max_length)?;

    let path = &job.requests;
    let total = count_lines(path)?;
    let mut lines = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
        .lines()
        .enumerate();
    // Every rank knows the answers; one writes them.
    let mut answers = if voice.speaks() { Some(Answers::create(&job.answers)?) } else { None };
    let mut done = 0;
    loop {
        let mut pool = Vec::new();
        for (at, line) in lines.by_ref().take(POOL) {
            let place = || format!("{}, line {}", path.display(), at + 1);
            let request: EvalRequest = serde_json::from_str(&line.with_context(place)?).with_context(place)?;
            check(&request, job).with_context(place)?;
            pool.push(request);
        }
        if pool.is_empty() {
            break;
        }
        let Some(answered) = pooled(&pool, &opened, job, &mut |more| {
            voice.progress(done + more as u64, Some(total), Unit::Items);
            Ok(!ranks.anyone_asked_to_stop()?)
        })?
        else {
            return Ok(Ended::Interrupted);
        };
        done += pool.len() as u64;
        if let Some(answers) = &mut answers {
            answered.iter().try_for_each(|answer| answers.write(answer))?;
        }
    }
    voice.progress(total, Some(total), Unit::Items);
    answers.map_or(Ok(()), Answers::publish)?;
    Ok(Ended::Done)
}

fn check(request: &EvalRequest, job: &EvalJob) -> Result<()> {
    let (what, length) = match request {
        EvalRequest::Score(score) => ("tokens go in", score.tokens.len().saturating_sub(1)),
        EvalRequest::Generate(generate) => {
            ("tokens go in and are made", generate.tokens.len() + generate.max_new_tokens)
        }
    };
    ensure!(length <= job.max_length, "{length} {what}, and max_length is {}", job.max_length);
    Ok(())
}

/// Answers some requests, in their order; none if it was asked to stop.
fn pooled(
    pool: &[EvalRequest],
    opened: &Opened,
    job: &EvalJob,
    go_on: &mut dyn FnMut(usize) -> Result<bool>,
) -> Result<Option<Vec<EvalAnswer>>> {
    let scores: Vec<&Score> = pool
        .iter()
        .map(|request| match request {
            EvalRequest::Score(score) => Ok(score),
            EvalRequest::Generate(_) => bail!("this worker scores, and does not generate"),
        })
        .collect::<Result<_>>()?;
    let Some(scored) = Scorer { opened, batch_size: job.batch_size }.score(&scores, go_on)? else { return Ok(None) };
    if let Some(at) = scored.iter().position(|scored| !scored.logprob.is_finite()) {
        bail!(
            "the log-likelihood of {} tokens is {}: the model's weights are damaged, or {:?} does not suffice",
            scores[at].scored,
            scored[at].logprob,
            job.precision
        );
    }
    Ok(Some(scored.into_iter().map(EvalAnswer::Score).collect()))
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

/// The file of answers: there whole, or not at all.
struct Answers<'a> {
    path: &'a Path,
    file: BufWriter<File>,
}

impl<'a> Answers<'a> {
    fn create(path: &'a Path) -> Result<Self> {
        let temporary = path.with_extension("tmp");
        let file = File::create(&temporary).with_context(|| format!("cannot write {}", temporary.display()))?;
        Ok(Self { path, file: BufWriter::new(file) })
    }

    fn write(&mut self, answer: &EvalAnswer) -> Result<()> {
        serde_json::to_writer(&mut self.file, answer)?;
        Ok(self.file.write_all(b"\n")?)
    }

    fn publish(self) -> Result<()> {
        self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
        let path = self.path;
        fs::rename(path.with_extension("tmp"), path).with_context(|| format!("cannot name {}", path.display()))
    }
}

//! Evaluation: answers requests, line by line as they were asked.

use std::{
    cmp::Reverse,
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use flow_core::Unit;
use flow_plan::{EvalAnswer, EvalJob, EvalRequest, Generated, Parallel, Rank, Score, Serving};

use crate::{
    Ended, device,
    events::Voice,
    generate::{Generator, Told},
    opened::Opened,
    ranks::Ranks,
    score::Scorer,
    weights,
};

/// Requests that are sorted by length together: bounds the memory, whatever their number.
const POOL: usize = 4096;

/// Answers as `job` says. `ranks` is where others are told of a failure.
pub fn eval(job: &EvalJob, me: &Rank, ranks: &mut Option<Ranks>) -> Result<Ended> {
    let serving = &job.serving;
    ensure!(serving.max_length > 0 && serving.batch_size > 0, "max_length and batch_size must be at least 1");
    let device = device::set_up(serving.device, me, serving.threads, true)?;
    let parallel = Parallel { tensor: serving.tensor, ..Parallel::default() };
    let ranks = ranks.insert(Ranks::meet(me, &parallel, device)?);
    let voice = Voice::new(&job.node, me.rank);
    let (total, generates) = look_at(&job.requests)?;
    device::can_ask(device, serving, generates)?;
    let opened = Opened::with(ranks, &serving.model, weights::kind(serving.precision), device, serving.max_length)?;

    let path = &job.requests;
    let mut lines = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
        .lines()
        .enumerate();
    // Every rank knows the answers; one writes them.
    let mut answers = if voice.speaks() { Some(Answers::create(&job.answers)?) } else { None };
    let (mut done, mut said) = (0, u64::MAX);
    loop {
        let mut pool = Vec::new();
        for (at, line) in lines.by_ref().take(POOL) {
            let place = || format!("{}, line {}", path.display(), at + 1);
            let request: EvalRequest = serde_json::from_str(&line.with_context(place)?).with_context(place)?;
            check(&request, serving.max_length).with_context(place)?;
            pool.push(request);
        }
        if pool.is_empty() {
            break;
        }
        let Some(answered) = pooled(&pool, &opened, serving, &mut |more| {
            let now = done + more as u64;
            if std::mem::replace(&mut said, now) != now {
                voice.progress(now, Some(total), Unit::Tokens);
            }
            Ok(!ranks.anyone_asked_to_stop()?)
        })?
        else {
            return Ok(Ended::Interrupted);
        };
        done += pool.iter().map(work).sum::<usize>() as u64;
        if let Some(answers) = &mut answers {
            answered.iter().try_for_each(|answer| answers.write(answer))?;
        }
    }
    voice.progress(total, Some(total), Unit::Tokens);
    answers.map_or(Ok(()), Answers::publish)?;
    Ok(Ended::Done)
}

/// The tokens of a request, with those that may be made: long ones take longer.
fn work(request: &EvalRequest) -> usize {
    match request {
        EvalRequest::Score(score) => score.tokens.len(),
        EvalRequest::Generate(generate) => generate.tokens.len() + generate.max_new_tokens,
    }
}

fn check(request: &EvalRequest, max_length: usize) -> Result<()> {
    let (what, length) = match request {
        EvalRequest::Score(score) => ("tokens go in", score.tokens.len().saturating_sub(1)),
        EvalRequest::Generate(generate) => {
            ("tokens go in and are made", generate.tokens.len() + generate.max_new_tokens)
        }
    };
    ensure!(length <= max_length, "{length} {what}, and max_length is {max_length}");
    Ok(())
}

/// Answers some requests, in their order; none if it was asked to stop.
fn pooled(
    pool: &[EvalRequest],
    opened: &Opened,
    serving: &Serving,
    go_on: &mut dyn FnMut(usize) -> Result<bool>,
) -> Result<Option<Vec<EvalAnswer>>> {
    let mut answers: Vec<Option<EvalAnswer>> = vec![None; pool.len()];
    let (mut scores, mut prompts) = (Vec::new(), Vec::new());
    for (at, request) in pool.iter().enumerate() {
        match request {
            EvalRequest::Score(score) => scores.push((at, score)),
            EvalRequest::Generate(generate) => prompts.push((at, generate)),
        }
    }
    let requests: Vec<&Score> = scores.iter().map(|(_, score)| *score).collect();
    let Some(scored) = Scorer { opened, batch_size: serving.batch_size }.score(&requests, go_on)? else {
        return Ok(None);
    };
    for ((at, request), scored) in scores.into_iter().zip(scored) {
        ensure!(
            scored.logprob.is_finite(),
            "the log-likelihood of {} tokens is {}: the model's weights are damaged, or {:?} does not suffice",
            request.scored,
            scored.logprob,
            serving.precision
        );
        answers[at] = Some(EvalAnswer::Score(scored));
    }
    // Prompts of like length go in together.
    prompts.sort_by_key(|(_, prompt)| Reverse(prompt.tokens.len()));
    let mut generator = Generator::new(opened, &serving.model, serving.batch_size);
    let mut made: Vec<Vec<u32>> = vec![Vec::new(); pool.len()];
    let mut done: usize = requests.iter().map(|request| request.tokens.len()).sum();
    for (at, request) in prompts {
        generator.ask(at, request.clone())?;
    }
    while !generator.is_idle() {
        if !go_on(done)? {
            return Ok(None);
        }
        generator.step(&mut |at, told| {
            match told {
                Told::Token(token) => {
                    made[at].push(token);
                    done += 1;
                }
                Told::Ended(ended) => {
                    // Its prompt, and what was not to be made of it after all.
                    done += work(&pool[at]) - made[at].len();
                    answers[at] =
                        Some(EvalAnswer::Generate(Generated { tokens: std::mem::take(&mut made[at]), ended }));
                }
            }
            Ok(())
        })?;
    }
    Ok(answers.into_iter().collect())
}

/// How many tokens all lines have, and whether one of them asks for a generation.
fn look_at(path: &Path) -> Result<(u64, bool)> {
    let lines = BufReader::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?).lines();
    let (mut total, mut generates) = (0, false);
    for line in lines {
        let line = line.with_context(|| format!("cannot read {}", path.display()))?;
        // What is wrong with a line is said when its turn comes.
        let Ok(request) = serde_json::from_str(&line) else { continue };
        generates = generates || matches!(request, EvalRequest::Generate(_));
        total += work(&request) as u64;
    }
    Ok((total, generates))
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

//! Documents → lines that a worker answers, and lines that its answers are judged with. Some documents at a time: memory does
//! not grow with their number but for a few bytes each.

use std::{
    fs::File,
    io::{BufWriter, IntoInnerError, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use flow_core::Ctx;
use flow_plan::{EvalRequest, Generate};
use rayon::prelude::*;

use super::{
    encode::Encoder,
    fewshot::Shots,
    prompt::Item,
    source::{Lot, Source},
    task::Task,
    template::Document,
};

/// A task with its documents.
#[derive(Debug)]
pub struct Ready<'a> {
    /// The task.
    pub task: &'a Task,
    /// Its documents.
    pub source: Source,
    /// Those of its examples.
    pub fewshot: Source,
    /// The first so many documents alone.
    pub limit: Option<u64>,
}

/// How much a model is asked about a document.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Lines.
    pub requests: u32,
    /// Tokens that are scored in them.
    pub scored: u64,
}

/// What a model is asked, as it is written.
pub struct Requests {
    path: PathBuf,
    file: BufWriter<File>,
    /// Its tokenizer.
    pub encoder: Encoder,
    /// By task and document.
    pub asked: Vec<Vec<Asked>>,
    /// Tokens that go in at once at most.
    pub longest: usize,
}

impl Requests {
    /// Nothing yet.
    ///
    /// # Errors
    /// The file cannot be created.
    pub fn create(path: PathBuf, encoder: Encoder) -> Result<Self> {
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file: BufWriter::new(file), encoder, asked: Vec::new(), longest: 1 })
    }

    fn write(&mut self, requests: &[EvalRequest]) -> Result<Asked> {
        let mut asked = Asked::default();
        for request in requests {
            let room = match request {
                EvalRequest::Score(score) => {
                    asked.scored += score.scored as u64;
                    score.tokens.len() - 1
                }
                EvalRequest::Generate(generate) => generate.tokens.len() + generate.max_new_tokens,
            };
            self.longest = self.longest.max(room);
            asked.requests += 1;
            serde_json::to_writer(&mut self.file, request).with_context(|| self.cannot())?;
            self.file.write_all(b"\n").with_context(|| self.cannot())?;
        }
        Ok(asked)
    }

    fn cannot(&self) -> String {
        format!("cannot write {}", self.path.display())
    }

    /// Whether nothing is asked at all.
    pub fn is_empty(&self) -> bool {
        self.asked.iter().flatten().all(|asked| asked.requests == 0)
    }

    /// Writes what is not yet in the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<(PathBuf, Encoder, Vec<Vec<Asked>>)> {
        let cannot = self.cannot();
        let file = self.file.into_inner().map_err(IntoInnerError::into_error).with_context(|| cannot.clone())?;
        file.sync_data().with_context(|| cannot)?;
        Ok((self.path, self.encoder, self.asked))
    }
}

/// Each document is drawn for with a seed of its own.
fn seeded(mut request: EvalRequest, document: u64) -> EvalRequest {
    if let EvalRequest::Generate(Generate { sampling: Some(sampling), .. }) = &mut request {
        sampling.seed = sampling.seed.wrapping_add(document);
    }
    request
}

/// Writes what each model is asked about the documents of a task, and into `items` what is kept of these. `step` is told how
/// many are done each time. How many there are.
///
/// # Errors
/// A document is none, or has not what the task wants: the first of all is said, with its file and line.
pub fn prepare(
    ctx: &Ctx<'_>,
    ready: &Ready<'_>,
    items: &Path,
    models: &mut [Requests],
    step: &dyn Fn(u64),
) -> Result<u64> {
    let task = ready.task;
    let templates = task.check(&mut Vec::new());
    let pool = if task.fewshot.count > 0 { ready.fewshot.lines(ctx)? } else { Vec::new() };
    let mut shots = Shots::new(&task.fewshot, pool);
    let cannot = || format!("cannot write {}", items.display());
    let mut out = BufWriter::new(File::create(items).with_context(cannot)?);
    models.iter_mut().for_each(|model| model.asked.push(Vec::new()));
    let mut count = 0;
    ready.source.lots(ctx, ready.limit, |Lot { file, first, lines }| {
        let place = |i: usize| format!("{file}: line {}", first + i);
        let read = |(i, line): (usize, &&[u8])| Document::of_line(line).with_context(|| place(i));
        // Collected whole: the error of the first bad line is said, not of the one that was met first.
        let documents: Vec<Result<Document>> = lines.par_iter().enumerate().map(read).collect();
        let documents: Vec<Document> = documents.into_iter().collect::<Result<_>>()?;
        // One after the other, since each draws where the one before stopped.
        let examples: Vec<Vec<Document>> = documents
            .iter()
            .enumerate()
            .map(|(i, d)| shots.next(d).with_context(|| place(i)))
            .collect::<Result<_>>()?;
        let encoders: Vec<&Encoder> = models.iter().map(|model| &model.encoder).collect();
        let ask =
            |(i, (document, shots)): (usize, (&Document, &Vec<Document>))| -> Result<(Item, Vec<Vec<EvalRequest>>)> {
                let (item, asks) = task.ask(&templates, document, shots).with_context(|| place(i))?;
                let encode = |encoder: &&Encoder| -> Result<Vec<EvalRequest>> {
                    let all: Vec<_> = asks.iter().map(|ask| encoder.requests(ask, task)).collect::<Result<_>>()?;
                    Ok(all.into_iter().flatten().map(|request| seeded(request, count + i as u64)).collect())
                };
                Ok((item, encoders.iter().map(encode).collect::<Result<_>>().with_context(|| place(i))?))
            };
        let asked: Vec<Result<_>> = documents.par_iter().zip(&examples).enumerate().map(ask).collect();
        for one in asked {
            let (item, requests) = one?;
            serde_json::to_writer(&mut out, &item).with_context(cannot)?;
            out.write_all(b"\n").with_context(cannot)?;
            for (model, requests) in models.iter_mut().zip(requests) {
                let asked = model.write(&requests)?;
                model.asked.last_mut().context("the task has begun")?.push(asked);
            }
        }
        count += lines.len() as u64;
        step(count);
        Ok(())
    })?;
    ensure!(count > 0, "task `{}`: there is not one document", task.task);
    out.flush().with_context(cannot)?;
    Ok(count)
}

//! The life of one node that must run, on its own thread: claim its key, run it, check what it did, commit, put its
//! files in their places.

use std::{
    collections::{BTreeMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use flow_cache::{Busy, Cache, Claim, ClaimOptions, Devices, Outcome, Slot};
use flow_core::{Cancel, Cancelled, Ctx, Digest, Event, How, Input, Level, Network, Pinned, Remarks, Sink, Unchanged};

use crate::{
    aside::{Aside, Way},
    decide::{Leaf, PIN, Work},
    graph::NodeId,
    kept::keep,
    lockfile::{LOCK_FILE, LockFile},
    place::{Placer, Put, refusal},
    project::Project,
    record::Recorder,
    taken::Taken,
    team::Push,
};

/// What all nodes of a run share.
pub struct Env<'a> {
    pub project: &'a Project,
    pub cache: &'a Cache,
    pub sink: &'a dyn Sink,
    /// The run's record, if this is a run and not a job of one.
    pub record: Option<&'a Recorder<'a>>,
    pub placer: &'a Placer<'a>,
    /// What of each node's result is given to the team, if anything is.
    pub pushes: Option<Vec<Push>>,
    pub network: &'a Network,
    /// What runs containers, if the settings say so.
    pub container_engine: Option<&'a str>,
    /// The directories whose files the run's record names already.
    pub listed: Mutex<HashSet<Digest>>,
    /// The files that the pipeline was read from, if anything runs elsewhere.
    pub sources: BTreeMap<PathBuf, String>,
    /// What programs call the GPUs of this machine.
    pub gpus: Vec<String>,
    /// They are this process's alone: somebody who gives them out has seen to that.
    pub allocated: bool,
}

/// One node's work, with all that it needs.
pub struct Job {
    pub id: NodeId,
    pub work: std::sync::Arc<Work>,
    /// Why it runs, for people.
    pub why: String,
    pub inputs: BTreeMap<String, Vec<Input>>,
    /// The paths among its inputs, with the content that its key was made of.
    pub leaves: Vec<Leaf>,
    /// What it takes from where others put it.
    pub taken: Vec<Taken>,
    pub threads: usize,
    /// How many GPUs are to be its own.
    pub gpus: usize,
    /// How many machines it has.
    pub nodes: usize,
    /// Which, if the user names them.
    pub hosts: Vec<String>,
    /// What it was refused with before.
    pub after: Option<Busy>,
    pub cancel: Cancel,
    /// Its exports may overwrite files of the user's.
    pub overwrite: bool,
}

/// What came of trying to make a node's result.
#[derive(Debug)]
pub enum Tried {
    /// It is there.
    Made(Made),
    /// Another flow is making it, or has what it takes: to be tried again.
    Busy(Wait),
    /// It is there, but another flow has one of its places: that is to be tried again.
    Unplaced(Made, Wait),
}

/// What a node waits for.
#[derive(Clone, Debug)]
pub struct Wait {
    /// For people.
    pub reason: String,
    /// For the next try.
    pub after: Option<Busy>,
}

/// A node's result, and how it came.
#[derive(Clone, Debug)]
pub struct Made {
    pub outcome: Outcome,
    pub how: How,
}

impl Env<'_> {
    /// Makes a node's result, or takes it where it is there. What another flow is making is not waited for here: whoever
    /// waits should have nothing that others could use.
    ///
    /// # Errors
    /// The stage failed, [`Cancelled`], the result is not what it must be, the cache cannot be written.
    pub fn execute(&self, job: &Job) -> Result<Tried> {
        let run_parts = job.work.run_parts();
        let run_key = run_parts.key();
        // What the URL gave before is of no use if it is not what the lock file asks for.
        let stale = match &job.work.pinned {
            Some(pinned) => self.cache.record(&run_key)?.is_some_and(|record| record.tree.digest() != pinned.digest),
            None => false,
        };
        let node = &self.project.graph().nodes[job.id].name;
        let options = ClaimOptions {
            resumable: self.project.graph().stage_of(job.id).kind.resumable,
            ignore_hit: stale || job.work.reason.ignores_hits(),
            after: job.after.as_ref(),
        };
        let remarks = Mutex::default();
        // What a command has made in its places is known to be there.
        let mut placed = false;
        let (outcome, how) = match self.cache.claim(&run_key, &options)? {
            Claim::Hit(outcome) => (outcome, if job.after.is_some() { How::Shared } else { How::Cached }),
            Claim::Busy(busy) => {
                let reason = format!("{} is making the same result", busy.holder);
                return Ok(Tried::Busy(Wait { reason, after: Some(busy) }));
            }
            Claim::Miss(slot) => {
                let gpus = match self.take_devices(job)? {
                    Ok(devices) => devices,
                    Err(reason) => return Ok(Tried::Busy(Wait { reason, after: job.after.clone() })),
                };
                let aside = match self.make_way(job) {
                    Ok(Way::Held(place)) => {
                        return Ok(Tried::Busy(Wait { reason: held(&place), after: job.after.clone() }));
                    }
                    Ok(Way::Free(aside)) => Ok(aside),
                    Err(error) => Err(error),
                };
                self.sink.emit(Event::Started { node: node.clone(), key: job.work.key, why: job.why.clone() });
                if let Some(run) = self.record.and_then(Recorder::dir) {
                    keep(&run, node, &job.work, &job.leaves, &self.listed);
                }
                let aside = aside?;
                let began = Instant::now();
                let run = self.run_in(&slot, job, gpus.names(), &remarks).map_err(|error| self.blame(error, &slot));
                if let Some((_, before)) = &job.work.before
                    && run.as_ref().is_err_and(anyhow::Error::is::<Unchanged>)
                {
                    (before.clone(), How::Cached)
                } else {
                    run?;
                    self.check(&slot, job, node)?;
                    self.tell_empty(slot.out(), node);
                    let told = remarks.lock().unwrap_or_else(PoisonError::into_inner).resumed;
                    let how = if slot.resumed() && told != Some(false) { How::Resumed } else { How::Ran };
                    let outcome = slot.commit(&run_parts, began.elapsed().as_secs_f64())?;
                    aside.keep(job.id, &outcome.tree)?;
                    placed = self.project.graph().common(job.id).export.is_none();
                    (outcome, how)
                }
            }
        };
        let remarks = remarks.into_inner().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.pin(&job.work, outcome, remarks)?;
        if matches!(how, How::Ran | How::Resumed) {
            self.share(job, &outcome, &job.work);
        }
        let made = Made { outcome, how };
        if placed { Ok(Tried::Made(made)) } else { self.place(job.id, made, job.overwrite) }
    }

    /// Takes what a job of a cluster has made as if it had been made here.
    ///
    /// # Errors
    /// As of what comes after the work in [`Env::execute`].
    pub fn take_in(&self, job: &Job, made: Made) -> Result<Tried> {
        let outcome = self.pin(&job.work, made.outcome, Remarks::default())?;
        if matches!(made.how, How::Ran | How::Resumed) {
            self.share(job, &outcome, &job.work);
        }
        self.place(job.id, Made { outcome, how: made.how }, job.overwrite)
    }

    /// Takes the machines that the job names, or GPUs of this one; or says who has them.
    fn take_devices(&self, job: &Job) -> Result<Result<Devices, String>> {
        if self.allocated {
            return Ok(Ok(Devices::allocated(self.gpus.clone())));
        }
        if !job.hosts.is_empty() {
            let taken = self.cache.take_hosts(&job.hosts)?;
            return Ok(taken.ok_or_else(|| format!("another stage uses {}", job.hosts.join(", "))));
        }
        let taken = self.cache.take_gpus(&self.gpus, job.gpus)?;
        Ok(taken
            .ok_or_else(|| format!("another flow uses the GPUs: {} of {} are to be free", job.gpus, self.gpus.len())))
    }

    /// Puts what a command takes in its place, and makes way for what it makes.
    fn make_way(&self, job: &Job) -> Result<Way<'_>> {
        for taken in &job.taken {
            if let Some(place) = self.placer.put_taken(taken, job.id)? {
                return Ok(Way::Held(place));
            }
        }
        Aside::make(self.placer, job.id, job.overwrite)
    }

    /// A stage that fails on a full or read-only cache is not to blame, whatever it says.
    fn blame(&self, error: anyhow::Error, slot: &Slot) -> anyhow::Error {
        if error.is::<Unchanged>() || error.chain().any(<dyn std::error::Error>::is::<Cancelled>) {
            return error;
        }
        match self.cache.probe(slot.scratch()) {
            Ok(()) => error,
            Err(trouble) => trouble.context(format!("{error:#}")),
        }
    }

    fn run_in(&self, slot: &Slot, job: &Job, gpus: &[String], remarks: &Mutex<Remarks>) -> Result<()> {
        let ctx = Ctx {
            node: &self.project.graph().nodes[job.id].name,
            inputs: &job.inputs,
            out: slot.out(),
            scratch: slot.scratch(),
            project: self.project.dir(),
            pinned: job.work.pinned.as_ref(),
            before: job.work.before.as_ref().map(|before| &before.0),
            remarks,
            nodes: job.nodes,
            hosts: &job.hosts,
            threads: job.threads,
            gpus,
            container_engine: self.container_engine,
            network: self.network,
            sink: self.sink,
            cancel: &job.cancel,
            whole: &|path| slot.read_ahead(path),
        };
        let action = &self.project.graph().nodes[job.id].action;
        match catch_unwind(AssertUnwindSafe(|| action.run(&ctx))) {
            Ok(result) => result,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                Err(anyhow!("{text}").context("the stage panicked: this is a defect of flow"))
            }
        }
    }

    /// What a stage must have left, and must have left alone.
    fn check(&self, slot: &Slot, job: &Job, node: &str) -> Result<()> {
        for out in self.project.graph().nodes[job.id].action.outs() {
            let made = slot.out().join(Path::new(out)).exists();
            ensure!(made, "the stage did not make `{out}`, which it lists in `outs`");
        }
        let changed = |what: &dyn std::fmt::Display| {
            anyhow!("`{what}` changed while `{node}` ran: the result would not be what its key says; run again")
        };
        for leaf in &job.leaves {
            if !leaf.is_same(self.project, self.cache)? {
                return Err(changed(&leaf.source));
            }
        }
        for taken in &job.taken {
            if !self.placer.is_as_taken(taken)? {
                return Err(changed(&taken.file));
            }
        }
        // What of the cache a stage writes to, though it may not: in containers, as root, mode bits keep nobody out.
        let made = job.inputs.values().flatten().filter(|input| input.path.starts_with(self.cache.root()));
        for input in made {
            if !self.cache.is_intact(&input.tree, &input.name)? {
                return Err(changed(&input.name));
            }
        }
        Ok(())
    }

    /// A result is files: an empty directory is not kept, and whoever made it should know.
    fn tell_empty(&self, out: &Path, node: &str) {
        let mut empty = Vec::new();
        find_empty(out, &mut empty);
        for dir in empty {
            let name = dir.strip_prefix(out).unwrap_or(&dir).display();
            let text = format!("the directory `{name}` that it made is empty, and is not kept: a result is files");
            self.sink.emit(Event::log(node, Level::Warning, text));
        }
    }

    /// Checks the result of a URL against `flow.lock`, or writes it there; and makes it known under its final key.
    ///
    /// # Errors
    /// It is not what `flow.lock` asks for; the lock file or the cache cannot be written.
    pub fn pin(&self, work: &Work, outcome: Outcome, remarks: Remarks) -> Result<Outcome> {
        let Some(url) = &work.pin_url else { return Ok(outcome) };
        let digest = outcome.tree.digest();
        let mut parts = work.parts.clone();
        match &work.pinned {
            Some(pinned) if pinned.digest != digest => {
                return Err(anyhow!("pinned {} ({} bytes)", pinned.digest.short(), pinned.size))
                    .context(format!("it gave   {} ({} bytes)", digest.short(), outcome.tree.size()))
                    .context(format!(
                        "{url} gives something else than {LOCK_FILE} pins: `flow lock --update {}{}` takes what it gives now",
                        self.project.file().display(),
                        self.project.profile().map_or_else(String::new, |profile| format!(" --profile {profile}"))
                    ));
            }
            Some(_) => {}
            None => {
                let Remarks { etag, revision, .. } = remarks;
                let pinned = Pinned { digest, size: outcome.tree.size(), etag, revision };
                LockFile::add(self.project.dir(), &BTreeMap::from([(url.clone(), pinned)]))?;
                parts.inputs.insert(PIN.into(), vec![digest]);
            }
        }
        self.cache.alias(&parts, &outcome)
    }

    /// Puts a result's files in their places outside of the cache.
    ///
    /// # Errors
    /// A file of the user's is in the way; something cannot be written.
    pub fn place(&self, id: NodeId, made: Made, overwrite: bool) -> Result<Tried> {
        if !self.placer.has_places(id) {
            return Ok(Tried::Made(made));
        }
        let node = &self.project.graph().nodes[id].name;
        let lack = self.placer.lacks(id, &made.outcome.tree)?;
        match self.placer.put(&lack, overwrite)? {
            Put::Refused(refused) => {
                let refused: Vec<_> = refused.iter().map(|path| refusal(path, node)).collect();
                Err(anyhow!(refused.join("\n")).context("the result is in the cache, but cannot be put in its place"))
            }
            Put::Held(place) => Ok(Tried::Unplaced(made, Wait { reason: held(&place), after: None })),
            Put::Done => Ok(Tried::Made(made)),
        }
    }
}

/// Why a place has to be waited for.
fn held(place: &Path) -> String {
    format!("another flow is making {}", place.display())
}

/// The directories below `dir` that hold nothing. What cannot be read is said when it is committed.
fn find_empty(dir: &Path, empty: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            if std::fs::read_dir(&path).is_ok_and(|mut inside| inside.next().is_none()) {
                empty.push(path);
            } else {
                find_empty(&path, empty);
            }
        }
    }
}

//! The loop of a run: decides about open nodes, starts what there is room for, hears what became of it.
//!
//! Hits are decided here, on the runner's own thread; what must run gets a thread of its own ([`crate::exec`]).
//! Nothing runs before every stage that still has work said what cannot work ([`Project::check`]).

mod again;
mod check;
mod clock;
mod ended;
mod fingerprint;
mod start;
mod team;
mod temp;
mod waits;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::Scope,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use flow_cache::{Cache, Outcome, Remote};
use flow_core::{Cancel, Diagnostic, Digest, Event, How, Key, Level, Remarks, Sink};

pub(crate) use fingerprint::Fingerprint;
use team::{Team, Word};
use temp::Temps;
use waits::Waits;

use crate::{
    cluster::{Cluster, executor, sources},
    decide::{Decider, Decision, Work},
    exec::{Env, Made, Tried},
    graph::NodeId,
    need::may_not_run,
    place::{Placer, Put, refusal},
    project::{Checked, Project, memo_name},
    record::{Head, Recorder},
    run_head::stage_heads,
    sched::{Pools, Request, Sched, State},
    select::{RunOptions, Selection},
    settings::Settings,
    summary::{RunError, Summary},
    team::{finish_uploads, pushes},
    unchanged::attest,
    why::{Explainer, NO_DIGEST},
};

/// How often the runner looks whether it was asked to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Files of a hit that are not in their place are put there by the runner itself up to so many bytes.
const PLACE_HERE: u64 = 16 << 20;

/// Runs a pipeline. Blocks until everything is there, something failed, or `cancel` is set and what ran has stopped.
///
/// Everything that happens goes to `sink`. A log event with an empty node is about the run itself.
///
/// # Errors
/// What was asked for cannot work, said before anything runs; or the cache cannot be used. That a stage failed is no
/// error here: see [`Summary`].
pub fn run(
    project: &Project,
    cache: &Cache,
    settings: &Settings,
    options: &RunOptions,
    sink: &dyn Sink,
    cancel: &Cancel,
) -> Result<Summary, RunError> {
    let selection = Selection::new(project.graph(), options).map_err(RunError::Pipeline)?;
    cache.load_memo(&memo_name(&project.absolute_file(), project.profile()));
    let decider = Decider::new(project, cache, &selection).map_err(RunError::Pipeline)?;
    let head = Head {
        pipeline: project.name(),
        file: project.absolute_file(),
        profile: project.profile(),
        set: project.options().said(),
        nodes: selection.wanted.iter().filter(|wanted| **wanted).count(),
        stages: stage_heads(project.graph(), &selection.wanted),
        machine: (settings.cpus, settings.gpus, settings.memory),
    };
    let recorder = Recorder::new(head, cache, sink);
    let placer = Placer::new(project, cache, &recorder);
    let remote = settings.remote.as_ref().filter(|remote| remote.config.write);
    let pushes = remote.map(|remote| pushes(project.graph(), &remote.pushes()));
    if let Some(remote) = cache.remote().filter(Remote::writes) {
        remote.push_noted();
    }
    let name = |gpu: u32| settings.gpu_names.get(gpu as usize).cloned().unwrap_or_else(|| gpu.to_string());
    let gpus = (0..settings.gpus).map(name).collect();
    let (network, listed) = (&settings.network, Mutex::default());
    let goes_out = |id: &NodeId| selection.wanted[*id] && executor(project.graph(), settings, *id).is_some();
    let sources = match (0..selection.wanted.len()).any(|id| goes_out(&id)) {
        true => sources(project).map_err(RunError::Cache)?,
        false => BTreeMap::new(),
    };
    let container_engine = settings.container_engine.as_deref();
    let env = Env {
        sources,
        project,
        cache,
        sink: &recorder,
        record: Some(&recorder),
        placer: &placer,
        pushes,
        network,
        container_engine,
        listed,
        gpus,
        allocated: false,
    };
    let (sender, receiver) = channel();
    let pools = Pools {
        jobs: u32::try_from(settings.jobs).unwrap_or(u32::MAX),
        cpus: settings.cpus,
        gpus: settings.gpus,
        memory: settings.memory,
    };
    let request = |id: NodeId| {
        let resources = &project.graph().common(id).resources;
        if !resources.hosts.is_empty() {
            // None of it is this machine's.
            return Request { cpus: 0, gpus: 0, memory: 0, elsewhere: false };
        }
        Request {
            cpus: resources.cpus.unwrap_or(1),
            gpus: resources.gpus,
            memory: resources.memory,
            elsewhere: executor(project.graph(), settings, id).is_some(),
        }
    };
    let nodes = project.graph().nodes.iter().enumerate();
    let shape = nodes.map(|(id, node)| (node.dependencies.as_slice(), node.dependents.as_slice(), request(id)));
    let sched = Sched::new(shape, &selection.wanted, pools);
    let mut runner = Runner {
        env: &env,
        settings,
        options,
        selection: &selection,
        recorder: &recorder,
        explainer: Explainer::new(project, cache, &selection.wanted),
        decider,
        sched,
        works: HashMap::new(),
        tries: HashMap::new(),
        makers: HashMap::new(),
        made: HashMap::new(),
        team: Team::default(),
        temps: Temps::default(),
        cluster: Cluster::default(),
        active: HashMap::new(),
        resting: Vec::new(),
        waits: Waits::default(),
        errors: HashMap::new(),
        sender,
        receiver,
        cancel,
        checked: false,
        asked: HashSet::new(),
        known: Checked::default(),
        refused: Vec::new(),
        began: Instant::now(),
        ends: BTreeMap::new(),
        swept: false,
        outdated: BTreeSet::new(),
        summary: Summary::default(),
    };
    let ended = std::thread::scope(|scope| runner.go(scope));
    let swept = runner.swept;
    drop(runner);
    if swept && options.is_plain() && ended.as_ref().is_ok_and(|summary| summary.ok) {
        attest(project, cache, settings);
    }
    // A memo that cannot be written only makes the next run slower.
    cache.save_memo().ok();
    ended
}

/// What a thread says of its node.
struct Done {
    id: NodeId,
    made: Result<Tried>,
}

/// A node that runs.
struct Active {
    began: Instant,
    deadline: Option<Instant>,
    cancel: Cancel,
    timed_out: bool,
}

/// What a node has to do.
enum Todo {
    Execute(Arc<Work>),
    /// It is there, but for its places; and what that has taken so far, in seconds.
    Place(Made, f64),
}

struct Runner<'a> {
    env: &'a Env<'a>,
    settings: &'a Settings,
    options: &'a RunOptions,
    selection: &'a Selection,
    recorder: &'a Recorder<'a>,
    explainer: Explainer<'a>,
    decider: Decider<'a>,
    sched: Sched<'a>,
    works: HashMap<NodeId, Todo>,
    /// How often nodes were tried again.
    tries: HashMap<NodeId, u32>,
    /// Key that something runs under → the node that does.
    makers: HashMap<Key, NodeId>,
    /// What nodes made in this run, by the key that they ran under.
    made: HashMap<Key, Outcome>,
    team: Team,
    temps: Temps,
    cluster: Cluster,
    active: HashMap<NodeId, Active>,
    resting: Vec<(Instant, NodeId)>,
    waits: Waits,
    /// With what they failed that are tried again, and after how many seconds.
    errors: HashMap<NodeId, (anyhow::Error, f64)>,
    sender: Sender<Word>,
    receiver: Receiver<Word>,
    cancel: &'a Cancel,
    /// The stages were asked what cannot work.
    checked: bool,
    /// The nodes that were, and need not be again.
    asked: HashSet<NodeId>,
    /// What they said.
    known: Checked,
    /// Files of the user's that are in the way, found before anything runs.
    refused: Vec<Diagnostic>,
    began: Instant,
    /// How the nodes came that are done, and what that would have cost.
    ends: BTreeMap<NodeId, (How, f64)>,
    /// Nothing is left in the places of exports that no node makes any more.
    swept: bool,
    /// Nodes that were done, if at all, with what they do not take any more.
    outdated: BTreeSet<NodeId>,
    summary: Summary,
}

impl<'a> Runner<'a> {
    fn go<'scope>(&mut self, scope: &'scope Scope<'scope, '_>) -> Result<Summary, RunError>
    where
        'a: 'scope,
    {
        self.recorder.emit(Event::RunStarted {
            run: self.recorder.id(),
            pipeline: self.env.project.file().display().to_string(),
            profile: self.env.project.profile().map(str::to_owned),
            nodes: self.selection.wanted.iter().filter(|wanted| **wanted).count(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        });
        while !self.sched.is_over() {
            while let Some(id) = self.sched.next_open() {
                self.decide(id)?;
                if self.cancel.is_set() {
                    break;
                }
            }
            self.pass_on_warnings();
            // What there is to do is known before the first of it begins.
            let may_begin = self.checked || !self.team.is_asking();
            let work = self.sched.queued() > 0 || self.team.has_queue();
            if may_begin && work && !self.checked && !self.cancel.is_set() {
                self.check()?;
            }
            if !self.refused.is_empty() {
                return Err(RunError::Pipeline(std::mem::take(&mut self.refused)));
            }
            self.look_at_the_clock();
            self.free(false);
            if may_begin && !self.cancel.is_set() {
                self.fetch();
                while let Some(id) = self.sched.start() {
                    self.start(id, scope);
                }
            }
            if self.sched.running() > 0 || self.sched.away() > 0 || !self.resting.is_empty() {
                match self.receiver.recv_timeout(self.until_the_next_look()) {
                    Ok(word) => self.hear(word),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => unreachable!("the runner has a sender itself"),
                }
                while let Ok(word) = self.receiver.try_recv() {
                    self.hear(word);
                }
            }
            self.tell_blocked();
        }
        self.cluster.end();
        self.team.leave();
        self.share_what_it_is_made_of();
        finish_uploads(self.env.cache, self.recorder, self.cancel);
        self.pass_on_warnings();
        self.free(true);
        self.sweep();
        self.tell_absent();
        self.tell_outdated();
        Ok(self.end())
    }

    fn node(&self, id: NodeId) -> &'a str {
        &self.env.project.graph().nodes[id].name
    }

    fn warn(&self, text: String) {
        self.recorder.emit(Event::log("", Level::Warning, text));
    }

    fn pass_on_warnings(&self) {
        self.env.cache.take_warnings().into_iter().for_each(|warning| self.warn(warning));
    }

    fn decide(&mut self, id: NodeId) -> Result<(), RunError> {
        self.drop_work(id);
        let decision = self.decider.decide(id);
        // What was damaged is said before it is said to be good again.
        self.pass_on_warnings();
        let settled = match decision {
            Ok(Decision::Off) => {
                self.finished(id, How::Off, Key(NO_DIGEST.0), NO_DIGEST, 0.0, 0, 0.0);
                Ok(())
            }
            Ok(Decision::Hit(outcome, work)) => self.hit(id, outcome, work.as_deref()),
            Ok(Decision::Absent(outcome, work)) => match self.can_be_absent(id, &outcome, &work) {
                Ok(true) => Ok(()),
                Ok(false) => match self.must_have(id, *work)? {
                    Some(settled) => settled,
                    None => return Ok(()),
                },
                Err(error) => Err(error),
            },
            Ok(Decision::Run(work)) => match self.must_have(id, *work)? {
                Some(settled) => settled,
                None => return Ok(()),
            },
            Err(error) => Err(error),
        };
        match settled {
            Ok(()) if self.works.contains_key(&id) => self.sched.must_place(id),
            Ok(()) => {
                self.sched.hit(id);
                self.let_go(id);
            }
            Err(error) => self.failed(id, &error, 0.0),
        }
        Ok(())
    }

    /// The result of an open node is not here and has to be: the team may have it, or it is made. Tells what became of the
    /// node if that is settled already.
    fn must_have(&mut self, id: NodeId, work: Work) -> Result<Option<Result<()>>, RunError> {
        if self.ask_team(id, &work) {
            return Ok(None);
        }
        if self.selection.may_run[id] {
            return Ok(self.must_run(id, work));
        }
        let error = may_not_run(self.node(id));
        if self.checked { Ok(Some(Err(error.into()))) } else { Err(RunError::Pipeline(vec![error])) }
    }

    /// Puts a node on its way, unless another node of this run makes the same result: what that one makes is taken when
    /// it is there. Tells what became of the node if that is settled already.
    fn must_run(&mut self, id: NodeId, work: Work) -> Option<Result<()>> {
        let absent = self.absent_inputs(id);
        if !absent.is_empty() {
            return self.make_again(id, &absent).err().map(Err);
        }
        let key = work.run_parts().key();
        // Of who runs whatever the cache has: once a run is enough.
        if let Some(outcome) = self.made.get(&key).filter(|_| work.reason.ignores_hits()) {
            return Some(self.hit(id, outcome.clone(), None));
        }
        if let Some(&maker) = self.makers.get(&key).filter(|maker| **maker != id) {
            match self.sched.state(maker) {
                State::Done => {}
                State::Failed | State::Blocked => {
                    return Some(Err(anyhow!("`{}` makes the same result, and failed", self.node(maker))));
                }
                _ => {
                    // Before it is known whether anything runs, nothing is told.
                    if self.checked {
                        self.tell_waits(id, maker);
                    }
                    self.sched.follow(id, &[maker]);
                    return None;
                }
            }
        }
        if self.checked
            && let Err(wrong) = self.ask_again(id)
        {
            return Some(Err(wrong));
        }
        self.makers.insert(key, id);
        self.works.insert(id, Todo::Execute(Arc::new(work)));
        self.sched.must_run(id);
        None
    }

    /// A result is there: is it also pinned, and in its places?
    fn hit(&mut self, id: NodeId, outcome: Outcome, unpinned: Option<&Work>) -> Result<()> {
        let outcome = match unpinned {
            Some(work) => self.env.pin(work, outcome, Remarks::default())?,
            None => outcome,
        };
        if self.selection.may_run[id] && self.env.placer.has_places(id) {
            let lack = self.env.placer.lacks(id, &outcome.tree)?;
            let overwrite = self.selection.may_overwrite[id];
            let put = match lack.bytes() {
                _ if lack.is_empty() => Some(Put::Done),
                ..=PLACE_HERE => Some(self.env.placer.put(&lack, overwrite)?),
                _ => None,
            };
            match put {
                Some(Put::Done) => {}
                Some(Put::Held(_)) | None => {
                    let made = Made { outcome, how: self.team.how(id) };
                    self.works.insert(id, Todo::Place(made, 0.0));
                    return Ok(());
                }
                Some(Put::Refused(refused)) if self.checked => {
                    let refused: Vec<_> = refused.iter().map(|path| refusal(path, self.node(id))).collect();
                    bail!(refused.join("\n"));
                }
                // Before anything runs, all of them are said at once.
                Some(Put::Refused(refused)) => self.refused.extend(self.env.placer.refusals(id, refused)),
            }
        }
        self.have(id, &outcome, self.team.how(id), 0.0);
        Ok(())
    }

    /// The result of a node is there, whoever made it.
    fn have(&mut self, id: NodeId, outcome: &Outcome, how: How, seconds: f64) {
        self.is_present(id);
        let before = self.decider.result(id).map(|(.., digest)| *digest);
        self.decider.set(id, outcome.key, Arc::clone(&outcome.tree));
        if before.is_some_and(|before| before != outcome.tree.digest()) {
            self.decide_again(id);
        }
        let digest = self.decider.result(id).map_or(NO_DIGEST, |(.., digest)| *digest);
        self.finished(id, how, outcome.key, digest, seconds, outcome.tree.size(), outcome.cost);
    }

    #[allow(clippy::too_many_arguments)] // they are the fields of one event
    fn finished(&mut self, id: NodeId, how: How, key: Key, digest: Digest, seconds: f64, bytes: u64, cost: f64) {
        // What ran in this run and is found again by what it made did run.
        let ran = |(how, _): &(How, f64)| matches!(how, How::Ran | How::Resumed);
        if !self.ends.get(&id).is_some_and(ran) {
            self.ends.insert(id, (how, cost));
        }
        if !self.sched.is_outdated(id) {
            self.outdated.remove(&id);
        }
        self.recorder.emit(Event::Finished { node: self.node(id).to_owned(), how, key, digest, seconds, bytes, cost });
    }
}

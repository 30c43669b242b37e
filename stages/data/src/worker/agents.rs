//! [`Agents`]: the ranks of a job on several machines, each machine's started by an agent (`flow-torch worker --nnodes …`),
//! which is told what to do over the input of what carries it, and tells all over its output.

use std::{
    collections::{HashMap, VecDeque},
    env, mem,
    net::{IpAddr, UdpSocket},
    path::Path,
    process::{Child, ChildStdin},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use flow_core::Ctx;
use flow_plan::agent::{Order, Ready, Said};

use super::{
    PATIENCE, PROTOCOL,
    ranks::{Line, Rank, Stream, kill_group, read_lines, remember},
    reach::{Carrier, carriers},
    supervise::{Crew, Heard, Launch, ending},
};

/// A carrier that does not end when its agent must have is ended.
const LINGER: Duration = Duration::from_secs(5);

/// A longer line of pieces is cut.
const LONGEST_LINE: usize = 64 << 10;

/// The ranks of all machines. None outlives this value.
pub struct Agents {
    ranks: Vec<Rank>,
    carried: Vec<Carried>,
    words: Receiver<Word>,
    /// What each machine calls itself, by its number, as soon as it is ready.
    ready: Vec<Option<Ready>>,
    /// What the user calls them.
    hosts: Vec<String>,
    began: Instant,
    /// The ranks were told where they meet.
    met: bool,
    /// Since when they are being killed.
    killing: Option<Instant>,
}

/// What carries agents.
struct Carried {
    child: Child,
    /// Gone when nothing more is to be said.
    orders: Option<ChildStdin>,
    name: &'static str,
    nodes: std::ops::Range<usize>,
    /// How many of its pipes have ended.
    closed: usize,
    /// Since when it has ended.
    ended: Option<Instant>,
    /// What it leaves of ranks is lost.
    over: bool,
    /// The last lines that are no rank's.
    last: VecDeque<String>,
}

enum Word {
    Said(Stream, Said),
    /// A line of `ssh`, `srun`, or of an agent that failed.
    Other(usize, String),
    Closed(usize),
}

impl Agents {
    /// Starts an agent on every machine of a stage. The ranks begin when all of them are there.
    ///
    /// Must be called on a thread that lives as long as they do.
    pub fn start(launch: &Launch<'_>, job: &Path, ctx: &Ctx<'_>) -> Result<Self> {
        let carriers = carriers(launch, job, ctx)?;
        let (sender, words) = sync_channel(1024);
        let mut agents = Self {
            ranks: (0..launch.world_size).map(|_| Rank::default()).collect(),
            carried: Vec::new(),
            words,
            ready: vec![None; ctx.nodes],
            hosts: ctx.hosts.to_vec(),
            began: Instant::now(),
            met: false,
            killing: None,
        };
        for (at, Carrier { mut command, name, nodes }) in carriers.into_iter().enumerate() {
            let program = command.get_program().to_string_lossy().into_owned();
            let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
            let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
            let last = VecDeque::new();
            agents.carried.push(Carried {
                child,
                orders: pipes.0,
                name,
                nodes,
                closed: 0,
                ended: None,
                over: false,
                last,
            });
            let stdout = Decoder { at, stream: Stream::Stdout, sender: sender.clone(), pieces: HashMap::new() };
            let stderr = Decoder { at, stream: Stream::Stderr, sender: sender.clone(), pieces: HashMap::new() };
            read_lines(pipes.1.context("its output is a pipe")?, stdout.lines())?;
            read_lines(pipes.2.context("its errors are a pipe")?, stderr.lines())?;
        }
        Ok(agents)
    }

    fn per_node(&self) -> usize {
        self.ranks.len() / self.ready.len()
    }

    /// What a machine is called.
    fn host(&self, node: usize) -> String {
        let own = || self.ready.get(node)?.as_ref().map(|ready| ready.host.clone());
        self.hosts.get(node).cloned().or_else(own).unwrap_or_else(|| format!("node {node}"))
    }

    fn order(&mut self, order: &Order) {
        use std::io::Write as _;
        for orders in self.carried.iter_mut().filter_map(|carried| carried.orders.as_mut()) {
            // An agent that is gone is noticed by its silence.
            let _ = orders.write_all(order.line().as_bytes()).and_then(|()| orders.flush());
        }
    }

    /// When all are there, the ranks may meet.
    fn is_ready(&mut self, ready: Ready) {
        let node = ready.node;
        let Some(place) = self.ready.get_mut(node) else { return };
        *place = Some(ready);
        let (host, per_node) = (self.host(node), self.per_node());
        for rank in &mut self.ranks[node * per_node..(node + 1) * per_node] {
            rank.host = Some(host.as_str().into());
        }
        let all: Option<Vec<&Ready>> = self.ready.iter().map(Option::as_ref).collect();
        if let Some(port) = all.as_ref().and_then(|all| all[0].port).filter(|_| !self.met) {
            let address = meeting(&all.unwrap_or_default());
            self.met = true;
            self.order(&Order::Meet(address, port));
        }
    }

    /// What is to be passed on of a word.
    fn take(&mut self, word: Word) -> Option<Heard> {
        match word {
            Word::Said(stream, Said::Line { rank, text, .. }) => Some(Heard::Line(Line { rank, stream, text })),
            Word::Said(_, Said::Ended { rank, status }) => {
                let place = self.ranks.iter().filter(|rank| rank.status.is_some()).count();
                let rank = self.ranks.get_mut(rank)?;
                (rank.status, rank.place) = (Some(status), place);
                None
            }
            Word::Said(_, Said::Ready(ready)) => {
                self.is_ready(ready);
                None
            }
            Word::Said(_, Said::Node { text, .. }) => Some(Heard::Machine(text)),
            Word::Other(at, text) => {
                let carried = &mut self.carried[at];
                remember(&mut carried.last, &text);
                let who =
                    if carried.nodes.len() == 1 { self.host(self.carried[at].nodes.start) } else { "srun".into() };
                Some(Heard::Machine(format!("[{who}] {text}")))
            }
            Word::Closed(at) => {
                self.carried[at].closed += 1;
                None
            }
        }
    }

    /// What is left of ranks when what carried their agents has ended.
    fn lose(&mut self, at: usize, how: &str) {
        let (carried, per_node) = (&self.carried[at], self.per_node());
        let lines = carried.last.iter().map(|line| format!("\n  {line}")).collect::<String>();
        let lines = if lines.is_empty() { String::new() } else { format!("; its last lines:{lines}") };
        let (name, nodes) = (carried.name, carried.nodes.clone());
        for node in nodes {
            let host = self.host(node);
            let what = if self.met { format!("{host} is lost") } else { format!("no ranks began on {host}") };
            for rank in &mut self.ranks[node * per_node..(node + 1) * per_node] {
                if rank.status.is_none() {
                    rank.lost = Some(format!("{what}: {name} {how}{lines}"));
                }
            }
        }
    }
}

impl Crew for Agents {
    fn ranks(&mut self) -> &mut [Rank] {
        &mut self.ranks
    }

    fn hear(&mut self, patience: Duration) -> Result<Heard, RecvTimeoutError> {
        loop {
            let word = self.words.recv_timeout(patience)?;
            if let Some(heard) = self.take(word) {
                return Ok(heard);
            }
        }
    }

    fn poll(&mut self) -> Result<()> {
        for at in 0..self.carried.len() {
            let carried = &mut self.carried[at];
            if carried.over {
                continue;
            }
            let Some(status) = carried.child.try_wait().context("cannot wait for a worker")? else { continue };
            let ended = *carried.ended.get_or_insert_with(Instant::now);
            // What it wrote is heard before, but for what another process holds open.
            if carried.closed == 2 || ended.elapsed() > LINGER {
                carried.over = true;
                self.lose(at, &ending(status));
            }
        }
        if let Some(ready) = self.ready.iter().flatten().find(|ready| ready.protocol != PROTOCOL) {
            let protocol = ready.protocol;
            bail!("the worker program on {} speaks protocol {protocol}, this flow {PROTOCOL}", self.host(ready.node));
        }
        let absent = || (0..self.ready.len()).filter(|&node| self.ready[node].is_none());
        if self.killing.is_none() && self.began.elapsed() > PATIENCE && absent().next().is_some() {
            let hosts: Vec<String> = absent().map(|node| self.host(node)).collect();
            bail!("no worker began on {} within {} s", hosts.join(", "), PATIENCE.as_secs());
        }
        Ok(())
    }

    fn signal(&mut self, signal: i32) {
        self.ranks.iter_mut().filter(|rank| !rank.is_over()).for_each(|rank| rank.stopped = true);
        if signal != libc::SIGKILL {
            return self.order(&Order::Stop);
        }
        match self.killing {
            None => {
                self.killing = Some(Instant::now());
                self.order(&Order::Kill);
                self.carried.iter_mut().for_each(|carried| drop(carried.orders.take()));
            }
            // It had the time to say how they ended.
            Some(since) if since.elapsed() > 2 * LINGER => self.end(libc::SIGKILL),
            Some(since) if since.elapsed() > LINGER => self.end(libc::SIGTERM),
            Some(_) => {}
        }
    }

    fn kill_leftovers(&mut self) {
        // An agent ends all that its ranks left, and then itself.
        self.carried.iter_mut().for_each(|carried| drop(carried.orders.take()));
    }
}

impl Agents {
    fn end(&self, signal: i32) {
        self.carried.iter().filter(|carried| !carried.over).for_each(|carried| kill_group(&carried.child, signal));
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.order(&Order::Kill);
        self.carried.iter_mut().for_each(|carried| drop(carried.orders.take()));
        let began = Instant::now();
        let mut asked = false;
        while self.carried.iter_mut().any(|carried| matches!(carried.child.try_wait(), Ok(None))) {
            if began.elapsed() > 2 * LINGER {
                self.carried.iter().for_each(|carried| kill_group(&carried.child, libc::SIGKILL));
            } else if began.elapsed() > LINGER && !mem::replace(&mut asked, true) {
                self.carried.iter().for_each(|carried| kill_group(&carried.child, libc::SIGTERM));
            }
            // Nobody hears it, and a full pipe would keep them.
            let _ = self.words.recv_timeout(Duration::from_millis(10));
        }
    }
}

/// Makes words of the lines of a pipe.
struct Decoder {
    at: usize,
    stream: Stream,
    sender: SyncSender<Word>,
    /// Lines of which there is more to come, by rank.
    pieces: HashMap<usize, String>,
}

impl Decoder {
    fn lines(mut self) -> impl FnMut(String) -> bool + Send {
        move |line| {
            let word = match Said::parse(&line) {
                None => Word::Other(self.at, line),
                Some(Said::Line { rank, text, more }) => {
                    let whole = self.pieces.entry(rank).or_default();
                    whole.push_str(&text);
                    if more && whole.len() < LONGEST_LINE {
                        return true;
                    }
                    let text = mem::take(whole);
                    Word::Said(self.stream, Said::Line { rank, text, more: false })
                }
                Some(said) => Word::Said(self.stream, said),
            };
            self.sender.send(word).is_ok()
        }
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        let _ = self.sender.send(Word::Closed(self.at));
    }
}

/// Where the ranks of all machines reach the first: as the user says (`FLOW_RDZV`), else where who started its agent does.
/// If that is this machine by its loopback, and others are elsewhere, then where these are reached from here.
fn meeting(all: &[&Ready]) -> String {
    if let Some(place) = env::var("FLOW_RDZV").ok().filter(|place| !place.is_empty()) {
        return place.rsplit_once(':').map_or(place.as_str(), |(host, _)| host).to_owned();
    }
    let is_loopback = |address: &str| address.parse().is_ok_and(|address: IpAddr| address.is_loopback());
    let first = &all[0].address;
    let other = all.iter().find(|ready| !is_loopback(&ready.address)).filter(|_| is_loopback(first));
    let way = |other: &str| -> Option<String> {
        let other: IpAddr = other.parse().ok()?;
        let socket = UdpSocket::bind((if other.is_ipv4() { "0.0.0.0" } else { "::" }, 0)).ok()?;
        // Nothing is sent: the kernel looks the way up.
        socket.connect((other, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip().to_string())
    };
    other.and_then(|other| way(&other.address)).unwrap_or_else(|| first.clone())
}

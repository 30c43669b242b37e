//! The agent of one machine: starts the ranks that the machine has of a job, passes on what they write with their numbers,
//! and ends them together. torchrun's analogue; whoever starts one on every machine (`flow` by ssh or srun, any launcher, a
//! person) need not write an environment.

mod cpus;
mod ranks;

use std::{
    io::{self, BufRead as _},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use flow_dist::{listen, route};
use flow_plan::{
    Device, Job,
    agent::{Order, Ready, Said},
};

use crate::{PROTOCOL, nvml::Gpu, signals};
use ranks::{Ranks, Start, say};

/// So long the ranks have to save what they have when they are asked to stop.
const GRACE: Duration = Duration::from_secs(120);
/// So long the others have when one has failed.
const END: Duration = Duration::from_secs(5);
/// When one rank dies, others fail on it at once. So long the first one's death may take to be seen.
const SETTLE: Duration = Duration::from_millis(300);

const POLL: Duration = Duration::from_millis(20);

/// What an agent is told when it is started.
#[derive(Debug)]
pub struct Agent {
    /// Where the ranks meet: the first machine, and a port of it.
    meet: Option<(String, u16)>,
    /// It takes [`Order`]s on its standard input, and ends when that does.
    tied: bool,
    nodes: usize,
    node: usize,
    per_node: Option<usize>,
    job: PathBuf,
}

impl Agent {
    /// By its arguments.
    pub fn of(flags: &[&str], job: &Path) -> Result<Self> {
        let mut agent =
            Self { meet: None, tied: false, nodes: 0, node: usize::MAX, per_node: None, job: job.to_owned() };
        let mut flags = flags.iter();
        while let Some(&flag) = flags.next() {
            if flag == "--tied" {
                agent.tied = true;
                continue;
            }
            let value = *flags.next().with_context(|| format!("{flag} lacks its value"))?;
            let number = || value.parse::<usize>().with_context(|| format!("{flag} {value}: that is no number"));
            match flag {
                "--rdzv" => agent.meet = Some(place(value)?),
                "--nnodes" => agent.nodes = number()?,
                "--node-rank" => agent.node = number()?,
                "--nproc-per-node" => agent.per_node = Some(number()?),
                _ => bail!("{flag} is no option of an agent's: --rdzv, --nnodes, --node-rank, --nproc-per-node"),
            }
        }
        if agent.node == usize::MAX {
            // Slurm starts one task a machine, with the same arguments.
            let number = std::env::var("SLURM_PROCID").ok().and_then(|number| number.parse().ok());
            agent.node = number.context("--node-rank is missing: which machine this is, from 0")?;
        }
        ensure!(agent.nodes > 0, "--nnodes is missing: how many machines there are");
        ensure!(agent.node < agent.nodes, "--node-rank {} of --nnodes {}: they count from 0", agent.node, agent.nodes);
        ensure!(agent.tied || agent.meet.is_some(), "--rdzv is missing: HOST:PORT of the first machine");
        Ok(agent)
    }

    /// Does all of it; the exit status to end with.
    pub fn run(self) -> Result<i32> {
        signals::listen()?;
        let text = std::fs::read_to_string(&self.job)
            .with_context(|| format!("cannot read {}: all machines must see it under this path", self.job.display()))?;
        let job: Job = serde_json::from_str(&text).with_context(|| format!("{} is not a job", self.job.display()))?;
        let world_size = job.world_size();
        let local = self.per_node.unwrap_or(world_size / self.nodes);
        ensure!(
            local * self.nodes == world_size && local > 0,
            "the job has {world_size} ranks, and {} machines with {local} each have {}",
            self.nodes,
            local * self.nodes
        );
        let orders = self.tied.then(orders);
        let listener = (self.node == 0).then(|| self.listen()).transpose()?;
        let meet = match (&self.meet, &orders) {
            (Some(meet), None) => meet.clone(),
            (_, Some(orders)) => match self.ask(listener.as_ref(), orders)? {
                Some(meet) => meet,
                None => return Ok(0),
            },
            (None, None) => bail!("--rdzv is missing"),
        };
        let here = route::to(&meet.0)?;
        let interface = route::interface(here);
        let cpus = cpus::shares(&neighbours(&job, local), job.threads());
        self.tell(&format!(
            "{}: {local} of {world_size} ranks, {}, {}; they meet at {}:{}{}",
            host(),
            cpus::shown(&cpus),
            if job.threads() == 1 { "1 thread each".to_owned() } else { format!("{} threads each", job.threads()) },
            meet.0,
            meet.1,
            interface.as_ref().map(|name| format!(" over {name}")).unwrap_or_default()
        ));
        let start =
            Start { job: &self.job, node: self.node, local, world_size, threads: job.threads(), meet, interface };
        let mut ranks = Ranks::start(&start, &cpus, listener.as_ref())?;
        // Rank 0 has it: when that is gone, nobody is to wait at it.
        drop(listener);
        watch(&mut ranks, orders.as_ref())?;
        ranks.finish();
        if self.tied {
            // How each of them ended is said; this status is the agent's own.
            return Ok(0);
        }
        Ok(self.verdict(&ranks))
    }

    /// The socket at which rank 0 will serve the store.
    fn listen(&self) -> Result<TcpListener> {
        let (host, port) = self.meet.as_ref().map_or(("", 0), |(host, port)| (host.as_str(), *port));
        listen(host, port)
    }

    /// Says that this machine is ready, and asks where the ranks meet; nothing if they do not.
    fn ask(&self, listener: Option<&TcpListener>, orders: &Receiver<Order>) -> Result<Option<(String, u16)>> {
        let port = listener.map(|listener| listener.local_addr().map(|address| address.port())).transpose()?;
        let ready = Ready { node: self.node, host: host(), address: address(), port, protocol: PROTOCOL };
        say(&mut io::stdout(), &Said::Ready(ready));
        loop {
            match orders.recv_timeout(POLL) {
                Ok(Order::Meet(host, port)) => return Ok(Some((host, port))),
                Ok(Order::Stop | Order::Kill) | Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if signals::asked_to_stop() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn tell(&self, text: &str) {
        say(&mut io::stderr(), &Said::Node { node: self.node, text: text.to_owned() });
    }

    /// Names the rank that is to blame, and ends as it did.
    fn verdict(&self, ranks: &Ranks) -> i32 {
        let Some((number, status)) = ranks.to_blame() else { return 0 };
        let code = ranks::code(status);
        if code != crate::INTERRUPTED {
            self.tell(&format!("rank {number} was the first on {} to fail: {status}", host()));
        }
        code
    }
}

/// Until all have ended.
fn watch(ranks: &mut Ranks, orders: Option<&Receiver<Order>>) -> Result<()> {
    let (mut asked, mut ending) = (false, false);
    let mut failed: Option<Instant> = None;
    let mut kill_at: Option<Instant> = None;
    while !ranks.poll(orders.is_some())? {
        let order = orders.map(Receiver::try_recv);
        match order {
            Some(Ok(Order::Stop)) => ranks.signal(libc::SIGTERM),
            Some(Ok(Order::Kill) | Err(mpsc::TryRecvError::Disconnected)) => ranks.signal(libc::SIGKILL),
            _ => {}
        }
        let now = Instant::now();
        failed = failed.or_else(|| ranks.failed().then_some(now));
        if signals::asked_to_stop() && !asked {
            asked = true;
            ranks.signal(libc::SIGTERM);
            kill_at = Some(now + GRACE);
        } else if orders.is_none() && !ending && !asked && failed.is_some_and(|at| now > at + SETTLE) {
            ending = true;
            ranks.signal(libc::SIGTERM);
            kill_at = Some(now + if ranks.interrupted() { GRACE } else { END });
        }
        if kill_at.is_some_and(|at| now > at) {
            ranks.signal(libc::SIGKILL);
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// What comes on the standard input; the receiver is disconnected when that ends.
fn orders() -> Receiver<Order> {
    let (sender, orders) = mpsc::channel();
    thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if let Some(order) = Order::parse(&line)
                && sender.send(order).is_err()
            {
                break;
            }
        }
    });
    orders
}

/// `HOST:PORT`; an IPv6 address in brackets.
fn place(text: &str) -> Result<(String, u16)> {
    let (host, port) = text.rsplit_once(':').with_context(|| format!("--rdzv {text}: write HOST:PORT"))?;
    let port = port.parse().with_context(|| format!("--rdzv {text}: {port} is no port"))?;
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}

/// What this machine calls itself: in Slurm, as Slurm does.
fn host() -> String {
    let named = std::env::var("SLURMD_NODENAME").ok().filter(|name| !name.is_empty());
    let kernels = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    named.or_else(kernels).map_or_else(|| "?".to_owned(), |name| name.trim().to_owned())
}

/// The address under which who started this agent reaches this machine.
fn address() -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    // "client port server port"
    let ssh = || variable("SSH_CONNECTION")?.split(' ').nth(2).map(str::to_owned);
    let slurm = || route::to(&variable("SLURM_LAUNCH_NODE_IPADDR")?).ok().map(|address| address.to_string());
    slurm().or_else(ssh).unwrap_or_else(|| "127.0.0.1".to_owned())
}

/// Of each rank, which part of the machine its GPU is next to.
fn neighbours(job: &Job, local: usize) -> Vec<Option<usize>> {
    let gpu = |rank| Gpu::of(tch::Device::Cuda(rank))?.numa_node();
    (0..local).map(|rank| if job.device() == Device::Cpu { None } else { gpu(rank) }).collect()
}

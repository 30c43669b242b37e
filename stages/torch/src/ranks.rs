//! [`Ranks`]: how this process finds the others, the groups it shares with them, and what became of one that is lost.

use std::{
    env,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use flow_dist::{Group, Nccl, Reduce, Store};
use flow_plan::{Axis, Coords, Mesh, Parallel, Rank};
use tch::{Device, Tensor};

use crate::{model::params::Share, post::Post, signals};

/// Reads who this process is, under torchrun's names. Without RANK it is alone.
pub fn from_environment() -> Result<Rank> {
    let number = |name: &str, default: usize| match env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text} is not a number")),
        Err(_) => Ok(default),
    };
    let rank = Rank {
        rank: number("RANK", 0)?,
        world_size: number("WORLD_SIZE", 1)?,
        local_rank: number("LOCAL_RANK", 0)?,
        master_addr: env::var("MASTER_ADDR").unwrap_or_else(|_| "127.0.0.1".to_owned()),
        master_port: u16::try_from(number("MASTER_PORT", 29500)?).context("MASTER_PORT is not a port")?,
    };
    ensure!(rank.rank < rank.world_size, "RANK {} of WORLD_SIZE {}", rank.rank, rank.world_size);
    Ok(rank)
}

/// How long rank 0 waits for the others in the end.
const PARTING: Duration = Duration::from_secs(10);

/// How long a collective may wait for a rank: FLOW_COLLECTIVE_TIMEOUT, in seconds.
pub fn collective_timeout() -> Duration {
    seconds("FLOW_COLLECTIVE_TIMEOUT", 600)
}

/// How long a rank may give no sign of life: FLOW_PEER_TIMEOUT, in seconds.
fn peer_timeout() -> Duration {
    seconds("FLOW_PEER_TIMEOUT", 20)
}

fn seconds(name: &str, default: u64) -> Duration {
    Duration::from_secs(env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default))
}

/// All ranks of a run, from the place of one of them. Groups of one rank cost nothing.
#[derive(Debug)]
pub struct Ranks {
    /// From 0.
    pub rank: usize,
    /// Where it sits in the mesh.
    pub coords: Coords,
    /// Everyone; for small tensors of the host.
    pub world: Group,
    /// Those that share the batch and each sequence: gradients are summed over them.
    pub data: Group,
    /// Those that share each sequence.
    pub context: Group,
    /// Those that share each layer.
    pub tensor: Group,
    /// Those that share the layers, once for each direction: what goes forward must not wait for what comes back.
    pub forward: Group,
    /// As `forward`.
    pub backward: Group,
    /// The first and the last of a pipeline.
    pub ends: Group,
    /// What moves the tensors of GPUs; `None` is through the host's memory.
    pub nccl: Option<Nccl>,
    meeting: Option<Meeting>,
}

/// The store, when there is someone to meet.
#[derive(Clone, Debug)]
struct Meeting {
    store: Arc<Store>,
    me: Rank,
}

impl Ranks {
    /// Meets the others of a mesh, whose tensors are on `device`. From then on a lost rank is noticed: see
    /// [`Ranks::explain`].
    pub fn meet(me: &Rank, parallel: &Parallel, device: Device) -> Result<Self> {
        let mesh = Mesh::new(parallel);
        ensure!(
            mesh.world_size() == me.world_size,
            "WORLD_SIZE is {}, and the mesh has {} ranks (tensor {} × pipeline {} × context {} × data {})",
            me.world_size,
            mesh.world_size(),
            parallel.tensor,
            parallel.pipeline,
            parallel.context,
            parallel.data
        );
        let timeout = collective_timeout();
        let meeting = if me.world_size > 1 {
            let store = Store::open(&me.master_addr, me.master_port, me.rank == 0, me.world_size, timeout)?;
            let meeting = Meeting { store: Arc::new(store), me: me.clone() };
            meeting.watch()?;
            Some(meeting)
        } else {
            None
        };
        let nccl = (me.world_size > 1 && device.is_cuda()).then(Nccl::load).and_then(|nccl| match nccl {
            Ok(nccl) => Some(nccl),
            Err(why) => {
                eprintln!("ranks on GPUs talk through the host's memory (Gloo), which is right and slow: {why:#}");
                None
            }
        });
        let open = |name: &str, ranks: &[usize], nccl: Option<&Nccl>| {
            let Some(Meeting { store, .. }) = &meeting else { return Ok(Group::solo()) };
            let place = ranks.iter().position(|rank| *rank == me.rank).context("a rank is in its own group")?;
            let name = format!("{name}/{}", ranks[0]);
            match nccl {
                Some(nccl) => Group::open_nccl(store, nccl, &name, place, ranks.len(), timeout),
                None => Group::open(store, &me.master_addr, &name, place, ranks.len(), timeout),
            }
        };
        let group = |name: &str, axes: &[Axis]| open(name, &mesh.group_of(axes, me.rank), nccl.as_ref());
        let ends = mesh.embedding_groups().into_iter().find(|group| group.contains(&me.rank));
        Ok(Self {
            rank: me.rank,
            coords: mesh.coords(me.rank),
            world: open("world", &(0..me.world_size).collect::<Vec<_>>(), None)?,
            data: group("data", &[Axis::Data, Axis::Context])?,
            context: group("context", &[Axis::Context])?,
            tensor: group("tensor", &[Axis::Tensor])?,
            forward: group("forward", &[Axis::Pipeline])?,
            backward: group("backward", &[Axis::Pipeline])?,
            ends: ends.map_or_else(|| Ok(Group::solo()), |ranks| open("ends", &ranks, nccl.as_ref()))?,
            nccl,
            meeting,
        })
    }

    /// The share of the model that this rank holds.
    pub fn share(&self) -> Share {
        Share {
            tensor: (self.tensor.rank(), self.tensor.size()),
            pipeline: (self.forward.rank(), self.forward.size()),
            align: self.data.size(),
        }
    }

    /// Whether any rank was asked to stop. All ask together.
    pub fn anyone_asked_to_stop(&self) -> Result<bool> {
        let stop = Tensor::from(if signals::asked_to_stop() { 1.0 } else { 0.0f64 });
        self.world.all_reduce(&stop, Reduce::Max)?;
        Ok(stop.double_value(&[]) > 0.0)
    }

    /// A way to pass bytes between the ranks, for any thread.
    pub fn post(&self) -> Post {
        let store = self.meeting.as_ref().map(|meeting| Arc::clone(&meeting.store));
        Post::new(self.rank, self.world.size(), store)
    }

    /// Parts in peace: rank 0, who serves the store, waits a little for the others. By then the result is there, so that
    /// one who does not come any more spoils nothing.
    pub fn leave(&self) {
        let Some(Meeting { store, me }) = &self.meeting else { return };
        let _ = store.set(&format!("left/{}", me.rank), b"");
        if me.rank == 0 {
            let _ = (1..me.world_size).try_for_each(|rank| store.get(&format!("left/{rank}"), PARTING).map(drop));
        }
    }

    /// Tells the others why this rank gives up, and says what is known of the reason: another rank that failed before,
    /// or one that gives no sign of life.
    pub fn explain(&self, error: &str) -> Option<String> {
        let Meeting { store, me } = self.meeting.as_ref()?;
        let Ok(number) = store.add("failures", 1) else {
            return (me.rank != 0).then(|| "rank 0, which holds the store, is gone".to_owned());
        };
        let reason = if number > 1 {
            let first = store.get("failure/1", Duration::from_secs(5)).ok()?;
            Some(format!("first failed {}", String::from_utf8_lossy(&first)))
        } else {
            silent(store, me)
        };
        let text = reason.as_deref().unwrap_or(error);
        let _ = store.set(&format!("failure/{number}"), format!("rank {}: {text}", me.rank).as_bytes());
        reason
    }
}

impl Meeting {
    /// Starts the thread that shows this rank's sign of life, and looks for the others'.
    fn watch(&self) -> Result<()> {
        let me = self.me.clone();
        // A connection of its own: the other one may be waiting for something.
        let store = Store::open(&me.master_addr, me.master_port, false, me.world_size, collective_timeout())?;
        thread::Builder::new().name("watch".into()).spawn(move || {
            let patience = peer_timeout();
            let mut seen = vec![(0, Instant::now()); me.world_size];
            loop {
                match look(&store, &me, &mut seen) {
                    // Without the store, rank 0 is gone: the collectives say so. One that does not is ended here.
                    Err(_) => thread::sleep(patience),
                    Ok(()) => thread::sleep(Duration::from_secs(1)),
                }
                if let Some(rank) = seen.iter().position(|(_, last)| last.elapsed() > patience) {
                    let seconds = patience.as_secs();
                    eprintln!("rank {}: rank {rank} has given no sign of life for {seconds} s; giving up", me.rank);
                    crate::leave_process(1);
                }
            }
        })?;
        Ok(())
    }
}

fn beat(rank: usize) -> String {
    format!("beat/{rank}")
}

/// Counts this rank's beat up and notes whose has moved.
fn look(store: &Store, me: &Rank, seen: &mut [(i64, Instant)]) -> Result<()> {
    store.add(&beat(me.rank), 1)?;
    for (rank, (count, last)) in seen.iter_mut().enumerate() {
        let now = store.add(&beat(rank), 0)?;
        // Before its first beat a rank is loading libraries.
        if now != *count || now == 0 || store.has(&format!("left/{rank}"))? {
            (*count, *last) = (now, Instant::now());
        }
    }
    Ok(())
}

/// Which ranks' beat stands still.
fn silent(store: &Store, me: &Rank) -> Option<String> {
    let beats = || (0..me.world_size).map(|rank| store.add(&beat(rank), 0)).collect::<Result<Vec<_>>>().ok();
    let before = beats()?;
    thread::sleep(Duration::from_millis(2500));
    let after = beats()?;
    let silent: Vec<String> = (0..me.world_size)
        .filter(|&rank| rank != me.rank && before[rank] == after[rank])
        .map(|rank| rank.to_string())
        .collect();
    match silent.len() {
        0 => None,
        1 => Some(format!("rank {} gives no sign of life: it was killed, or its machine is lost", silent[0])),
        _ => Some(format!("ranks {} give no sign of life", silent.join(", "))),
    }
}

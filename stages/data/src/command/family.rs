//! All that a shell has started and that still runs, also what made a group or a session of its own: `timeout`, `setsid`,
//! launchers of ranks, daemons.
//!
//! A process is of the family if it is in the shell's group, if its environment has the shell's [`Mark`], or if its parent
//! is of the family; and it stays so. Who left the group, cleaned its environment and lost its parent before anybody looked
//! is not found.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use flow_core::Digest;

/// The variable that tells a shell's family from all others.
pub const VARIABLE: &str = "FLOW_COMMAND_MARK";

/// What the environment of one shell has, and of no other that runs at the same time.
#[derive(Clone, Debug)]
pub struct Mark(String);

impl Mark {
    /// Of the shell that works in this directory: a key's own, in which one works at a time. It is the same in each run
    /// of the key, so that who keeps its environment gives the same bytes.
    pub fn of(scratch: &Path) -> Self {
        let mut digits = Digest::of(scratch.as_os_str().as_encoded_bytes()).to_string();
        digits.truncate(24);
        Self(digits)
    }

    /// As text: letters and digits.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// The value of the [`VARIABLE`]. A flow in a command of a flow is of that one's family too.
    pub fn value(&self) -> String {
        match std::env::var(VARIABLE) {
            Ok(outer) => format!("{outer}:{}", self.0),
            Err(_) => self.0.clone(),
        }
    }
}

/// What a shell has started.
#[derive(Debug)]
pub struct Family {
    shell: i32,
    /// When the shell began: what has its mark and is older is what an earlier run of the key left, as a daemon.
    began: u64,
    mark: Mark,
    /// Who was found, and when each began: a number is given again.
    found: HashMap<i32, u64>,
}

impl Family {
    /// Of the shell of this number.
    pub fn new(shell: i32, mark: Mark) -> Self {
        Self { shell, began: look(shell).map_or(0, |shell| shell.began), mark, found: HashMap::new() }
    }

    /// The mark of all of it.
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    /// When the shell began, in the kernel's ticks.
    pub fn began(&self) -> u64 {
        self.began
    }

    /// All who run now, without the shell. This looks at every process of the machine.
    pub fn look(&mut self) -> Vec<i32> {
        let now = Snapshot::now();
        let of = |ids: Option<&Vec<i32>>| ids.cloned().unwrap_or_default();
        let began = |id: &i32| now.all.get(id).map_or(0, |one| one.began);
        let mut open = of(now.groups.get(&self.shell));
        open.extend(of(now.marked.get(&self.mark.0)).into_iter().filter(|id| began(id) >= self.began));
        open.extend(self.found.iter().filter(|&(id, found)| began(id) == *found).map(|(id, _)| *id));
        open.push(self.shell);
        self.found.clear();
        let mut seen = HashSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            if let Some(one) = now.all.get(&id).filter(|one| !one.ended && id != self.shell) {
                self.found.insert(id, one.began);
            }
            open.extend(of(now.children.get(&id)));
        }
        self.found.keys().copied().collect()
    }
}

/// All processes of the machine, as they were at one time. Where hundreds of shells are asked to end at once, all look
/// at the same one.
#[derive(Default)]
struct Snapshot {
    all: HashMap<i32, Seen>,
    children: HashMap<i32, Vec<i32>>,
    groups: HashMap<i32, Vec<i32>>,
    /// By each mark that they have.
    marked: HashMap<String, Vec<i32>>,
}

/// What a look at one process shows.
pub struct Seen {
    pub parent: i32,
    group: i32,
    pub began: u64,
    pub ended: bool,
    /// It has ended or is about to: its files may be closed already, and its children not yet another's.
    pub ends: bool,
}

/// When the last one was begun, and what it shows.
static LAST: Mutex<Option<(Instant, Arc<Snapshot>)>> = Mutex::new(None);

impl Snapshot {
    /// One that was begun after this was asked: by whoever waited for it first.
    fn now() -> Arc<Self> {
        let asked = Instant::now();
        let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, fresh)) = last.as_ref().filter(|(began, _)| *began >= asked) {
            return Arc::clone(fresh);
        }
        let began = Instant::now();
        let taken = Arc::new(Self::take());
        *last = Some((began, Arc::clone(&taken)));
        taken
    }

    fn take() -> Self {
        let mut taken = Self::default();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some(one) = look(id) else { continue };
            taken.children.entry(one.parent).or_default().push(id);
            taken.groups.entry(one.group).or_default().push(id);
            for mark in marks(id) {
                taken.marked.entry(mark).or_default().push(id);
            }
            taken.all.insert(id, one);
        }
        taken
    }
}

/// What [`Seen::began`] of a process that begins now is at least.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours to fill; the other call takes a number.
    let ticks = unsafe {
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time);
        libc::sysconf(libc::_SC_CLK_TCK).max(1)
    };
    (time.tv_sec * ticks + time.tv_nsec * ticks / 1_000_000_000).try_into().unwrap_or(0)
}

/// The kernel's flag of who is about to end.
const PF_EXITING: u64 = 4;

/// Looks at the process of this number.
pub fn look(id: i32) -> Option<Seen> {
    let stat = fs::read(format!("/proc/{id}/stat")).ok()?;
    // The program's name is in brackets, and may be anything.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields: Vec<&str> = str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace().collect();
    let number = |nth: usize| fields.get(nth)?.parse::<u64>().ok();
    let process = |nth: usize| i32::try_from(number(nth)?).ok();
    let ended = matches!(*fields.first()?, "Z" | "X");
    let ends = ended || number(6)? & PF_EXITING != 0;
    Some(Seen { parent: process(1)?, group: process(2)?, began: number(19)?, ended, ends })
}

/// The marks in a process's environment.
fn marks(id: i32) -> Vec<String> {
    let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
    let values = environment.split(|byte| *byte == 0).filter_map(|one| str::from_utf8(one).ok()?.split_once('='));
    let values = values.filter(|(name, _)| *name == VARIABLE);
    values.flat_map(|(_, value)| value.split(':').map(str::to_owned)).collect()
}

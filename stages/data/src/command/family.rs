//! All that a shell has started and that still runs, also what made a group or a session of its own: `timeout`, `setsid`,
//! launchers of ranks, daemons.
//!
//! A process is of the family if it is in the shell's group, if its environment has the shell's [`Mark`], or if its parent
//! is of the family; and it stays so. Who left the group, cleaned its environment and lost its parent before anybody looked
//! is not found.

use std::{
    collections::HashMap,
    fs,
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

/// The variable that tells a shell's family from all others.
pub const VARIABLE: &str = "FLOW_COMMAND_MARK";

/// What the environment of one shell has, and of no other.
#[derive(Clone, Debug)]
pub struct Mark(String);

impl Mark {
    /// One that nobody has.
    pub fn new() -> Self {
        static OURS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self(format!("{:016x}{:08x}", *OURS, COUNT.fetch_add(1, Ordering::Relaxed)))
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
    mark: Mark,
    /// Who was found, and when each began: a number is given again.
    found: HashMap<i32, u64>,
}

/// What a look at one process shows.
struct Seen {
    parent: i32,
    group: i32,
    began: u64,
    ended: bool,
}

impl Family {
    /// Of the shell of this number.
    pub fn new(shell: i32, mark: Mark) -> Self {
        Self { shell, mark, found: HashMap::new() }
    }

    /// All who run now, without the shell. This looks at every process of the machine.
    pub fn look(&mut self) -> Vec<i32> {
        let (mut seen, mut children) = (HashMap::new(), HashMap::<i32, Vec<i32>>::new());
        let mut open = vec![self.shell];
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let Some(one) = look(id) else { continue };
            if one.group == self.shell || self.found.get(&id) == Some(&one.began) || has(id, &self.mark) {
                open.push(id);
            }
            children.entry(one.parent).or_default().push(id);
            seen.insert(id, one);
        }
        self.found.clear();
        while let Some(id) = open.pop() {
            // Each once.
            if let Some(one) = seen.remove(&id).filter(|one| !one.ended && id != self.shell) {
                self.found.insert(id, one.began);
            }
            open.extend(children.remove(&id).unwrap_or_default());
        }
        self.found.keys().copied().collect()
    }
}

fn look(id: i32) -> Option<Seen> {
    let stat = fs::read(format!("/proc/{id}/stat")).ok()?;
    // The program's name is in brackets, and may be anything.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields: Vec<&str> = str::from_utf8(&stat[after..]).ok()?.split_ascii_whitespace().collect();
    let number = |nth: usize| fields.get(nth)?.parse::<u64>().ok();
    let process = |nth: usize| i32::try_from(number(nth)?).ok();
    let ended = matches!(*fields.first()?, "Z" | "X");
    Some(Seen { parent: process(1)?, group: process(2)?, began: number(19)?, ended })
}

fn has(id: i32, mark: &Mark) -> bool {
    let environment = fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
    environment.windows(mark.0.len()).any(|part| part == mark.0.as_bytes())
}

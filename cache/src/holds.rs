//! [`Holds`]: what running flows use, so that [`crate::Cache::gc`] leaves it alone.
//!
//! Two kinds of `flock` in `locks/`. The *gate* is one file: who looks results up holds it shared, gc takes it
//! exclusively, so nothing that was just found can vanish. A flow that has begun to run a stage may run for days and
//! must not keep the gate: it writes what it uses to a *list* of its own, which it keeps locked for as long as it
//! lives, and from then on holds the gate only during each look-up. A flow in which everything is a hit, the case
//! that must be fast, writes nothing.

use std::{
    collections::HashSet,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    fault::fault,
    files::{create_new, fresh, list},
    lock::try_exclusive,
};

/// A key, or the digest of a tree that a view shows.
pub(crate) type Held = [u8; 32];

/// Asked again and again while gc is waited for, with how long that is; an error ends the wait.
pub(crate) struct Ask(pub Box<dyn Fn(Duration) -> Result<()> + Send + Sync>);

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ask")
    }
}

/// Between two looks at a gate that is closed.
const LOOK: Duration = Duration::from_millis(20);

const GATE: &str = "gate";
const LIST: &str = "list";

/// This process's part.
#[derive(Debug)]
pub(crate) struct Holds {
    dir: PathBuf,
    /// Who hears that gc is waited for, and may end that.
    pub while_waiting: OnceLock<Ask>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    gate: Option<File>,
    locked: bool,
    inside: usize,
    held: HashSet<Held>,
    list: Option<List>,
}

/// The published list; removed when the process ends well, and by the next gc when it did not.
#[derive(Debug)]
struct List {
    path: PathBuf,
    file: File,
}

impl Drop for List {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// While it lives, gc does not run.
#[derive(Debug)]
pub(crate) struct Inside<'a>(&'a Holds);

impl Holds {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, while_waiting: OnceLock::new(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is one step, so a panic elsewhere did not leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps gc out; waits while it runs. On a cache that may only be read by this user it does nothing: whoever may
    /// write there is asked to mind its readers.
    ///
    /// # Errors
    /// Whoever is asked while it waits does not want to wait any longer.
    pub fn enter(&self) -> Result<Inside<'_>> {
        let mut state = self.state();
        if !state.locked {
            if state.gate.is_none() {
                state.gate = open_gate(&self.dir).ok();
            }
            if let Some(gate) = &state.gate {
                state.locked = self.pass(gate)?;
            }
        }
        state.inside += 1;
        Ok(Inside(self))
    }

    /// Takes the gate, shared. Whether it can be taken.
    fn pass(&self, gate: &File) -> Result<bool> {
        let began = Instant::now();
        loop {
            match flock(gate, FlockOperation::NonBlockingLockShared) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) => {}
                Err(Errno::INTR) => continue,
                Err(_) => return Ok(false),
            }
            if let Some(ask) = self.while_waiting.get() {
                (ask.0)(began.elapsed())?;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Where this process's list is, if it is published.
    pub fn list_path(&self) -> Option<PathBuf> {
        self.state().list.as_ref().map(|list| list.path.clone())
    }

    /// Lets the gate go if this process keeps it.
    pub fn let_go(&self) -> io::Result<()> {
        let locked = self.state().locked;
        if locked { self.publish() } else { Ok(()) }
    }

    /// Called before something long: writes the list and lets the gate go.
    pub fn publish(&self) -> io::Result<()> {
        let mut state = self.state();
        if state.list.is_some() {
            return Ok(());
        }
        // Locked before anybody could take it for a dead process's: gc is kept out by the gate, which is taken here
        // if nothing was looked up yet.
        if !state.locked {
            let gate = open_gate(&self.dir)?;
            self.pass(&gate).map_err(io::Error::other)?;
            (state.gate, state.locked) = (Some(gate), true);
        }
        let (path, file) = fresh(&self.dir, |path| create_new(&path.with_extension(LIST), 0o644))?;
        let mut list = List { path: path.with_extension(LIST), file };
        retry(|| flock(&list.file, FlockOperation::LockExclusive))?;
        let bytes: Vec<u8> = state.held.iter().flatten().copied().collect();
        list.file.write_all(&bytes)?;
        state.list = Some(list);
        state.leave();
        Ok(())
    }
}

impl State {
    fn leave(&mut self) {
        if self.inside == 0
            && self.list.is_some()
            && let Some(gate) = &self.gate
        {
            let _ = flock(gate, FlockOperation::Unlock);
            self.locked = false;
        }
    }
}

impl Inside<'_> {
    /// From now on this process uses `held`.
    pub fn hold(&self, held: Held) -> io::Result<()> {
        let mut state = self.0.state();
        if state.held.insert(held)
            && let Some(list) = &mut state.list
            && let Err(e) = fault("hold:note").and_then(|()| list.file.write_all(&held))
        {
            state.held.remove(&held);
            return Err(e);
        }
        Ok(())
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.inside -= 1;
        state.leave();
    }
}

/// Everything that living processes hold, with the gate closed while it lives.
#[derive(Debug)]
pub(crate) struct Closed {
    _gate: File,
    pub held: HashSet<Held>,
}

impl Closed {
    /// Closes the gate and collects what is held. `None` when flows kept it open for all of `patience`. Lists of dead
    /// processes are removed if `tidy`; what stands on the list `own` does not count.
    pub fn new(dir: &Path, patience: Duration, tidy: bool, own: Option<&Path>) -> io::Result<Option<Self>> {
        let gate = open_gate(dir)?;
        let began = Instant::now();
        while !try_exclusive(&gate)? {
            if began.elapsed() >= patience {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut held = HashSet::new();
        for path in list(dir).map_err(io::Error::other)? {
            if path.extension().is_none_or(|extension| extension != LIST) || own == Some(&path) {
                continue;
            }
            if try_exclusive(&File::open(&path)?)? {
                if tidy {
                    fs::remove_file(&path)?;
                }
            } else {
                held.extend(fs::read(&path)?.chunks_exact(32).map(|chunk| <Held>::try_from(chunk).unwrap_or_default()));
            }
        }
        Ok(Some(Self { _gate: gate, held }))
    }
}

fn open_gate(dir: &Path) -> io::Result<File> {
    let path = dir.join(GATE);
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).or_else(|_| File::open(&path))
}

fn retry(mut call: impl FnMut() -> rustix::io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(dir: &Path) -> Option<HashSet<Held>> {
        Closed::new(dir, Duration::ZERO, true, None).unwrap().map(|closed| closed.held)
    }

    #[test]
    fn gc_waits_for_who_looks_and_sees_what_who_runs_uses() {
        let dir = tempfile::tempdir().unwrap();
        let holds = Holds::new(dir.path().to_owned());
        assert_eq!(close(dir.path()), Some(HashSet::new()));
        holds.enter().unwrap().hold([1; 32]).unwrap();
        assert_eq!(close(dir.path()), None, "found, and not yet written down");
        holds.publish().unwrap();
        assert_eq!(close(dir.path()), Some(HashSet::from([[1; 32]])));
        let inside = holds.enter().unwrap();
        inside.hold([2; 32]).unwrap();
        inside.hold([2; 32]).unwrap();
        assert_eq!(close(dir.path()), None);
        drop(inside);
        assert_eq!(close(dir.path()), Some(HashSet::from([[1; 32], [2; 32]])));
        assert_eq!(list(dir.path()).unwrap().len(), 2);
        drop(holds);
        assert_eq!(close(dir.path()), Some(HashSet::new()));
        assert_eq!(list(dir.path()).unwrap().len(), 1, "its list is gone");
    }

    #[test]
    fn lists_of_the_dead_hold_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x.list"), [3; 32]).unwrap();
        assert_eq!(Closed::new(dir.path(), Duration::ZERO, false, None).unwrap().unwrap().held, HashSet::new());
        assert!(dir.path().join("x.list").exists());
        assert_eq!(close(dir.path()), Some(HashSet::new()));
        assert!(!dir.path().join("x.list").exists());
    }
}

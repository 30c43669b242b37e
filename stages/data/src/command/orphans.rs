//! The guards of flows that are gone, for as long as they are at it.
//!
//! The mark of a key's commands is the same in each run of the key: to the guard of a flow that was killed, the commands of
//! the next one would look like what it has to end. So each guard is written down in the cache, and nobody begins a
//! command while one of them is at work.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime},
};

use flow_core::{Cancel, Cancelled, Ctx};

use super::family;

/// A guard is done in no time. One that hangs, because it was stopped or its disk was, may not hold up everybody for ever.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Where the guards of this key's cache are written down: beside the scratch directories of all keys.
pub fn directory(scratch: &Path) -> PathBuf {
    scratch.with_file_name("guards")
}

/// Waits until no guard of a flow that is gone is at work. Whether one was.
///
/// # Errors
/// [`Cancelled`]
pub fn wait(ctx: &Ctx<'_>) -> Result<bool, Cancelled> {
    wait_in(&directory(ctx.scratch), PATIENCE, ctx.cancel)
}

fn wait_in(directory: &Path, patience: Duration, cancel: &Cancel) -> Result<bool, Cancelled> {
    let asked = Instant::now();
    let mut waited = false;
    loop {
        let orphans: Vec<PathBuf> = written_down(directory).filter(|path| is_orphan(path) == Some(true)).collect();
        if orphans.is_empty() {
            return Ok(waited);
        }
        if asked.elapsed() > patience {
            // Nor is it waited for again.
            orphans.iter().for_each(|path| drop(fs::remove_file(path)));
            return Ok(true);
        }
        if cancel.is_set() {
            return Err(Cancelled);
        }
        waited = true;
        thread::sleep(PAUSE);
    }
}

fn written_down(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether a guard runs and its flow does not: who loses its parent gets another, some time after a dying flow has let its
/// locks go. Nothing if it is not on this machine.
fn is_orphan(path: &Path) -> Option<bool> {
    let text = fs::read_to_string(path).ok()?;
    let mut numbers = text.split_ascii_whitespace();
    let guard = family::look(numbers.next()?.parse().ok()?)?;
    let (began, flow): (u64, i32) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    let lost = || guard.parent != flow || family::look(flow).is_none_or(|flow| flow.ends);
    Some(!guard.ended && guard.began == began && lost())
}

/// The file of one guard. It is locked as long as somebody has it open: a guard that was killed leaves one that is not.
#[derive(Debug)]
pub struct Note {
    /// Where it is; the guard removes it when it is done.
    pub path: PathBuf,
    /// For the guard to have open.
    pub file: File,
}

impl Note {
    /// An empty one. What dead guards have left is removed.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for path in written_down(directory) {
            if OpenOptions::new().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
                let _ = fs::remove_file(path);
            }
        }
        loop {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
            let path = directory.join(format!("{}-{now}", std::process::id()));
            let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            // Until it is locked, another flow may take it for a dead one's. Not all file systems have locks.
            if !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && path.exists() {
                return Ok(Self { path, file });
            }
        }
    }

    /// Says who the guard is.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, guard: u32) -> io::Result<()> {
        let began = family::look(guard as i32).map_or(0, |guard| guard.began);
        self.file.write_all(format!("{guard} {began} {}\n", std::process::id()).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_hangs_is_not_waited_for_for_ever_and_who_has_ended_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let guards = dir.path().join("guards");
        let wait = || wait_in(&guards, Duration::from_millis(50), &Cancel::default()).unwrap();
        assert!(!wait());
        let mut note = Note::new(&guards).unwrap();
        let (path, file) = (note.path.clone(), note.file.try_clone().unwrap());
        let mut guard = Command::new("sleep").arg("100").stdout(Stdio::from(file)).spawn().unwrap();
        note.write(guard.id()).unwrap();
        drop(note);
        // Its flow lives, and its file is nobody else's to remove.
        assert!(!wait());
        let other = Note::new(&guards).unwrap();
        assert!(path.exists() && other.path.exists());
        // As if it were another's child, whose end it has outlived.
        let text = fs::read_to_string(&path).unwrap();
        let orphan = text.replace(&format!(" {}\n", std::process::id()), " 0\n");
        fs::write(&path, &orphan).unwrap();
        assert!(wait());
        assert!(!path.exists() && !wait());
        // Ended, but nobody has waited for it; and a number that is another's by now.
        fs::write(&path, orphan.replacen(' ', " 1", 1)).unwrap();
        assert!(!wait());
        fs::write(&path, &orphan).unwrap();
        guard.kill().unwrap();
        while is_orphan(&path) == Some(true) {
            thread::sleep(PAUSE);
        }
        assert!(!wait());
        guard.wait().unwrap();
        drop(Note::new(&guards).unwrap());
        assert!(!path.exists(), "what a dead one left");
    }
}

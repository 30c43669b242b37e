//! [`Breaker`]: who does not answer is not asked again for a while, by no flow on this cache.

use std::{
    fs,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

/// The while.
pub(crate) const REST: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Breaker {
    /// There, and younger than [`REST`], while the remote is left alone; holds why.
    file: PathBuf,
    tripped: AtomicBool,
    /// What an earlier flow found.
    before: OnceLock<bool>,
}

impl Breaker {
    pub fn new(file: PathBuf) -> Self {
        Self { file, tripped: AtomicBool::new(false), before: OnceLock::new() }
    }

    /// Whether the remote may be asked. `say` hears once why not, if an earlier flow found out.
    pub fn closed(&self, say: impl FnOnce(&str)) -> bool {
        if self.has_tripped() {
            return false;
        }
        let rests = *self.before.get_or_init(|| {
            let age = fs::metadata(&self.file).and_then(|meta| meta.modified()).ok();
            // A file of the future was written by a wrong clock, and is none.
            let age = age.and_then(|time| SystemTime::now().duration_since(time).ok());
            let rests = age.is_some_and(|age| age < REST);
            if rests {
                say(fs::read_to_string(&self.file).unwrap_or_default().trim());
            }
            rests
        });
        !rests
    }

    /// Whether this process found out that it does not answer.
    pub fn has_tripped(&self) -> bool {
        self.tripped.load(Ordering::Relaxed)
    }

    /// Notes that it answers: the next flow asks it again.
    pub fn mend(&self) {
        if !self.has_tripped() {
            let _ = fs::remove_file(&self.file);
        }
    }

    /// Notes that it does not answer. Whether that is news.
    pub fn trip(&self, why: &str) -> bool {
        if self.tripped.swap(true, Ordering::Relaxed) {
            return false;
        }
        // In a cache that may only be read, the next flow finds out itself.
        if let Some(dir) = self.file.parent() {
            let _ = fs::create_dir_all(dir);
        }
        let _ = fs::write(&self.file, why);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_left_alone_for_a_while_by_others_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/down");
        let breaker = Breaker::new(file.clone());
        assert!(breaker.closed(|_| panic!("nothing was said yet")));
        assert!(breaker.trip("no route") && !breaker.trip("no route"));
        assert!(!breaker.closed(|_| panic!("it was said")));
        let mut said = String::new();
        assert!(!Breaker::new(file.clone()).closed(|why| why.clone_into(&mut said)));
        assert_eq!(said, "no route");
        let mended = Breaker::new(file.clone());
        mended.mend();
        assert!(Breaker::new(file.clone()).closed(|_| ()), "it has answered since");
        assert!(mended.trip("gone again"));
        mended.mend();
        assert!(!Breaker::new(file.clone()).closed(|_| ()), "what it said before that is old");
        for (back, forth) in [(REST, Duration::ZERO), (Duration::ZERO, Duration::from_secs(1000))] {
            let time = SystemTime::now() - back + forth;
            fs::File::options().write(true).open(&file).unwrap().set_modified(time).unwrap();
            assert!(Breaker::new(file.clone()).closed(|_| ()), "an hour of the past or of the future is no minute");
        }
    }
}

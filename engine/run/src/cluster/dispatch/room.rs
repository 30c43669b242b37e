//! [`Room`]: when a scheduler may be given jobs, and how many at a time, learned from what it refuses. Sites limit how many a user
//! may have waiting, and take all of an array or nothing of it; and controllers are away for minutes.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// The first wait before a scheduler that was away is tried again; it doubles, up to [`LONGEST`].
pub const AGAIN: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(120);
/// So long one that is full is left alone.
const FULL: Duration = Duration::from_secs(10);

/// What is known of each executor.
#[derive(Debug, Default)]
pub struct Room(HashMap<String, State>);

#[derive(Debug)]
struct State {
    /// So many tasks a batch may have.
    most: usize,
    /// In this turn it had no room for more: it is not tried with more.
    full: bool,
    /// Until then it is left alone.
    until: Option<Instant>,
    /// How often in a row it was away.
    away: u32,
    /// It was said that it has little room.
    told: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { most: usize::MAX, full: false, until: None, away: 0, told: false }
    }
}

/// What follows from a refusal.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// When it may be tried again; nothing if it may be at once, with fewer.
    pub until: Option<Instant>,
    /// It is worth saying.
    pub is_news: bool,
}

impl Room {
    fn of(&mut self, executor: &str) -> &mut State {
        if !self.0.contains_key(executor) {
            self.0.insert(executor.to_owned(), State::default());
        }
        self.0.get_mut(executor).expect("it was just made")
    }

    /// Until when an executor is to be left alone; if it is not, a new turn begins.
    pub fn closed(&mut self, executor: &str, now: Instant) -> Option<Instant> {
        let state = self.of(executor);
        let until = state.until.filter(|until| *until > now);
        if until.is_none() {
            state.full = false;
        }
        until
    }

    /// How many tasks may be tried, of at most `limit`.
    pub fn most(&self, executor: &str, limit: usize) -> usize {
        self.0.get(executor).map_or(limit, |state| limit.min(state.most))
    }

    /// A batch of so many was taken: there may be room for more.
    pub fn took(&mut self, executor: &str, count: usize) {
        let state = self.of(executor);
        state.away = 0;
        if !state.full && count >= state.most {
            state.most = state.most.saturating_mul(2);
        }
    }

    /// There was no room for so many: half of it is tried next, and of one nothing less.
    pub fn lacked(&mut self, executor: &str, count: usize, now: Instant) -> Refusal {
        let state = self.of(executor);
        (state.most, state.full) = ((count / 2).max(1), true);
        state.until = (count == 1).then(|| now + FULL);
        Refusal { until: state.until, is_news: !std::mem::replace(&mut state.told, true) }
    }

    /// It was away.
    pub fn away(&mut self, executor: &str, now: Instant) -> Refusal {
        let state = self.of(executor);
        let wait = AGAIN.saturating_mul(1 << state.away.min(8)).min(LONGEST);
        state.until = Some(now + wait);
        state.away += 1;
        Refusal { until: state.until, is_news: state.away == 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_there_is_room_for_and_says_so_once() {
        let (mut room, mut now) = (Room::default(), Instant::now());
        assert_eq!(room.most("slurm", 500), 500);
        // 500 wait, and the site lets a user have 60, all of which are done when it is asked again.
        let (mut waiting, mut asked, mut told, mut turns) = (500, 0, 0, 0);
        while waiting > 0 {
            assert_eq!(room.closed("slurm", now), None);
            let (mut free, mut until) = (60, None);
            turns += 1;
            while waiting > 0 && until.is_none() {
                asked += 1;
                let count = room.most("slurm", 500).min(waiting);
                if count <= free {
                    room.took("slurm", count);
                    (waiting, free) = (waiting - count, free - count);
                } else {
                    let refusal = room.lacked("slurm", count, now);
                    told += usize::from(refusal.is_news);
                    until = refusal.until;
                }
            }
            if let Some(until) = until {
                assert_eq!(room.closed("slurm", now), Some(until));
                now = until;
            }
        }
        assert_eq!((turns, told), (9, 1), "each turn fills it");
        assert!(asked < 140, "{asked} questions for 500 jobs, of which 60 may wait");
        assert_eq!(room.most("other", 7), 7);
    }

    #[test]
    fn one_that_is_away_is_asked_less_and_less_often() {
        let (mut room, now) = (Room::default(), Instant::now());
        let waits: Vec<u64> = (0..7).map(|_| (room.away("x", now).until.unwrap() - now).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 120, 120]);
        assert!(!room.away("x", now).is_news);
        room.took("x", 1);
        assert!(room.away("x", now).is_news, "it was there in between");
    }
}

//! [`Room`]: how many jobs a scheduler takes at a time, learned from what it refuses. Sites limit how many a user may have
//! waiting, and take all of an array or nothing of it.

use std::collections::HashMap;

/// By executor, how many tasks a batch may have, where that is less than the scheduler's own limit.
#[derive(Debug, Default)]
pub struct Room(HashMap<String, usize>);

impl Room {
    /// How many tasks may be tried, of at most `limit`.
    pub fn most(&self, executor: &str, limit: usize) -> usize {
        self.0.get(executor).map_or(limit, |most| limit.min(*most))
    }

    /// A batch of so many was taken: there may be room for more.
    pub fn took(&mut self, executor: &str, count: usize) {
        if let Some(most) = self.0.get_mut(executor).filter(|most| count >= **most) {
            *most = most.saturating_mul(2);
        }
    }

    /// There was no room for so many: half of it is tried next.
    pub fn lacked(&mut self, executor: &str, count: usize) -> Lacked {
        let is_news = self.0.insert(executor.to_owned(), (count / 2).max(1)).is_none();
        Lacked { fewer: count > 1, is_news }
    }
}

/// What follows from a lack of room.
pub struct Lacked {
    /// Fewer can be tried at once. If not, only time helps.
    pub fewer: bool,
    /// It is the first.
    pub is_news: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_what_there_is_room_for() {
        let mut room = Room::default();
        assert_eq!(room.most("slurm", 500), 500);
        // 500 wait, and the site lets a user have 60.
        let (mut waiting, mut free, mut asked) = (500, 60, 0);
        while waiting > 0 {
            asked += 1;
            let count = room.most("slurm", 500).min(waiting);
            if count <= free {
                room.took("slurm", count);
                (waiting, free) = (waiting - count, free - count);
            } else if !room.lacked("slurm", count).fewer {
                // All that were taken are done.
                free = 60;
            }
        }
        assert!(asked < 130, "{asked} questions for 500 jobs, of which 60 may wait");
        assert_eq!(room.most("other", 7), 7);
    }
}

//! What of a run is a matter of time.

use std::time::Instant;

use super::Runner;

impl Runner<'_> {
    /// Takes note that the run is interrupted, if it is.
    pub(super) fn hear_interrupt(&mut self) {
        if !self.cancel.is_set() || self.summary.interrupted {
            return;
        }
        self.summary.interrupted = true;
        self.recorder.asked_to_stop();
        self.sched.stop();
        self.active.values().for_each(|active| active.cancel.set());
        if !self.active.is_empty() {
            self.warn("interrupted: what runs is asked to stop; again, and it is stopped at once".into());
        }
    }

    /// Wakes what has rested, stops what takes too long, and everything when the run is interrupted.
    pub(super) fn look_at_the_clock(&mut self) {
        let now = Instant::now();
        self.recorder.beat();
        self.hear_interrupt();
        for active in self.active.values_mut() {
            if active.deadline.is_some_and(|deadline| deadline <= now) && !active.timed_out {
                active.timed_out = true;
                active.cancel.set();
            }
        }
        let sched = &mut self.sched;
        self.resting.retain(|(until, id)| {
            let rests = *until > now;
            if !rests {
                sched.wake(*id);
            }
            rests
        });
    }
}

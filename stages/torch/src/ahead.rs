//! The tokens of the next micro batches are read while the device computes: a cold page of a corpus never keeps it waiting.

use std::{
    cell::Cell,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use flow_plan::{Data, Training};

/// So many micro batches are read ahead.
const DEPTH: usize = 4;

/// A thread that reads a run's training batches in their order.
#[derive(Debug)]
pub struct Ahead {
    rows: Receiver<(u64, usize, Result<Vec<i64>>)>,
    waited: Cell<Duration>,
}

impl Ahead {
    /// Begins with the step after `completed` steps, for one data-parallel rank. The thread ends with the last step, or
    /// soon after this is dropped.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(data: &Arc<Data>, training: &Training, data_rank: usize, completed: u64) -> Result<Self> {
        let (sender, rows) = sync_channel(DEPTH);
        let (data, count, batch) = (Arc::clone(data), training.accumulation(), training.global_batch_size as u64);
        let steps = completed..training.max_steps;
        let read = move || {
            for completed in steps {
                for micro in 0..count {
                    let rows = data.train_batch(completed * batch, micro, data_rank);
                    if sender.send((completed, micro, rows)).is_err() {
                        return;
                    }
                }
            }
        };
        thread::Builder::new().name("data".into()).spawn(read).context("cannot start a thread that reads the data")?;
        Ok(Self { rows, waited: Cell::new(Duration::ZERO) })
    }

    /// The rows of a micro batch: each once, in order.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn take(&self, completed: u64, micro: usize) -> Result<Vec<i64>> {
        let began = Instant::now();
        let (read_completed, read_micro, rows) = self.rows.recv().context("the data is at its end")?;
        self.waited.set(self.waited.get() + began.elapsed());
        let next = (read_completed, read_micro);
        ensure!(next == (completed, micro), "batch {next:?} is next, and {:?} was asked for", (completed, micro));
        rows
    }

    /// How long was waited for data since this was last asked.
    pub fn waited(&self) -> Duration {
        self.waited.take()
    }
}

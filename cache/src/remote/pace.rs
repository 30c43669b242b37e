//! [`Pace`]: what comes too slowly does not come. A server that sends a byte now and then is as good as none.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::store::{Body, Failure};

/// How fast a body comes.
#[derive(Debug)]
pub(crate) struct Pace {
    /// In so much time of waiting …
    window: Duration,
    /// … so many bytes must come.
    least: u64,
    waited: Duration,
    came: u64,
}

impl Pace {
    pub fn new(window: Duration, least: u64) -> Self {
        Self { window, least, waited: Duration::ZERO, came: 0 }
    }

    /// The next bytes of a body; `None` at its end. What is done with them meanwhile takes the time it takes.
    ///
    /// # Errors
    /// They do not come, or too slowly.
    pub async fn next(&mut self, body: &mut Body) -> Result<Option<Bytes>, Failure> {
        let began = Instant::now();
        let left = self.window.saturating_sub(self.waited);
        let Ok(next) = tokio::time::timeout(left, body.stream.next()).await else {
            let (came, seconds) = (self.came, self.window.as_secs_f32());
            return Err(Failure::remote(format!("{came} bytes came in {seconds} s, which is too slow")));
        };
        self.waited += began.elapsed();
        let Some(bytes) = next.transpose()? else { return Ok(None) };
        self.came += bytes.len() as u64;
        if self.came >= self.least {
            (self.waited, self.came) = (Duration::ZERO, 0);
        }
        Ok(Some(bytes))
    }
}

/// Waits for something that is sent: as long as `sent` grows, it takes the time it takes. `patience` is for when it does
/// not; a multiple of it for when all `size` bytes went, and the other side has to put them in order.
///
/// # Errors
/// Nothing went for so long.
pub(crate) async fn while_it_goes<T>(
    work: impl Future<Output = T>,
    sent: &AtomicU64,
    size: u64,
    patience: Duration,
) -> Result<T, Failure> {
    let mut work = std::pin::pin!(work);
    let (mut before, mut idle) = (sent.load(Ordering::Relaxed), 0);
    loop {
        if let Ok(done) = tokio::time::timeout(patience, &mut work).await {
            return Ok(done);
        }
        let now = sent.load(Ordering::Relaxed);
        idle = if now == before { idle + 1 } else { 0 };
        before = now;
        if idle >= if now >= size { IN_ORDER } else { 1 } {
            let seconds = idle as f32 * patience.as_secs_f32();
            return Err(Failure::remote(format!("no answer for {seconds} s, when {now} of {size} bytes were sent")));
        }
    }
}

/// A server that has everything may say nothing for so many times as long.
const IN_ORDER: u32 = 10;

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    /// How many pieces of 10 bytes come, one each `every` ms; at least 20 bytes must come in 200 ms.
    fn come(every: u64) -> Result<usize, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let pieces = stream::iter(0..8).then(move |_| async move {
                tokio::time::sleep(Duration::from_millis(every)).await;
                Ok(Bytes::from_static(b"0123456789"))
            });
            let mut body = Body { from: 0, stream: pieces.boxed() };
            let mut pace = Pace::new(Duration::from_millis(200), 20);
            let mut n = 0;
            while pace.next(&mut body).await?.is_some() {
                n += 1;
            }
            Ok(n)
        })
    }

    /// Sends 5 of `size` bytes, one each `every` ms, and then says nothing for as long as `order`.
    fn go(every: u64, size: u64, order: u64) -> Result<(), Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let sent = AtomicU64::new(0);
        let work = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(every)).await;
                sent.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_millis(order)).await;
        };
        runtime.block_on(while_it_goes(work, &sent, size, Duration::from_millis(100)))
    }

    #[test]
    fn what_goes_up_slowly_goes_up() {
        go(60, 5, 300).unwrap();
        assert!(go(60, 9, 1000).unwrap_err().error.to_string().contains("5 of 9 bytes"));
        assert!(go(1000, 5, 0).unwrap_err().error.to_string().contains("0 of 5 bytes"));
        assert!(go(1, 5, 100_000).unwrap_err().error.to_string().contains("5 of 5 bytes"));
    }

    #[test]
    fn a_trickle_is_no_stream() {
        assert_eq!(come(1).unwrap(), 8);
        // Each piece comes in time, and yet.
        assert!(come(150).unwrap_err().error.to_string().contains("too slow"));
        assert!(come(1000).unwrap_err().error.to_string().contains("0 bytes"));
    }
}

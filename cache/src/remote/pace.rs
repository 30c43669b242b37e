//! [`Pace`]: what comes too slowly does not come. A server that sends a byte now and then is as good as none.

use std::time::Duration;

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

    #[test]
    fn a_trickle_is_no_stream() {
        assert_eq!(come(1).unwrap(), 8);
        // Each piece comes in time, and yet.
        assert!(come(150).unwrap_err().error.to_string().contains("too slow"));
        assert!(come(1000).unwrap_err().error.to_string().contains("0 bytes"));
    }
}

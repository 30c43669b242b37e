//! A big file over several connections: each takes the next piece that is missing, and writes it in its place in `PART`.
//! Which bytes are there `PART.json` says, so that an interrupted download goes on with what is missing.
//!
//! It is done where the server takes ranges and names the content by a strong ETag: then every answer is of the same file,
//! or says that it is not.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use reqwest::{
    Response, StatusCode,
    header::{self, HeaderValue},
};
use serde::{Deserialize, Serialize};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Failure, Http,
    download::{Course, Download, Downloaded, Origin, content_range},
    spans::Spans,
};

/// What is there of a file that comes in pieces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Pieces {
    /// The file's length, and the part's.
    pub total: u64,
    /// What was written.
    pub have: Spans,
    /// What is on the disk for sure.
    pub safe: Spans,
}

/// The answer that began the download, and its turn at the host.
pub(super) type First = (Response, Option<OwnedSemaphorePermit>);

/// So many bytes may have come without being noted.
const NOTE: u64 = 1 << 20;

/// What the connections of one download share.
struct Shared<'a> {
    download: &'a Download<'a>,
    course: &'a Course<'a>,
    file: Arc<File>,
    origin: Origin,
    pieces: RefCell<Pieces>,
    queue: RefCell<VecDeque<(u64, u64)>>,
    /// How many connections have not ended.
    alive: Cell<usize>,
    /// The server has another file now.
    changed: Cell<bool>,
    /// Bytes since the last note.
    fresh: Cell<u64>,
}

impl Download<'_> {
    /// Whether a file is worth several connections, and the server good for it.
    pub(super) fn comes_in_pieces(http: &Http, response: &Response, origin: &Origin, missing: u64) -> bool {
        let ranges = response.headers().get(header::ACCEPT_RANGES).is_some_and(|unit| unit.as_bytes() == b"bytes");
        let ranges = ranges || response.status() == StatusCode::PARTIAL_CONTENT;
        let strong = origin.etag.as_ref().is_some_and(|etag| !etag.starts_with("W/"));
        ranges && strong && http.connections > 1 && missing >= http.patience.piece.saturating_mul(2)
    }

    /// Takes what is missing. The first answer begins where the first gap does.
    pub(super) async fn in_pieces(
        &self,
        course: &Course<'_>,
        origin: Origin,
        pieces: Pieces,
        first: Option<First>,
    ) -> Result<Downloaded, Failure> {
        let cannot = || format!("cannot write {}", self.part.display());
        let (total, kept) = (pieces.total, pieces.have.bytes());
        let queue = pieces.have.gaps(total, course.http.patience.piece).into();
        let etag = origin.etag.clone();
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&self.part);
        let file =
            file.and_then(|file| file.set_len(total).map(|()| file)).with_context(cannot).map_err(Failure::here)?;
        let shared = Shared {
            download: self,
            course,
            file: Arc::new(file),
            origin,
            pieces: RefCell::new(pieces),
            queue: RefCell::new(queue),
            alive: Cell::new(4),
            changed: Cell::new(false),
            fresh: Cell::new(0),
        };
        shared.note().map_err(Failure::here)?;
        let connection = |first| shared.connection(first);
        let ended = tokio::try_join!(connection(first), connection(None), connection(None), connection(None));
        if let Err(failure) = ended {
            if shared.changed.get() {
                self.start_over()?;
                return Err(Failure { retry: Some(None), ..failure });
            }
            shared.note().map_err(Failure::here)?;
            // Each connection was as patient as it may be.
            return Err(Failure { retry: None, ..failure });
        }
        shared.sync().await.map_err(Failure::here)?;
        if let Err(error) = self.checksums.verify(self.hashers(total)?, &self.name()) {
            self.start_over()?;
            return Err(Failure { error, status: None, retry: (kept > 0).then_some(None) });
        }
        self.publish(total, etag)
    }
}

impl Shared<'_> {
    /// Takes piece after piece. One that cannot be had is left to the other connections, while there are any: some
    /// servers let a client have so many connections and no more.
    async fn connection(&self, mut first: Option<First>) -> Result<(), Failure> {
        loop {
            let Some((from, to)) = self.queue.borrow_mut().pop_front() else { break };
            let at = Cell::new(from);
            let taken = self.course.http.patiently(self.course.say, async || {
                let began = at.get();
                match self.take(&at, to, first.take()).await {
                    Err(failure) if self.changed.get() => Ok(Err(failure)),
                    Err(failure) => Err((failure, at.get() - began)),
                    Ok(()) => Ok(Ok(())),
                }
            });
            match taken.await {
                Ok(Ok(())) => self.sync().await.map_err(Failure::here)?,
                Ok(Err(changed)) => return Err(changed),
                Err(failure) if self.alive.get() == 1 || failure.retry.is_none() && failure.status.is_none() => {
                    return Err(failure);
                }
                Err(failure) => {
                    (self.course.say)(format!("{:#}; the other connections take its piece", failure.error));
                    self.queue.borrow_mut().push_back((at.get(), to));
                    break;
                }
            }
        }
        self.alive.set(self.alive.get() - 1);
        Ok(())
    }

    /// Takes the bytes up to `to`, and moves `at` on.
    async fn take(&self, at: &Cell<u64>, to: u64, first: Option<First>) -> Result<(), Failure> {
        let download = self.download;
        let only_this = first.is_none();
        let (mut response, _turn) = match first {
            Some(first) => first,
            None => {
                let turn = self.course.http.turn(&download.url).await;
                (self.ask(at.get(), to).await?, turn)
            }
        };
        while at.get() < to {
            let bytes = match response.chunk().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    let error = anyhow!("{}: the piece from byte {} ended too early", download.name(), at.get());
                    return Err(Failure { error, status: None, retry: Some(None) });
                }
                Err(error) => {
                    let failure = Failure::broken(&download.url, error);
                    let error = failure.error.context(format!("the connection broke before byte {}", at.get()));
                    return Err(Failure { error, ..failure });
                }
            };
            let wanted = bytes.len().min(usize::try_from(to - at.get()).unwrap_or(usize::MAX));
            self.write(at.get(), &bytes[..wanted]).map_err(Failure::here)?;
            at.set(at.get() + wanted as u64);
        }
        if only_this {
            // Who has seen the end of an answer can use its connection again.
            let _ = response.chunk().await;
        }
        Ok(())
    }

    /// Asks for a piece of the file that the others are of.
    async fn ask(&self, from: u64, to: u64) -> Result<Response, Failure> {
        let mut headers = self.download.headers();
        let value = |text: &str| HeaderValue::from_str(text).map_err(|error| Failure::here(error.into()));
        headers.insert(header::RANGE, value(&format!("bytes={from}-{}", to - 1))?);
        headers.insert(header::IF_RANGE, value(self.origin.etag.as_deref().unwrap_or_default())?);
        let response = match self.course.http.get(&self.download.url, headers).await {
            Err(failure) if failure.status == Some(StatusCode::RANGE_NOT_SATISFIABLE) => {
                self.changed.set(true);
                return Err(failure);
            }
            answer => answer?,
        };
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let range = range.filter(|_| response.status() == StatusCode::PARTIAL_CONTENT).and_then(content_range);
        let total = self.pieces.borrow().total;
        if range != Some((from, Some(total))) || self.origin.is_another(&response, Some(total)) {
            self.changed.set(true);
            let error = anyhow!("{} changed while it was downloaded", self.download.name());
            return Err(Failure { error, status: None, retry: Some(None) });
        }
        Ok(response)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let cannot = || format!("cannot write {}", self.download.part.display());
        self.file.write_all_at(bytes, at).with_context(cannot)?;
        let length = bytes.len() as u64;
        let mut pieces = self.pieces.borrow_mut();
        pieces.have.add(at, at + length);
        (self.course.progress)(pieces.have.bytes(), Some(pieces.total));
        drop(pieces);
        self.course.got.set(self.course.got.get() + length);
        self.fresh.set(self.fresh.get() + length);
        if self.fresh.get() >= NOTE { self.note() } else { Ok(()) }
    }

    fn note(&self) -> Result<()> {
        self.fresh.set(0);
        self.download.write_origin(&Origin { pieces: Some(self.pieces.borrow().clone()), ..self.origin.clone() })
    }

    /// Waits until what was written is on the disk, without holding up what comes meanwhile; and notes it.
    async fn sync(&self) -> Result<()> {
        let written = self.pieces.borrow().have.clone();
        let file = Arc::clone(&self.file);
        let synced = tokio::task::spawn_blocking(move || file.sync_data()).await.map_err(std::io::Error::other);
        synced.and_then(|synced| synced).with_context(|| format!("cannot write {}", self.download.part.display()))?;
        let mut pieces = self.pieces.borrow_mut();
        if pieces.safe.bytes() < written.bytes() {
            pieces.safe = written;
        }
        drop(pieces);
        self.note()
    }
}

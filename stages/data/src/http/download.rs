//! One file: into `PART`, on from where `PART` ends, checked, and only then renamed.
//!
//! `PART.json` keeps the validator (a strong ETag, or Last-Modified) of what `PART` holds. With it the rest is asked
//! for under `If-Range`, so that a file that changed on the server is taken from its beginning.
//!
//! A big file comes in pieces, over several connections: see [`super::stretches`].
//!
//! What came is in the file at once, and survives the process. After the machine itself went down a file may have its
//! length and not its bytes: then only what was on the disk for sure, as `PART.json` says, is gone on from.

use std::{
    cell::Cell,
    fmt,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, anyhow};
use reqwest::{
    Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderValue},
};
use serde::{Deserialize, Serialize};

use super::{Checksums, Failure, Http, checksums::Hashers, redacted, spans::Spans, stretches::Pieces};

/// A file to download.
#[derive(Debug)]
pub struct Download<'a> {
    /// From where.
    pub url: Url,
    /// Sent to the URL's host alone, not to where it redirects.
    pub token: Option<&'a str>,
    /// Where it grows; `.json` behind the name is used too.
    pub part: PathBuf,
    /// Where it lies when it is whole.
    pub file: PathBuf,
    /// Its length, if it is known before.
    pub size: Option<u64>,
    /// What it must be.
    pub checksums: Checksums,
    /// The ETag of a file that is there already: while it is the server's, nothing is downloaded, and the failure has
    /// the status 304.
    pub unless: Option<&'a str>,
}

/// A file that was downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Its length.
    pub size: u64,
    /// Its ETag, if the server gave one.
    pub etag: Option<String>,
    /// How much of it an earlier run had left.
    pub resumed_at: u64,
}

/// The server has a file of another length than it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongLength {
    /// The URL, without secrets.
    pub url: String,
    /// What the server has.
    pub has: u64,
    /// What it must be.
    pub must: u64,
}

impl fmt::Display for WrongLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, has, must } = self;
        write!(f, "{url} has {has} bytes there, not the {must} that it must have")
    }
}

impl std::error::Error for WrongLength {}

/// What is remembered beside a part.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Origin {
    pub etag: Option<String>,
    pub modified: Option<String>,
    /// How long the whole file is, if the server said.
    pub length: Option<u64>,
    /// So many bytes are on the disk for sure.
    pub synced: u64,
    /// When the machine was last started, while the part was written.
    pub boot: Option<String>,
    /// What is there of a part that is not filled from its beginning on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pieces: Option<Pieces>,
}

impl Origin {
    fn of(response: &Response) -> Self {
        let text =
            |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok().map(str::to_owned));
        let modified = text(header::LAST_MODIFIED).filter(|modified| is_settled(modified, text(header::DATE)));
        Self { etag: text(header::ETAG), modified, boot: boot(), ..Self::default() }
    }

    /// Whether an answer, of a file so long, is not of the file that this is of, whatever was asked for under `If-Range`:
    /// what stands in between may not know it.
    pub(super) fn is_another(&self, answer: &Response, length: Option<u64>) -> bool {
        let differ = |ours: Option<&String>, theirs: Option<&String>| ours.zip(theirs).is_some_and(|(a, b)| a != b);
        let theirs = Self::of(answer);
        differ(self.etag.as_ref(), theirs.etag.as_ref())
            || differ(self.modified.as_ref(), theirs.modified.as_ref())
            || self.length.zip(length).is_some_and(|(ours, theirs)| ours != theirs)
    }

    /// What `If-Range` takes: a weak ETag promises no equal bytes.
    fn validator(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.starts_with("W/")).or(self.modified.as_deref())
    }
}

/// Whether a file that was changed last at a time was so well before the answer: a clock of seconds does not tell two
/// changes within one of them (RFC 9110, 8.8.2.2).
fn is_settled(modified: &str, date: Option<String>) -> bool {
    let modified = httpdate::parse_http_date(modified).ok();
    let date = date.map_or_else(|| Some(SystemTime::now()), |date| httpdate::parse_http_date(&date).ok());
    modified.zip(date).is_some_and(|(modified, date)| modified + Duration::from_secs(2) <= date)
}

/// Differs from one start of the machine to the next; none where the system does not say.
pub fn boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

/// So many bytes come between two waits for the disk.
const SYNC: u64 = 128 << 20;

/// What the attempts of one download share.
pub(super) struct Course<'a> {
    pub http: &'a Http,
    pub say: &'a dyn Fn(String),
    pub progress: Progress<'a>,
    /// Bytes that came in this attempt.
    pub got: Cell<u64>,
    /// Bytes of the file that an earlier run had left.
    kept: Cell<u64>,
}

/// How far a download is: bytes of the file, and its length if known.
pub type Progress<'a> = &'a dyn Fn(u64, Option<u64>);

impl Download<'_> {
    /// Downloads it.
    ///
    /// # Errors
    /// The server does not have it, patience ran out, it is not what it must be, or the disk is full.
    pub async fn run(&self, http: &Http, say: &dyn Fn(String), progress: Progress<'_>) -> Result<Downloaded, Failure> {
        let kept = Cell::new(self.part.metadata().map_or(0, |part| part.len()));
        let course = Course { http, say, progress, got: Cell::new(0), kept };
        let downloaded = http.patiently(say, async || {
            course.got.set(0);
            let result = self.attempt(&course).await;
            result.map_err(|failure| (failure, course.got.get()))
        });
        let downloaded = downloaded.await?;
        Ok(Downloaded { resumed_at: course.kept.get(), ..downloaded })
    }

    async fn attempt(&self, course: &Course<'_>) -> Result<Downloaded, Failure> {
        let http = course.http;
        let turn = http.turn(&self.url).await;
        let mut known: Origin = std::fs::read(self.origin_path())
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        let have = self.trusted(&mut known).map_err(Failure::here)?;
        course.kept.set(course.kept.get().min(have));
        if let Some(pieces) = known.pieces.take() {
            drop(turn);
            return self.in_pieces(course, known, pieces, None).await;
        }
        let mut headers = self.headers();
        if let Some(validator) = known.validator().filter(|_| have > 0)
            && let Ok(validator) = HeaderValue::from_str(validator)
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={have}-"))
        {
            headers.insert(header::RANGE, range);
            headers.insert(header::IF_RANGE, validator);
        } else if let Some(etag) = self.unless.and_then(|etag| HeaderValue::from_str(etag).ok()) {
            headers.insert(header::IF_NONE_MATCH, etag);
        }
        let response = match http.get(&self.url, headers).await {
            Ok(response) => response,
            Err(failure) if failure.status == Some(StatusCode::RANGE_NOT_SATISFIABLE) => {
                // Nothing lies behind what we have: it is whole, and was not renamed; or it is not that file at all.
                let whole = self.size.is_none_or(|size| size == have)
                    && self.checksums.verify(self.hashers(have)?, &self.name()).is_ok();
                if whole && known.etag.is_some() {
                    self.sync(None, &mut known, have).await?;
                    return self.publish(have, known.etag);
                }
                self.start_over()?;
                return Err(Failure { retry: Some(None), ..failure });
            }
            Err(failure) => return Err(failure),
        };
        let start = if response.status() == StatusCode::PARTIAL_CONTENT { have } else { 0 };
        let total = self.total(&response, start)?;
        if start > 0 && known.is_another(&response, total) {
            self.start_over()?;
            let error = anyhow!("{} is another file than the one that was begun with", self.name());
            return Err(Failure { error, status: None, retry: Some(None) });
        }
        // Behind a part its validators stay.
        let origin = if start > 0 { known } else { Origin { length: total, ..Origin::of(&response) } };
        if let (Some(total), Some(size)) = (total, self.size)
            && total != size
        {
            return Err(Failure::here(WrongLength { url: self.name(), has: total, must: size }.into()));
        }
        let missing = total.map_or(0, |total| total.saturating_sub(start));
        if Self::comes_in_pieces(http, &response, &origin, missing) {
            if start == 0 {
                course.kept.set(0);
                self.start_over()?;
            }
            let (have, safe) = (Spans::first(start), Spans::first(origin.synced.min(start)));
            let pieces = Pieces { total: start + missing, have, safe };
            return self.in_pieces(course, origin, pieces, Some((response, turn))).await;
        }
        self.receive(course, response, start, total, origin).await
    }

    /// What is sent to the URL's own host.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if let Some(token) = self.token
            && let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {token}"))
        {
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        headers
    }

    /// How much of the part can be gone on from; what cannot is cut away.
    fn trusted(&self, known: &mut Origin) -> Result<u64> {
        let have = self.part.metadata().map_or(0, |part| part.len());
        if known.pieces.as_ref().is_some_and(|pieces| pieces.total != have) {
            // Its part is not there any more, or not that one.
            *known = Origin::default();
        }
        let same_start = known.boot.is_some() && known.boot == boot();
        if let Some(pieces) = &mut known.pieces {
            if !same_start {
                pieces.have = pieces.safe.clone();
            }
            known.boot = boot();
            return Ok(pieces.have.bytes());
        }
        if same_start {
            return Ok(have);
        }
        let trusted = have.min(known.synced);
        if have > trusted {
            let file = OpenOptions::new().write(true).open(&self.part);
            file.and_then(|file| file.set_len(trusted))
                .with_context(|| format!("cannot write {}", self.part.display()))?;
        }
        known.boot = boot();
        if trusted > 0 {
            self.write_origin(known)?;
        }
        Ok(trusted)
    }

    pub(super) fn write_origin(&self, origin: &Origin) -> Result<()> {
        let path = self.origin_path();
        let new = path.with_extension("json.new");
        let text = serde_json::to_vec(origin)?;
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Waits until so many bytes are on the disk, without holding up the downloads beside this one; and notes it.
    async fn sync(&self, file: Option<&File>, origin: &mut Origin, bytes: u64) -> Result<(), Failure> {
        let file = file.map_or_else(|| File::open(&self.part), File::try_clone);
        let synced = async { tokio::task::spawn_blocking(move || file?.sync_data()).await.map_err(io::Error::other)? };
        synced.await.with_context(|| format!("cannot write {}", self.part.display())).map_err(Failure::here)?;
        origin.synced = bytes;
        self.write_origin(origin).map_err(Failure::here)
    }

    /// The file's whole length, as the answer says.
    fn total(&self, response: &Response, start: u64) -> Result<Option<u64>, Failure> {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(response.content_length());
        }
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let Some((first, total)) = range.and_then(content_range).filter(|(first, _)| *first == start) else {
            self.start_over()?;
            let error =
                anyhow!("{}: asked for the rest from byte {start}, got {}", self.name(), range.unwrap_or("no range"));
            return Err(Failure { error, status: None, retry: Some(None) });
        };
        Ok(total.or_else(|| response.content_length().map(|length| first + length)))
    }

    async fn receive(
        &self,
        course: &Course<'_>,
        mut response: Response,
        start: u64,
        total: Option<u64>,
        mut origin: Origin,
    ) -> Result<Downloaded, Failure> {
        let cannot = || format!("cannot write {}", self.part.display());
        if start == 0 {
            course.kept.set(0);
            self.start_over()?;
            self.write_origin(&origin).map_err(Failure::here)?;
        }
        let mut hashers = self.hashers(start)?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.part)
            .with_context(cannot)
            .map_err(Failure::here)?;
        let mut size = start;
        (course.progress)(size, total);
        let ended = loop {
            match response.chunk().await {
                Ok(Some(bytes)) => {
                    file.write_all(&bytes).with_context(cannot).map_err(Failure::here)?;
                    hashers.update(&bytes);
                    size += bytes.len() as u64;
                    course.got.set(size - start);
                    (course.progress)(size, total);
                    if size - origin.synced >= SYNC {
                        self.sync(Some(&file), &mut origin, size).await?;
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(Failure::broken(&self.url, error)),
            }
        };
        self.sync(Some(&file), &mut origin, size).await?;
        if let Some(failure) = ended {
            let total = total.map_or("an unknown number".to_owned(), |total| total.to_string());
            let error = failure.error.context(format!("the connection broke after {size} of {total} bytes"));
            return Err(Failure { error, ..failure });
        }
        let expected = self.size.or(total);
        if let Some(expected) = expected.filter(|expected| *expected != size) {
            if size > expected {
                self.start_over()?;
            }
            let error = anyhow!("{}: {size} bytes came, and {expected} should have", self.name());
            return Err(Failure { error, status: None, retry: Some(None) });
        }
        if let Err(error) = self.checksums.verify(hashers, &self.name()) {
            self.start_over()?;
            // What was put together from two answers may be wrong by that; one answer is what the server has.
            return Err(Failure { error, status: None, retry: (start > 0).then_some(None) });
        }
        self.publish(size, origin.etag)
    }

    /// Hashers that have seen the first bytes of the part.
    pub(super) fn hashers(&self, bytes: u64) -> Result<Hashers, Failure> {
        let mut hashers = self.checksums.hashers();
        if bytes > 0 {
            hashers.update_from(&self.part, bytes).map_err(Failure::here)?;
        }
        Ok(hashers)
    }

    pub(super) fn publish(&self, size: u64, etag: Option<String>) -> Result<Downloaded, Failure> {
        std::fs::rename(&self.part, &self.file)
            .with_context(|| format!("cannot create {}", self.file.display()))
            .map_err(Failure::here)?;
        // Without its part it means nothing; if it stays, nobody looks at it.
        let _ = std::fs::remove_file(self.origin_path());
        Ok(Downloaded { size, etag, resumed_at: 0 })
    }

    /// Forgets what was got so far.
    pub(super) fn start_over(&self) -> Result<(), Failure> {
        for path in [&self.part, &self.origin_path()] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Failure::here(anyhow!(error).context(format!("cannot remove {}", path.display()))));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn origin_path(&self) -> PathBuf {
        let mut path = self.part.as_os_str().to_owned();
        path.push(".json");
        Path::new(&path).to_owned()
    }

    pub(super) fn name(&self) -> String {
        redacted(self.url.as_str())
    }
}

/// `bytes 5-9/10` → (5, Some(10)); `bytes 5-9/*` → (5, None)
pub(super) fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

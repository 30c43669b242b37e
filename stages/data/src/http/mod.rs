//! Downloading over HTTP so that it succeeds if it can: resumed, retried with patience, checked, and with errors that
//! say the URL, the status and what to do, and no secrets.

mod checksums;
mod download;
mod redact;
mod spans;
mod stretches;
#[cfg(test)]
pub mod testserver;

use std::{
    cell::OnceCell,
    collections::HashMap,
    future::Future,
    net::IpAddr,
    sync::{Arc, LazyLock, Mutex, Once, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use flow_core::{Cancelled, Ctx};
use reqwest::{Client, StatusCode, Url, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use checksums::Checksums;
#[cfg(test)]
pub use download::boot;
pub use download::{Download, Downloaded, WrongLength};
pub use redact::redacted;

/// How patient a client is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// So many attempts in a row that get nowhere are the end.
    pub attempts: u32,
    /// The pause after the first failure; doubled after each further one.
    pub pause: Duration,
    /// The longest pause, also when the server asks for a longer one.
    pub longest_pause: Duration,
    /// The longest wait for a connection.
    pub connect: Duration,
    /// The longest silence in an answer.
    pub silence: Duration,
    /// A file of which twice as much is missing comes over several connections, in pieces of so many bytes.
    pub piece: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(60),
            connect: Duration::from_secs(20),
            silence: Duration::from_secs(60),
            piece: 32 << 20,
        }
    }
}

/// A client for HTTP and HTTPS. Proxies come from the environment, but not for this machine itself.
#[derive(Debug)]
pub struct Http {
    patience: Patience,
    /// How many transfers from one host go on at a time.
    connections: usize,
    /// Made when a URL needs it: it reads the system's certificates, and there may be none.
    client: OnceCell<Client>,
    /// For this machine itself.
    direct: OnceCell<Client>,
}

/// Why an attempt failed, and whether another one makes sense.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong.
    pub error: anyhow::Error,
    /// The status, if there was an answer.
    pub status: Option<StatusCode>,
    /// Whether to try again; after how long at least, if the server said so.
    pub retry: Option<Option<Duration>>,
}

impl Http {
    /// A client.
    pub fn new(patience: Patience, connections: usize) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // An error means that there is one already, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        Self { patience, connections: connections.max(1), client: OnceCell::new(), direct: OnceCell::new() }
    }

    /// As patient as makes sense where somebody else can be asked.
    pub fn hasty(&self) -> Self {
        Self::new(Patience { attempts: self.patience.attempts.min(2), ..self.patience }, self.connections)
    }

    /// Waits until one more transfer from the URL's host may begin; it goes on as long as what comes back is held.
    /// All of the process share a host's turns: stages run side by side.
    pub async fn turn(&self, url: &Url) -> Option<OwnedSemaphorePermit> {
        static HOSTS: LazyLock<Mutex<HashMap<String, Arc<Semaphore>>>> = LazyLock::new(Mutex::default);
        let host = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or(0));
        let turns = {
            let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
            let turns = hosts.entry(host);
            Arc::clone(turns.or_insert_with(|| Arc::new(Semaphore::new(self.connections))))
        };
        // Nobody closes it.
        turns.acquire_owned().await.ok()
    }

    /// The client for a URL.
    fn client(&self, url: &Url) -> Result<&Client> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let cell = if here { &self.direct } else { &self.client };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let builder = || {
            let builder = Client::builder()
                .user_agent(concat!("flow/", env!("CARGO_PKG_VERSION")))
                // With HTTP/2 several transfers would share a connection, and what it is slowed down to.
                .http1_only()
                .connect_timeout(self.patience.connect)
                .read_timeout(self.patience.silence);
            if here { builder.no_proxy() } else { builder }
        };
        let client = match builder().build() {
            // A machine without certificates still speaks plain HTTP; what that redirects to HTTPS is not trusted then.
            Err(_) if url.scheme() == "http" => builder().tls_certs_only([]).build(),
            built => built,
        };
        let client = client.context(
            "cannot make an HTTPS client; if the system has no certificates, install ca-certificates or set SSL_CERT_FILE",
        )?;
        Ok(cell.get_or_init(|| client))
    }

    /// One GET. An answer that is no success is a [`Failure`] too.
    ///
    /// # Errors
    /// As said.
    pub async fn get(&self, url: &Url, headers: header::HeaderMap) -> Result<reqwest::Response, Failure> {
        let response = self.ask(url, headers).await?;
        match content_coding(url, &response) {
            _ if !response.status().is_success() => Err(Failure::refused(url, &response)),
            Some(coding) => Err(Failure::encoded(url, &coding)),
            None => Ok(response),
        }
    }

    /// One GET, whatever the answer.
    ///
    /// # Errors
    /// There was none.
    pub async fn ask(&self, url: &Url, headers: header::HeaderMap) -> Result<reqwest::Response, Failure> {
        let client = self.client(url).map_err(Failure::here)?;
        // What is asked for is the file as it lies there: a .gz stays one.
        let request = client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity").headers(headers);
        request.send().await.map_err(|error| Failure::broken(url, error))
    }

    /// Tries until it works, is hopeless, or got nowhere too often. `attempt` tells with its failure how many bytes
    /// it got further: progress renews the patience.
    ///
    /// # Errors
    /// The last failure.
    pub async fn patiently<T>(
        &self,
        say: &dyn Fn(String),
        mut attempt: impl AsyncFnMut() -> Result<T, (Failure, u64)>,
    ) -> Result<T, Failure> {
        const PROGRESS: u64 = 1 << 20;
        let mut failures = 0;
        loop {
            let (failure, progress) = match attempt().await {
                Ok(done) => return Ok(done),
                Err(failed) => failed,
            };
            failures = if progress >= PROGRESS { 1 } else { failures + 1 };
            let Some(after) = failure.retry.filter(|_| failures < self.patience.attempts) else { return Err(failure) };
            let pause = self.pause(failures, after);
            say(format!("{:#}; trying again in {:.1} s", failure.error, pause.as_secs_f64()));
            tokio::time::sleep(pause).await;
        }
    }

    /// Doubles with each failure, is between half and whole of that by chance, so that many clients do not come back
    /// at the same moment, and is not shorter than the server asks for.
    fn pause(&self, failures: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.patience.pause.saturating_mul(1 << (failures - 1).min(16));
        let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.subsec_nanos());
        let chance = f64::from(nanos.wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24);
        let pause = doubled.min(self.patience.longest_pause).mul_f64(0.5 + chance / 2.0);
        asked.map_or(pause, |asked| asked.max(pause)).min(self.patience.longest_pause)
    }
}

/// Runs a future to its end on this thread, or until the run is interrupted.
///
/// # Errors
/// As the future, or [`Cancelled`].
pub fn wait<T>(ctx: &Ctx<'_>, future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let cancelled = async {
            while !ctx.cancel.is_set() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            result = future => result,
            () = cancelled => Err(Cancelled.into()),
        }
    });
    // A name look-up that hangs is on a thread of its own, and is not waited for.
    runtime.shutdown_background();
    result
}

/// The coding that stands between an answer's bytes and the file, though none was asked for. Of a file whose name says its
/// compression the bytes are the file: servers tell of a `.gz` that it is gzip in this way, too.
fn content_coding(url: &Url, response: &reqwest::Response) -> Option<String> {
    let coding = response.headers().get(header::CONTENT_ENCODING)?.to_str().unwrap_or("?").trim().to_lowercase();
    let endings: &[&str] = match coding.as_str() {
        "" | "identity" => return None,
        "gzip" | "x-gzip" => &[".gz", ".tgz"],
        "zstd" => &[".zst"],
        "br" => &[".br"],
        "bzip2" | "x-bzip2" => &[".bz2"],
        "xz" | "x-xz" => &[".xz"],
        _ => &[],
    };
    let path = url.path().to_lowercase();
    (!endings.iter().any(|ending| path.ends_with(ending))).then_some(coding)
}

/// How long a server wants to be left alone: in seconds, or until a date.
fn retry_after(text: &str) -> Option<Duration> {
    let date = || httpdate::parse_http_date(text.trim()).ok();
    let until = || Some(date()?.duration_since(SystemTime::now()).unwrap_or_default());
    text.trim().parse().ok().map(Duration::from_secs).or_else(until)
}

/// When the window of a rate limit ends, as the hub says it: `"resolvers";r=0;t=55`.
fn rate_limit(text: &str) -> Option<Duration> {
    let seconds = text.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

impl Failure {
    /// The connection failed, or broke.
    pub fn broken(url: &Url, error: reqwest::Error) -> Self {
        let hopeless = error.is_builder() || error.is_redirect();
        let error = anyhow::Error::new(error.without_url());
        let certificate = error.chain().any(|cause| cause.to_string().to_lowercase().contains("certificate"));
        let mut error = error.context(format!("GET {}", redacted(url.as_str())));
        if certificate {
            error = error.context("the server's certificate is not trusted (SSL_CERT_FILE names further authorities)");
        }
        Self { error, status: None, retry: (!hopeless && !certificate).then_some(None) }
    }

    /// The server answered, but not with the file.
    pub fn refused(url: &Url, response: &reqwest::Response) -> Self {
        let status = response.status();
        let what = match status.as_u16() {
            401 | 403 => ": the server wants credentials, or does not let you",
            404 | 410 => ": there is no such file; check the spelling of the URL",
            407 => ": the proxy wants credentials (HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT)",
            429 => ": too many requests",
            500..600 => ": the server has a problem",
            _ => "",
        };
        let said = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let after = said("retry-after").and_then(retry_after).or_else(|| said("ratelimit").and_then(rate_limit));
        let again = matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504);
        Self {
            error: anyhow::anyhow!("GET {}: {status}{what}", redacted(url.as_str())),
            status: Some(status),
            retry: again.then_some(after),
        }
    }

    /// The server answered with something that the file would have to be made of first.
    fn encoded(url: &Url, coding: &str) -> Self {
        let error = anyhow::anyhow!(
            "GET {}: the server sends the file under a compression of its own (Content-Encoding: {coding}), though it was \
             asked not to; it is taken as it lies there or not at all: another place of the same file may serve (`urls`, `[mirrors]`)",
            redacted(url.as_str())
        );
        Self { error, status: None, retry: None }
    }

    /// Nothing that happens on this machine gets better by asking the server again.
    pub fn here(error: anyhow::Error) -> Self {
        Self { error, status: None, retry: None }
    }
}

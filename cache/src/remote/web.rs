//! A web server that knows GET (with ranges), HEAD and PUT.
//!
//! Credentials come from the environment: `FLOW_REMOTE_TOKEN` (Bearer), or `FLOW_REMOTE_USER` and
//! `FLOW_REMOTE_PASSWORD` (Basic). They are sent to the server itself, not to where it redirects.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStream, TryStreamExt as _, stream};
use reqwest::{Body as Outgoing, Client, Method, RequestBuilder, Response, StatusCode, Url, header};
use tokio::io::AsyncReadExt as _;

use super::{
    STALL,
    pace::while_it_goes,
    store::{Body, Failure, Store, Upload},
};

#[derive(Debug)]
pub(crate) struct Web {
    client: Client,
    /// What is sent takes the time it takes: nothing comes back meanwhile.
    sender: Client,
    base: Url,
    /// Directories that were asked for.
    made: Mutex<HashSet<String>>,
}

const CONNECT: Duration = Duration::from_secs(5);
/// Before each further try.
const PAUSES: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(800)];
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Web {
    pub fn new(base: &Url) -> Result<Self> {
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let builder = |reads: bool| {
            let builder =
                Client::builder().user_agent(concat!("flow/", env!("CARGO_PKG_VERSION"))).connect_timeout(CONNECT);
            let builder = if reads { builder.read_timeout(STALL) } else { builder };
            if here { builder.no_proxy() } else { builder }
        };
        let build = |reads| {
            let client = match builder(reads).build() {
                // A machine without certificates still speaks plain HTTP.
                Err(_) if base.scheme() == "http" => builder(reads).tls_certs_only([]).build(),
                built => built,
            };
            client.context("cannot make an HTTPS client; if the system has no certificates, set SSL_CERT_FILE")
        };
        Ok(Self { client: build(true)?, sender: build(false)?, base: base.clone(), made: Mutex::default() })
    }

    fn url(&self, name: &str) -> Result<Url, Failure> {
        self.base.join(name).map_err(Failure::remote)
    }

    /// WebDAV puts files into directories that are there (RFC 4918, 9.7.1); other servers make them, and know no MKCOL.
    async fn make_room(&self, name: &str) -> Result<(), Failure> {
        let mkcol = Method::from_bytes(b"MKCOL").map_err(Failure::remote)?;
        let base = self.base.path().trim_matches('/').split('/').filter(|part| !part.is_empty()).count();
        let mut url = self.url(name)?;
        let Some((dirs, _)) = url.path().rsplit_once('/').map(|(dirs, last)| (dirs.to_owned(), last.to_owned())) else {
            return Ok(());
        };
        let parts: Vec<&str> = dirs.split('/').filter(|part| !part.is_empty()).collect();
        for end in base.max(1)..=parts.len() {
            let path = format!("/{}/", parts[..end].join("/"));
            let known = |made: &HashSet<String>| made.contains(&path);
            if known(&self.made.lock().unwrap_or_else(PoisonError::into_inner)) {
                continue;
            }
            url.set_path(&path);
            // Whatever it answers: the PUT tells whether it may.
            self.send(|| self.client.request(mkcol.clone(), url.clone())).await?;
            self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
        }
        Ok(())
    }

    /// Sends a request, again when the server is busy or the connection broke: each may be answered twice.
    async fn send(&self, make: impl Fn() -> RequestBuilder) -> Result<Response, Failure> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut pauses = PAUSES.into_iter();
        loop {
            let request = match (variable("FLOW_REMOTE_TOKEN"), variable("FLOW_REMOTE_USER")) {
                (Some(token), _) => make().bearer_auth(token),
                (None, Some(user)) => make().basic_auth(user, variable("FLOW_REMOTE_PASSWORD")),
                (None, None) => make(),
            };
            let answer = request.send().await;
            let again = match &answer {
                Ok(response) => is_busy(response.status()).then(|| asked_for(response)),
                Err(error) => (error.is_request() && !error.is_timeout()).then_some(None),
            };
            let pause = again.and_then(|asked| pauses.next().map(|pause| asked.unwrap_or(pause).min(LONGEST_PAUSE)));
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return answer.map_err(|error| failure(&error)),
            }
        }
    }
}

fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

/// How long the server wants to be left alone.
fn asked_for(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// All causes in a line; the innermost says most.
fn failure(error: &reqwest::Error) -> Failure {
    let mut text = error.to_string();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    Failure::remote(text)
}

fn refused(response: &Response) -> Failure {
    let (url, status) = (response.url(), response.status());
    let advice = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            ": check FLOW_REMOTE_TOKEN, or FLOW_REMOTE_USER and FLOW_REMOTE_PASSWORD"
        }
        status if status.is_redirection() => ": name the address that it redirects to",
        _ => "",
    };
    Failure::remote(format!("{url} answers {status}{advice}"))
}

/// Of a PUT.
fn not_put(response: &Response) -> Failure {
    let advice = match response.status() {
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => "the server must allow PUT",
        StatusCode::PAYLOAD_TOO_LARGE => "the server takes no file of that size (nginx: `client_max_body_size 0`)",
        // Where a directory is missing; of nginx it is the second.
        StatusCode::CONFLICT | StatusCode::INTERNAL_SERVER_ERROR => {
            "its log says why; it must allow MKCOL, or make directories by itself (nginx: `create_full_put_path on`)"
        }
        _ => return refused(response),
    };
    Failure::remote(format!("{} answers {}: {advice}", response.url(), response.status()))
}

/// A file's bytes.
fn read(file: tokio::fs::File) -> impl TryStream<Ok = Bytes, Error = io::Error> {
    stream::try_unfold(file, |mut file| async move {
        let mut buffer = BytesMut::with_capacity(1 << 18);
        Ok((file.read_buf(&mut buffer).await? > 0).then(|| (buffer.freeze(), file)))
    })
}

#[async_trait]
impl Store for Web {
    async fn get(&self, name: &str, from: u64) -> Result<Option<Body>, Failure> {
        // What is asked for are the bytes as they lie there.
        let url = self.url(name)?;
        let request = || {
            let request = self.client.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            if from > 0 { request.header(header::RANGE, format!("bytes={from}-")) } else { request }
        };
        let response = self.send(request).await?;
        let from = match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            // Nothing lies behind what we have.
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Ok(Some(Body { from, stream: stream::empty().boxed() }));
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
                let first =
                    range.and_then(|range| range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                if first != Some(from) {
                    return Err(Failure::remote(format!(
                        "{} sends another range than it was asked for",
                        response.url()
                    )));
                }
                from
            }
            StatusCode::OK => 0,
            _ => return Err(refused(&response)),
        };
        Ok(Some(Body { from, stream: response.bytes_stream().map_err(|error| failure(&error)).boxed() }))
    }

    async fn size(&self, name: &str) -> Result<Option<u64>, Failure> {
        let url = self.url(name)?;
        let response = self.send(|| self.client.head(url.clone())).await?;
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            status if status.is_success() => {
                // The body of a HEAD is empty; its header tells the length.
                let length = response
                    .headers()
                    .get(header::CONTENT_LENGTH)
                    .and_then(|length| length.to_str().ok()?.parse().ok());
                length.map(Some).ok_or_else(|| Failure::remote(format!("{} tells no length", response.url())))
            }
            _ => Err(refused(&response)),
        }
    }

    async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Failure> {
        self.make_room(name).await?;
        let url = self.url(name)?;
        let response = self.send(|| self.client.put(url.clone()).body(bytes.clone())).await?;
        if response.status().is_success() { Ok(()) } else { Err(not_put(&response)) }
    }

    async fn put_file(&self, name: &str, upload: &Upload<'_>) -> Result<(), Failure> {
        self.make_room(name).await?;
        // There is no way to go on with half a PUT that all servers know: it begins anew.
        let url = self.url(name)?;
        let path = upload.file.to_owned();
        let sent = Arc::new(AtomicU64::new(0));
        let request = || {
            sent.store(0, Ordering::Relaxed);
            let sent = Arc::clone(&sent);
            let stream = stream::once(tokio::fs::File::open(path.clone())).map_ok(read).try_flatten();
            let stream = stream.inspect_ok(move |bytes| _ = sent.fetch_add(bytes.len() as u64, Ordering::Relaxed));
            let body = Outgoing::wrap_stream(stream);
            self.sender.put(url.clone()).header(header::CONTENT_LENGTH, upload.size).body(body)
        };
        let response = while_it_goes(self.send(request), &sent, upload.size, STALL).await??;
        if !response.status().is_success() {
            return Err(not_put(&response));
        }
        // Servers that do not write to a file on the side leave half of one when they are killed: it is looked at.
        match self.size(name).await? {
            Some(size) if size == upload.size => {
                (upload.progress)(upload.size);
                Ok(())
            }
            size => Err(Failure::remote(format!("{name} has {size:?} bytes after {} were put there", upload.size))),
        }
    }

    fn leaves_halves(&self) -> bool {
        true
    }

    async fn list(&self, _: &str) -> Result<Vec<String>, Failure> {
        Err(Failure::remote("plain HTTP has no list: name a pipeline, and its results are asked for one by one"))
    }
}

//! An HTTP server on loopback for tests: real sockets, and every misbehaviour on demand.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
}

/// What is answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// The length that is told, if it is not the true one.
    pub length: Option<usize>,
    /// The connection breaks after so many bytes of the body.
    pub cut: Option<usize>,
    /// The server is silent for so long before the body.
    pub silence: Duration,
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), length: None, cut: None, silence: Duration::ZERO }
    }

    pub fn body(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    /// A file with an ETag: knows If-Range, and Range with and without an end.
    pub fn file(request: &Request, body: &[u8], etag: &str) -> Self {
        let headers = vec![("ETag", etag.to_owned()), ("Accept-Ranges", "bytes".to_owned())];
        let whole = Self { headers: headers.clone(), ..Self::body(body) };
        let range = request
            .headers
            .get("range")
            .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
            .and_then(|(start, end)| Some((start.parse().ok()?, end.parse().unwrap_or(usize::MAX))));
        let Some((start, end)) =
            range.filter(|_: &(usize, usize)| request.headers.get("if-range").is_none_or(|known| known == etag))
        else {
            return whole;
        };
        if start >= body.len() {
            return Self::status(416).with("Content-Range", format!("bytes */{}", body.len()));
        }
        let end = end.min(body.len() - 1);
        let part = Self { status: 206, body: body[start..=end].to_vec(), ..whole };
        part.with("Content-Range", format!("bytes {start}-{end}/{}", body.len()))
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn cut(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }
}

/// How many clients wait for the body of an answer.
#[derive(Default)]
struct Busy {
    now: usize,
    most: usize,
}

/// The server. Ends with the test process.
pub struct Server {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    busy: Arc<Mutex<Busy>>,
}

impl Server {
    /// Starts one. `answer` gets each request and its number from 0.
    pub fn start(answer: impl Fn(&Request, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let busy = Arc::new(Mutex::new(Busy::default()));
        let (log, count, answer) = (Arc::clone(&requests), Arc::clone(&busy), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, count, answer) = (Arc::clone(&log), Arc::clone(&count), Arc::clone(&answer));
                thread::spawn(move || serve(stream.unwrap(), &log, &count, &*answer));
            }
        });
        Self { port, requests, busy }
    }

    /// How many clients waited for the body of an answer at once, at most.
    pub fn most_at_once(&self) -> usize {
        self.busy.lock().unwrap().most
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

/// One request a connection. A client that is gone is no error.
fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<Request>>,
    busy: &Mutex<Busy>,
    answer: &(dyn Fn(&Request, usize) -> Answer + Send + Sync),
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    });
    let request = Request { path, headers: headers.collect() };
    let number = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    let answer = answer(&request, number);
    let length = answer.length.unwrap_or(answer.body.len());
    let mut head = format!("HTTP/1.1 {} Status\r\nContent-Length: {length}\r\nConnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let _ = stream.write_all(head.as_bytes());
    {
        let mut busy = busy.lock().unwrap();
        busy.now += 1;
        busy.most = busy.most.max(busy.now);
    }
    thread::sleep(answer.silence);
    busy.lock().unwrap().now -= 1;
    let end = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
    let _ = stream.write_all(&answer.body[..end]).and_then(|()| stream.flush());
}

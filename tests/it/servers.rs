//! Real servers for a team's cache, a proxy that holds what passes at a chosen byte, and a server that answers as it is
//! told to.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, OnceLock},
};

use crate::support::{Output, until};

pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_flow")).ancestors().nth(2).unwrap().join("servers")
}

fn install(program: &Path, args: &[&str]) {
    let output = Output::of(Command::new(program).args(args).output().unwrap());
    assert_eq!(output.code, Some(0), "{} {}\n{output}", program.display(), args.join(" "));
}

/// A server from the Python package index, in an environment of its own in the target directory.
fn python(name: &str) -> PathBuf {
    static SERVERS: OnceLock<PathBuf> = OnceLock::new();
    let dir = SERVERS.get_or_init(|| {
        let dir = directory();
        if !dir.join("bin/wsgidav").exists() || !dir.join("bin/moto_server").exists() {
            install(Path::new("python3"), &["-m", "venv", dir.to_str().unwrap()]);
            let packages = ["install", "-q", "moto[server,s3]==5.2.5", "wsgidav==4.4.0", "cheroot==11.1.2"];
            install(&dir.join("bin/pip"), &packages);
        }
        dir
    });
    dir.join("bin").join(name)
}

/// The S3 server that checks signatures. It is built once, in 3.3 minutes of CPU, and stays in the target directory.
fn s3s() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let root = directory().join("s3s");
        let program = root.join("bin/s3s-fs");
        if !program.exists() {
            let (root, target) = (root.to_str().unwrap(), root.join("target"));
            let which = ["install", "-q", "--locked", "--version", "0.14.1", "--features", "binary", "s3s-fs"];
            let places = ["--root", root, "--target-dir", target.to_str().unwrap()];
            install(Path::new(env!("CARGO")), &[&which[..], &places[..]].concat());
            fs::remove_dir_all(target).unwrap();
        }
        program
    });
    built.clone()
}

/// nginx, if this machine has it or Debian's package of it can be had: it is only unpacked into the target directory.
fn nginx() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let find = || {
        let here = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
        let root = directory().join("nginx");
        let program = root.join("usr/sbin/nginx");
        if here {
            return Some(PathBuf::from("nginx"));
        }
        if !program.exists() {
            fs::create_dir_all(&root).unwrap();
            let unpack = "apt-get -q download nginx && dpkg -x nginx_*.deb . && rm nginx_*.deb";
            let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
            quiet(Command::new("sh").args(["-c", unpack]).current_dir(&root)).ok();
        }
        program.exists().then_some(program)
    };
    FOUND.get_or_init(find).clone()
}

/// A server that runs; killed when dropped.
pub struct Server {
    child: Child,
    program: PathBuf,
    args: Vec<String>,
    pub port: u16,
}

impl Server {
    pub fn start(program: &Path, args: &dyn Fn(u16) -> Vec<String>) -> Self {
        // Another may take the port before the server does; then it ends, and the next one is tried.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let args = args(port);
            let mut server = Self { child: spawn(program, &args), program: program.to_owned(), args, port };
            if server.listens() {
                return server;
            }
        }
        panic!("{} does not start", program.display());
    }

    fn listens(&mut self) -> bool {
        let mut ended = false;
        until(&format!("{} listens", self.program.display()), || {
            ended = self.child.try_wait().unwrap().is_some();
            ended || TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        });
        !ended
    }

    pub fn dav(root: &Path) -> Self {
        let root = root.to_str().unwrap().to_owned();
        Self::start(&python("wsgidav"), &|port| {
            ["--host=127.0.0.1", &format!("--port={port}"), &format!("--root={root}"), "--auth=anonymous"]
                .map(str::to_owned)
                .to_vec()
        })
    }

    /// nginx over a directory, with more in its `location`; nothing if there is none to be had.
    pub fn nginx(root: &Path, location: &str) -> Option<Self> {
        let program = nginx()?;
        let place = |name: &str| root.join(name).display().to_string();
        fs::create_dir_all(root.join("www")).unwrap();
        // Its own user is to write there, if root starts it.
        for dir in ["", "www"] {
            fs::set_permissions(root.join(dir), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let temps = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temps: String = temps.iter().map(|name| format!("{name}_temp_path {};\n", place(name))).collect();
        let (pid, log, www, file) = (place("pid"), place("error.log"), place("www"), place("nginx.conf"));
        Some(Self::start(&program, &|port| {
            let config = format!(
                "daemon off;\npid {pid};\nevents {{}}\nhttp {{\naccess_log off;\n{temps}\
                 server {{\nlisten 127.0.0.1:{port};\nroot {www};\nlocation / {{\n{location}\n}}\n}}\n}}\n"
            );
            fs::write(&file, config).unwrap();
            ["-e", &log, "-c", &file].map(str::to_owned).to_vec()
        }))
    }

    /// S3 in memory, with a bucket `team`; whoever asks is answered.
    pub fn moto() -> Self {
        let server = Self::start(&python("moto_server"), &|port| {
            ["-H", "127.0.0.1", "-p", &port.to_string()].map(str::to_owned).to_vec()
        });
        server.put("/team", "");
        server
    }

    /// Puts something there, as whoever asks without credentials.
    pub fn put(&self, path: &str, body: &str) {
        let made = TcpStream::connect(("127.0.0.1", self.port)).and_then(|mut stream| {
            let head = format!("PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close");
            stream.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).map(|_| answer)
        });
        assert!(made.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 20")), "{made:?}");
    }

    /// S3 in a directory, with a bucket `team`, for [`KEYS`] alone.
    pub fn s3s(root: &Path) -> Self {
        fs::create_dir_all(root.join("team")).unwrap();
        let root = root.to_str().unwrap().to_owned();
        Self::start(&s3s(), &|port| {
            let keys = ["--access-key", KEYS[0], "--secret-key", KEYS[1]];
            let mut args = ["--host", "127.0.0.1", "--port", &port.to_string()].map(str::to_owned).to_vec();
            args.extend(keys.map(str::to_owned));
            args.push(root.clone());
            args
        })
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, where it was.
    pub fn back(&mut self) {
        self.child = spawn(&self.program, &self.args);
        assert!(self.listens());
    }
}

fn spawn(program: &Path, args: &[String]) -> Child {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whom [`Server::s3s`] lets in.
pub const KEYS: [&str; 2] = ["flowtest", "planted-s3-secret"];

/// The settings of a server that speaks S3 at a port.
pub fn endpoint(port: u16) -> String {
    format!("endpoint = \"http://127.0.0.1:{port}\"\nregion = \"us-east-1\"\n")
}

/// Passes on what comes to a server, notes the heads of requests, and holds what it is told to.
pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

#[derive(Default)]
struct State {
    heads: Vec<String>,
    rule: Option<Rule>,
    held: usize,
}

/// Holds requests that `picks` picks, or the answers to them, behind so many bytes.
#[derive(Clone, Copy)]
struct Rule {
    picks: fn(&str) -> bool,
    answers: bool,
    after: usize,
}

impl Proxy {
    pub fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::<Shared>::default();
        let all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                // Who comes while the server is down is turned away.
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                let picked = Arc::<Mutex<Option<Rule>>>::default();
                for up in [true, false] {
                    let (client, server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                    let (from, to) = if up { (client, server) } else { (server, client) };
                    let (all, picked) = (Arc::clone(&all), Arc::clone(&picked));
                    std::thread::spawn(move || all.pump(&from, &to, up, &picked));
                }
            }
        });
        Self { port, shared }
    }

    /// From now on holds the requests with such a head, when so many bytes of them went.
    pub fn hold_requests(&self, picks: fn(&str) -> bool, after: usize) {
        self.shared.state.lock().unwrap().rule = Some(Rule { picks, answers: false, after });
    }

    /// From now on holds the answers to such requests, when so many bytes of them went.
    pub fn hold_answers(&self, picks: fn(&str) -> bool, after: usize) {
        self.shared.state.lock().unwrap().rule = Some(Rule { picks, answers: true, after });
    }

    pub fn held(&self) -> usize {
        self.shared.state.lock().unwrap().held
    }

    /// Lets everything pass, from now on.
    pub fn release(&self) {
        let mut state = self.shared.state.lock().unwrap();
        (state.rule, state.held) = (None, 0);
        self.shared.released.notify_all();
    }

    /// The heads of the requests that came since this was asked the last time.
    pub fn heads(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.state.lock().unwrap().heads)
    }
}

impl Shared {
    fn pump(&self, mut from: &TcpStream, mut to: &TcpStream, up: bool, picked: &Mutex<Option<Rule>>) {
        let mut buffer = vec![0; 1 << 16];
        let mut left = usize::MAX;
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let bytes = &buffer[..n];
            let mut state = self.state.lock().unwrap();
            if up && let Some(head) = head(bytes) {
                *picked.lock().unwrap() = state.rule.filter(|rule| (rule.picks)(&head));
                state.heads.push(head);
                left = usize::MAX;
            }
            match *picked.lock().unwrap() {
                Some(rule) if rule.answers != up => left = left.min(rule.after),
                _ => left = usize::MAX,
            }
            drop(state);
            let pass = n.min(left);
            if to.write_all(&bytes[..pass]).is_err() {
                break;
            }
            if left != usize::MAX {
                left -= pass;
            }
            if left == 0 {
                let mut state = self.state.lock().unwrap();
                if state.rule.is_some() {
                    state.held += 1;
                    drop(self.released.wait_while(state, |state| state.rule.is_some()).unwrap());
                }
                *picked.lock().unwrap() = None;
                left = usize::MAX;
                if to.write_all(&bytes[pass..]).is_err() {
                    break;
                }
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }
}

/// The head of a request that begins in these bytes.
fn head(bytes: &[u8]) -> Option<String> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    head.lines().next()?.ends_with(" HTTP/1.1").then(|| head.to_owned())
}

/// A server that answers as it is told to: with the bytes that `answer` makes of a request's head.
pub fn answering(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                let (mut request, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
                let head = loop {
                    match stream.read(&mut buffer) {
                        Ok(0) | Err(_) => return,
                        Ok(n) => request.extend_from_slice(&buffer[..n]),
                    }
                    if let Some(head) = head(&request) {
                        break head;
                    }
                };
                let _ = stream.write_all(&answer(&head)).and_then(|()| stream.shutdown(Shutdown::Write));
                // Who is still sending must not be cut off before he reads the answer.
                while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
            });
        }
    });
    port
}

/// An answer without surprises.
pub fn plain(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// What a request's head asks for: its method, and the file's name under the server's root.
pub fn asked(head: &str) -> (&str, &str) {
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    (method, path.split('?').next().unwrap().trim_start_matches('/'))
}

//! A real browser: headless Chromium, driven through chromedriver as a person would by a mouse, with its console.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// Installs the browser where it is missing and this may be done; whether it is there.
fn is_there() -> bool {
    static THERE: OnceLock<bool> = OnceLock::new();
    let runs = |program: &str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    };
    *THERE.get_or_init(|| {
        let both = || runs("chromium") && runs("chromedriver");
        if !both() {
            let install = "apt-get -q update && apt-get -q install -y --no-install-recommends chromium chromium-driver";
            let mut shell = Command::new("sh");
            shell.args(["-c", install]).env("DEBIAN_FRONTEND", "noninteractive");
            shell.stdout(Stdio::null()).stderr(Stdio::null()).status().ok();
        }
        let there = both();
        if !there {
            eprintln!("left out: no chromium and chromedriver here, and apt-get cannot install them");
        }
        there
    })
}

/// A browser with one window. It ends when dropped.
pub struct Browser {
    driver: Child,
    /// Read to its end by nobody, and kept so that the driver can go on writing.
    _stdout: BufReader<ChildStdout>,
    port: u16,
    session: String,
    _profile: TempDir,
}

impl Browser {
    /// Starts one, with a profile of its own; nothing, with a word, where there is none.
    pub fn start() -> Option<Self> {
        if !is_there() {
            return None;
        }
        let mut driver = Command::new("chromedriver");
        let mut driver = driver.arg("--port=0").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(driver.stdout.take().unwrap());
        let mut line = String::new();
        let port = loop {
            line.clear();
            assert!(stdout.read_line(&mut line).unwrap() > 0, "chromedriver does not start");
            if let Some((_, port)) = line.trim_end().trim_end_matches('.').rsplit_once("successfully on port ") {
                break port.parse().unwrap();
            }
        };
        let profile = tempfile::tempdir().unwrap();
        let mut browser = Self { driver, _stdout: stdout, port, session: String::new(), _profile: profile };
        let profile = format!("--user-data-dir={}", browser._profile.path().display());
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=1200,900",
            &profile,
        ];
        let capabilities = json!({ "alwaysMatch": {
            "goog:chromeOptions": { "args": args }, "goog:loggingPrefs": { "browser": "ALL" } } });
        let session = browser.ask("POST", "/session", &json!({ "capabilities": capabilities }));
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    fn ask(&self, method: &str, path: &str, body: &Json) -> Json {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let body = body.to_string();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        // It leaves the connection open whatever it is asked for, so its end says nothing.
        let mut answer = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let begin = head.len();
            assert!(answer.read_line(&mut head).unwrap() > 0, "{path}: {head}");
            if let Some((name, value)) = head[begin..].split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        answer.read_exact(&mut body).unwrap();
        let mut body: Json = serde_json::from_slice(&body).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {body}");
        body["value"].take()
    }

    fn post(&self, path: &str, body: &Json) -> Json {
        self.ask("POST", &format!("{}{path}", self.session), body)
    }

    /// Opens an address.
    pub fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// Runs a function's body in the page; what it returns.
    pub fn script(&self, body: &str) -> Json {
        self.post("/execute/sync", &json!({ "script": body, "args": [] }))
    }

    /// Asks the browser itself.
    pub fn devtools(&self, command: &str, params: &Json) -> Json {
        self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": params }))
    }

    /// What the console says since it was asked last, of errors and warnings.
    pub fn complaints(&self) -> Vec<String> {
        let lines = self.post("/se/log", &json!({ "type": "browser" }));
        let lines = lines.as_array().unwrap().iter();
        let grave = |line: &&Json| ["SEVERE", "WARNING"].contains(&line["level"].as_str().unwrap());
        lines.filter(grave).map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    }

    /// A window of this width, of a phone or not.
    pub fn width(&self, width: u32, phone: bool) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone });
        self.devtools("Emulation.setDeviceMetricsOverride", &metrics);
    }

    /// The system's colours: `dark` or `light`.
    pub fn colors(&self, scheme: &str) {
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools("Emulation.setEmulatedMedia", &features);
    }

    /// The whole page as a picture: kept in the target directory under this name, it has so many colours.
    pub fn picture(&self, name: &str) -> usize {
        let taken = self.devtools("Page.captureScreenshot", &json!({ "format": "png", "captureBeyondViewport": true }));
        let bytes = STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
        let kept = pictures().join(format!("{name}.png"));
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        fs::write(&kept, &bytes).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        let colors = pixels[..info.buffer_size()].chunks(info.color_type.samples());
        colors.collect::<std::collections::BTreeSet<_>>().len()
    }
}

/// Where pictures are kept for who wants to look at them.
fn pictures() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_flow")).ancestors().nth(2).unwrap().join("pictures")
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Else the browser outlives its driver.
        if !self.session.is_empty()
            && let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port))
        {
            write!(stream, "DELETE {} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", self.session).ok();
            stream.read_exact(&mut [0]).ok();
        }
        self.driver.kill().ok();
        self.driver.wait().ok();
    }
}

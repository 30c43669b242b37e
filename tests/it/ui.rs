//! `flow ui`: runs looked at in a real browser while they go on, and who may look.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Stdio},
};

use crate::{
    browser::Browser,
    support::{Sandbox, until},
};

/// `flow ui` that listens. Killed when dropped.
struct Ui {
    child: Child,
    url: String,
}

impl Ui {
    fn start(sandbox: &Sandbox, args: &[&str]) -> Self {
        let mut flow = sandbox.flow(&[&["ui", "--port", "0"], args].concat());
        let mut child = flow.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut url).unwrap();
        Self { child, url: url.trim_end().to_owned() }
    }

    fn port(&self) -> u16 {
        let rest = self.url.strip_prefix("http://").unwrap();
        rest.split('/').next().unwrap().rsplit(':').next().unwrap().parse().unwrap()
    }

    /// The answer to a request, as it comes over the wire.
    fn ask(&self, method: &str, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn status(&self, method: &str, path: &str, headers: &str) -> u16 {
        self.ask(method, path, headers).split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Ends it as Ctrl-C does; its exit code.
    fn interrupt(mut self) -> Option<i32> {
        // SAFETY: plain system call on a child that has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, libc::SIGINT) }, 0);
        self.child.wait().unwrap().code()
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const HERE: &str = "Host: localhost\r\n";

fn text(browser: &Browser) -> String {
    browser.script("return document.body.innerText").as_str().unwrap().to_owned()
}

/// The id of the newest run.
fn newest(sandbox: &Sandbox) -> String {
    let mut ids: Vec<String> = fs::read_dir(sandbox.cache().join("runs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    ids.sort();
    ids.pop().unwrap()
}

#[test]
fn a_run_is_followed_without_a_reload_until_it_ends() {
    let sandbox = Sandbox::new();
    let wait = |name: &str| format!("until [ -e {} ]; do sleep 0.02; done", sandbox.outside(name).display());
    sandbox.pipeline(&format!(
        "[stage.quick]\nkind = \"command\"\nrun = \"echo quick > {{out}}/a\"\n\
         [stage.slow]\nkind = \"command\"\nin = {{ x = \"quick\" }}\n\
         run = '''\necho begun; {}; echo '<i>further</i>'; {}; cp {{in.x}}/a {{out}}/b\n'''\n",
        wait("one"),
        wait("two")
    ));
    let Some(browser) = Browser::start() else { return };
    let ui = Ui::start(&sandbox, &[]);
    browser.open(&ui.url);
    until("the list is empty", || text(&browser).contains("Nothing ran yet"));
    let run = sandbox.start(&["run", "p.toml"]);
    until("the run is in the list", || text(&browser).contains("running"));
    assert_eq!(browser.script("return document.querySelectorAll('tbody tr').length"), 1);
    browser.script("document.querySelector('tbody a').click()");

    until("the log is told", || text(&browser).contains("begun"));
    let kept = "window.kept = 1; document.getElementById('r0-stage-quick').open = true; return 1";
    until("the page is there", || browser.script("return document.getElementById('r0-stage-quick') != null") == true);
    browser.script(kept);
    assert_eq!(browser.script("return document.querySelectorAll('.dag .st-run').length > 0"), true);
    fs::write(sandbox.outside("one"), "").unwrap();
    until("the log goes on", || text(&browser).contains("<i>further</i>"));
    assert!(browser.picture("ui-running") > 50);
    fs::write(sandbox.outside("two"), "").unwrap();
    until("the run has ended", || browser.script("return document.getElementById('link').textContent") == "ended");
    assert!(run.end().code == Some(0));
    assert_eq!(browser.script("return document.querySelector('h1 .st').textContent"), "done");
    assert_eq!(browser.script("return document.querySelectorAll('.dag .st-run').length"), 0);
    let as_it_was = "return [window.kept, document.getElementById('r0-stage-quick').open]";
    assert_eq!(browser.script(as_it_was), serde_json::json!([1, true]), "not loaded anew, and open as it was left");
    assert!(browser.picture("ui-ended") > 50);
    assert_eq!(browser.complaints(), Vec::<String>::new());

    // A run that is let go of while its page is there.
    let id = newest(&sandbox);
    assert_eq!(ui.status("GET", &format!("/run/{id}"), HERE), 200);
    fs::remove_dir_all(sandbox.cache().join("runs").join(&id)).unwrap();
    until("it is gone", || ui.status("GET", &format!("/run/{id}"), HERE) == 404);
    assert_eq!(ui.interrupt(), Some(130));
}

#[test]
fn curves_grow_while_a_training_goes_on() {
    if std::env::var_os("FLOW_TORCH").is_none() {
        eprintln!("left out: FLOW_TORCH names no trainer (`cargo xtask test` builds it)");
        return;
    }
    let Some(browser) = Browser::start() else { return };
    let sandbox = Sandbox::shipped();
    let small = ["params.shards={0..1}", "stage.train.max_steps=60", "stage.train.seq_length=64", "stage.eval.limit=2"];
    let small = small.iter().flat_map(|set| ["--set", set]);
    let args = ["run", "pipelines/ja_wiki.toml", "--profile", "mini"].into_iter().chain(small).collect::<Vec<_>>();
    let ui = Ui::start(&sandbox, &[]);
    let run = sandbox.start(&args);
    until("the run began", || fs::read_dir(sandbox.cache().join("runs")).is_ok_and(|mut runs| runs.next().is_some()));
    browser.open(&format!("{}run/{}", ui.url, newest(&sandbox)));
    let points = || {
        let points = "const path = document.querySelector('[data-chart=loss] path.line');
            return path ? path.getAttribute('d').split(/[ML]/).length - 1 : 0";
        browser.script(points).as_u64().unwrap()
    };
    until("there are points", || points() > 1);
    let first = points();
    browser.script("window.kept = 1; document.getElementById('log').click()");
    until("there are more", || points() > first);
    until("how far it is, is told", || browser.script("return document.querySelector('progress')?.value > 1") == true);
    until("the training has ended", || points() == 60);
    assert_eq!(
        browser.script("return [window.kept, document.getElementById('log').checked]"),
        serde_json::json!([1, true])
    );
    assert!(browser.picture("ui-training") > 50);
    assert_eq!(browser.complaints(), Vec::<String>::new());
    assert_eq!(run.end().code, Some(0));
}

#[test]
fn only_who_may_look_sees_anything() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/a\"");
    sandbox.ok(&["run", "p.toml"]);
    let ui = Ui::start(&sandbox, &[]);
    let run = format!("/run/{}", newest(&sandbox));
    for path in ["/", &run] {
        assert_eq!(ui.status("GET", path, HERE), 200, "{path}");
        for other in ["", "Host: evil.example\r\n", "Host: localhost\r\nOrigin: http://evil.example\r\n"] {
            assert!([400, 403].contains(&ui.status("GET", path, other)), "{path} {other}");
        }
        assert_eq!(ui.status("POST", path, HERE), 405);
    }
    for path in ["/run/../../etc/passwd", "/run/", "/run/20260101-000000-000abcd", "/x", "/events/%2e%2e"] {
        assert_eq!(ui.status("GET", path, HERE), 404, "{path}");
    }
    let head = ui.ask("GET", "/", HERE);
    for header in
        ["content-security-policy: default-src 'none'", "x-content-type-options: nosniff", "cache-control: no-store"]
    {
        assert!(head.contains(header), "{head}");
    }
    // The events of a run that is over are told once, and end.
    let events = ui.ask("GET", &format!("/events{}", &run[4..]), HERE);
    assert!(
        events.contains("event: section") && events.contains("event: end\n") && events.contains("data: \"ended\"\n"),
        "{events}"
    );
    // Who goes away without a word leaves nothing behind that others wait for.
    let gone: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", ui.port())).unwrap();
            write!(stream, "GET /events HTTP/1.1\r\n{HERE}\r\n").unwrap();
            stream
        })
        .collect();
    drop(gone);
    assert_eq!(ui.status("GET", "/", HERE), 200);
    assert_eq!(ui.interrupt(), Some(130));

    let ui = Ui::start(&sandbox, &["--host", "0.0.0.0"]);
    let (_, query) = ui.url.split_once('?').unwrap();
    let there = "Host: node7\r\n";
    assert_eq!(ui.status("GET", "/", there), 401);
    assert_eq!(ui.status("GET", "/?token=x", there), 401);
    let kept = ui.ask("GET", &format!("{run}?{query}"), there);
    assert!(kept.starts_with("HTTP/1.1 303") && kept.contains(&format!("location: {run}\r\n")), "{kept}");
    let cookie = kept.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    assert_eq!(ui.status("GET", &run, &format!("{there}Cookie: {cookie}\r\n")), 200);
    assert_eq!(ui.status("GET", &run, &format!("{there}Cookie: {cookie}x\r\n")), 401);
    let wrong = sandbox.run(&["ui", "--port", &ui.port().to_string()]);
    assert_eq!(wrong.code, Some(2), "{wrong}");
    assert!(wrong.stderr.contains("--port 0"), "{wrong}");
}

/// What a node wrote is all there to read, a part at a time; and there is a lasting address of what ran last.
#[test]
fn whole_logs_are_shown_a_page_at_a_time() {
    let sandbox = Sandbox::with(
        "[stage.long]\nkind = \"command\"\nmatrix = { of = [\"a b\"] }\nrun = \"seq 100000; echo '<i>${matrix.of}</i>'\"\n",
    );
    let ui = Ui::start(&sandbox, &[]);
    assert_eq!(ui.status("GET", "/run/last", HERE), 404, "nothing ran yet");
    sandbox.ok(&["run", "p.toml"]);
    let run = format!("/run/{}", newest(&sandbox));
    let last = ui.ask("GET", "/run/last", HERE);
    assert!(last.starts_with("HTTP/1.1 303") && last.contains(&format!("location: {run}\r\n")), "{last}");
    let page = ui.ask("GET", &run, HERE);
    let link = page.split(&format!("href=\"{run}/log?node=")).nth(1).expect("a link to the log");
    let node = link.split('"').next().unwrap();
    let log = |more: &str| ui.ask("GET", &format!("{run}/log?node={node}{more}"), HERE);
    let end = log("");
    assert!(
        end.contains("page 3 of 3") && end.contains("\n100000\n&lt;i&gt;a b&lt;/i&gt;\n"),
        "the end is shown first"
    );
    let pages: String = (1..=3).map(|page| log(&format!("&page={page}"))).collect();
    let is_there = |line: usize| pages.contains(&format!("\n{line}\n"));
    assert!((2..=100_000).step_by(997).all(is_there), "every line is on some page");
    assert!(log("&page=1").contains("page=2\">Later"));
    for wrong in ["log", "log?node=nobody", "log?node=..%2Frun.json", "log?node=../../x"] {
        assert_eq!(ui.status("GET", &format!("{run}/{wrong}"), HERE), 404, "{wrong}");
    }
}

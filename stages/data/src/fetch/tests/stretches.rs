//! Big files: over several connections, and with many at once.

use std::{sync::Mutex, thread};

use super::*;

/// A big file is one of two hundred thousand bytes.
const SMALL_PIECES: Patience = Patience { piece: 100_000, ..QUICK };

fn run(stand: &Stand, stage: &Fetch) -> Result<()> {
    stand.ctx(|ctx| stage.fetch(ctx, &nowhere(), SMALL_PIECES))
}

/// The ranges that were asked for, sorted.
fn ranges(server: &Server, from: usize) -> Vec<String> {
    let requests = server.requests();
    let mut ranges: Vec<_> = requests[from..].iter().filter_map(|asked| asked.headers.get("range").cloned()).collect();
    ranges.sort_by_key(|range| range[6..].split('-').next().unwrap().parse::<u64>().unwrap());
    ranges
}

fn with_checksum(url: &str, content: &[u8]) -> Fetch {
    stage(json!({"urls": [url], "blake3": blake3::hash(content).to_string(), "size": content.len()}))
}

#[test]
fn a_big_file_comes_over_several_connections() {
    let content = noise(1_050_000);
    let body = content.clone();
    let server = Server::start(move |request, _| Answer {
        silence: Duration::from_millis(60),
        ..Answer::file(request, &body, "\"v1\"")
    });
    let stand = Stand::new();
    run(&stand, &with_checksum(&server.url("/f"), &content)).unwrap();
    assert!(stand.out("f") == content);
    assert_eq!(server.most_at_once(), 4);
    let asked = ranges(&server, 0);
    assert_eq!((asked.len(), &*asked[0], &*asked[9]), (10, "bytes=100000-199999", "bytes=1000000-1049999"));
    assert!(server.requests()[1..].iter().all(|asked| asked.headers["if-range"] == "\"v1\""));

    // Without ranges, or a name for what the ranges are of, it comes in one.
    for (etag, ranges) in [("W/\"v1\"", true), ("\"v1\"", false)] {
        let body = content.clone();
        let server = Server::start(move |request, _| {
            let answer = Answer::file(request, &body, etag);
            let headers = answer.headers.clone().into_iter().filter(|(name, _)| ranges || *name != "Accept-Ranges");
            Answer { headers: headers.collect(), ..answer }
        });
        let stand = Stand::new();
        run(&stand, &fetch(&server.url("/f"))).unwrap();
        assert!(stand.out("f") == content && server.requests().len() == 1);
    }
}

#[test]
fn what_is_missing_of_a_big_file_is_asked_for_and_nothing_else() {
    let content = noise(1_000_000);
    let body = content.clone();
    let broken = std::sync::Arc::new(Mutex::new(true));
    let breaks = std::sync::Arc::clone(&broken);
    let server = Server::start(move |request, _| {
        let answer = Answer::file(request, &body, "\"v1\"");
        let range = request.headers.get("range").map_or("", String::as_str);
        match *breaks.lock().unwrap() {
            true if range.starts_with("bytes=3") => answer.cut(40_000),
            true if range.starts_with("bytes=5") => Answer::status(404),
            _ => answer,
        }
    });
    let stand = Stand::new();
    let stage = with_checksum(&server.url("/f"), &content);
    let error = format!("{:#}", run(&stand, &stage).unwrap_err());
    assert!(error.contains("404"), "{error}");
    *broken.lock().unwrap() = false;
    let before = server.requests().len();
    stand.again();
    run(&stand, &stage).unwrap();
    assert!(stand.out("f") == content);
    // The piece at 300000 broke three times in its middle, and went on; the one at 500000 was left.
    assert_eq!(ranges(&server, before), ["bytes=500000-599999"]);
    assert!(stand.log().iter().any(|line| line.contains("900000 of them from an earlier run")), "{:?}", stand.log());
}

#[test]
fn after_a_power_loss_only_pieces_that_were_on_the_disk_count() {
    let content = noise(1_000_000);
    let body = content.clone();
    let server = Server::start(move |request, _| Answer::file(request, &body, "\"v1\""));
    let stand = Stand::new();
    let mut part = vec![0; 1_000_000];
    part[..200_000].copy_from_slice(&content[..200_000]);
    part[600_000..].copy_from_slice(&content[600_000..]);
    fs::write(stand.place("scratch/part"), part).unwrap();
    let have = json!([[0, 400_000], [600_000, 1_000_000]]);
    let pieces = json!({"total": 1_000_000, "have": have, "safe": [[0, 200_000], [600_000, 1_000_000]]});
    let origin = json!({"etag": "\"v1\"", "boot": "another start of the machine", "pieces": pieces});
    fs::write(stand.place("scratch/part.json"), origin.to_string()).unwrap();
    run(&stand, &with_checksum(&server.url("/f"), &content)).unwrap();
    assert!(stand.out("f") == content);
    assert_eq!(ranges(&server, 0).first().map(String::as_str), Some("bytes=200000-299999"));
    assert_eq!(server.requests().len(), 4);
}

#[test]
fn a_big_file_that_changes_on_its_way_is_taken_from_its_beginning() {
    let (old, new) = (noise(1_000_000), vec![7; 900_000]);
    let wanted = new.clone();
    let server = Server::start(move |request, number| match number {
        0..5 => Answer::file(request, &old, "\"v1\""),
        _ => Answer::file(request, &new, "\"v2\""),
    });
    let stand = Stand::new();
    run(&stand, &fetch(&server.url("/f"))).unwrap();
    assert!(stand.out("f") == wanted);
    assert!(stand.log().iter().any(|line| line.contains("changed while it was downloaded")), "{:?}", stand.log());
}

#[test]
fn a_server_that_wants_one_connection_gets_one() {
    let content = noise(1_000_000);
    let body = content.clone();
    let busy = Mutex::new(());
    let server = Server::start(move |request, _| match busy.try_lock() {
        Ok(_held) => {
            thread::sleep(Duration::from_millis(10));
            Answer::file(request, &body, "\"v1\"")
        }
        Err(_) => Answer::status(503),
    });
    let stand = Stand::new();
    run(&stand, &with_checksum(&server.url("/f"), &content)).unwrap();
    assert!(stand.out("f") == content);
}

#[test]
fn a_host_has_so_many_transfers_at_a_time_and_no_more() {
    let content = noise(500_000);
    let body = content.clone();
    let server = Server::start(move |request, _| Answer {
        silence: Duration::from_millis(20),
        ..Answer::file(request, &body, "\"v1\"")
    });
    thread::scope(|scope| {
        for i in 0..6 {
            let url = server.url(&format!("/{i}"));
            let content = &content;
            scope.spawn(move || {
                let mut stand = Stand::new();
                stand.network.connections = 3;
                run(&stand, &fetch(&url)).unwrap();
                assert!(stand.out(&i.to_string()) == *content);
            });
        }
    });
    assert_eq!(server.most_at_once(), 3);
}

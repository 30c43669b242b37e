//! A file in several places: the list of an entry, and mirrors.

use super::*;

fn mirrored(stand: &mut Stand, start: &str, to: &[String]) {
    stand.network.mirrors.insert(start.to_owned(), to.to_vec());
}

#[test]
fn the_next_place_is_asked_when_one_has_it_not() {
    let good = Server::start(|request, _| Answer::file(request, b"content", "\"v1\""));
    let gone = Server::start(|_, _| Answer::status(404));
    let html = Server::start(|request, _| Answer::file(request, b"<html>sorry</html>", "\"v1\""));
    let digest = blake3::hash(b"content").to_string();
    let urls = json!([[gone.url("/a/f.txt"), html.url("/b"), "http://127.0.0.1:1/c", good.url("/d")]]);
    let stage: Fetch = stage(json!({"urls": urls, "blake3": digest}));
    let stand = Stand::new();
    run(&stand, &stage, &nowhere()).unwrap();
    assert_eq!((stand.outs(), stand.out("f.txt")), (vec!["f.txt".to_owned()], b"content".to_vec()));
    assert_eq!(stand.remarks.lock().unwrap().etag, None, "another place's ETag is not the URL's");
    let log = stand.log().join("\n");
    assert!(log.contains("404") && log.contains("the blake3 of") && log.contains("trying http://"), "{log}");
    assert_eq!(serde_json::to_value(&stage).unwrap()["urls"], json!([gone.url("/a/f.txt")]), "the key knows one");
    assert_eq!(stage.pin().unwrap().url, gone.url("/a/f.txt"));

    let text =
        error(&Stand::new(), &crate::testing::stage(json!({"urls": [[gone.url("/f"), gone.url("/g")]]})), &nowhere());
    assert!(text.contains("f cannot be had in any of 2 places") && text.contains("404"), "{text}");
}

#[test]
fn what_flow_lock_pins_is_asked_of_every_place() {
    let own = Server::start(|request, _| Answer::file(request, b"content", "\"v1\""));
    let other = Server::start(|request, _| Answer::file(request, b"CONTENT", "\"v1\""));
    let mut stand = Stand::new();
    stand.write("tree/f", "content");
    let digest = crate::testing::tree(&stand.place("tree")).digest();
    stand.pinned = Some(flow_core::Pinned { digest, size: 7, etag: None, revision: None });
    mirrored(&mut stand, &own.url(""), &[other.url("/m")]);
    run(&stand, &fetch(&own.url("/f")), &nowhere()).unwrap();
    assert_eq!(stand.out("f"), b"content");
    assert_eq!(other.requests()[0].path, "/m/f");
    assert!(stand.log()[0].contains("gives something else than flow.lock pins"), "{:?}", stand.log());
    assert_eq!(stand.remarks.lock().unwrap().etag.as_deref(), Some("\"v1\""));

    // What cannot be it by its length is not downloaded.
    let longer = Server::start(|request, _| Answer::file(request, &[0; 5_000_000], "\"v1\""));
    let text = error(&stand_with(&stand), &fetch(&longer.url("/f")), &nowhere());
    assert!(text.contains("5000000 bytes there, not the 7") && text.contains("flow lock --update"), "{text}");
    let sized: Fetch = stage(json!({"urls": [longer.url("/f")], "size": 8}));
    let text = error(&Stand::new(), &sized, &nowhere());
    assert!(text.contains("not the 8 that it must have"), "{text}");
}

/// A stand with the pin of another.
fn stand_with(other: &Stand) -> Stand {
    let mut stand = Stand::new();
    stand.pinned.clone_from(&other.pinned);
    stand
}

#[test]
fn a_mirror_comes_first_and_gets_no_secrets() {
    let own = Server::start(|request, _| match request.headers.get("if-none-match") {
        Some(_) => Answer::status(304),
        None => Answer::file(request, b"content", "\"own\""),
    });
    let mirror = Server::start(|request, _| {
        assert!(!request.headers.contains_key("authorization") && !request.path.contains("token"));
        Answer::file(request, b"content", "\"mirror\"")
    });
    let url = format!("http://me:pw@127.0.0.1:{}/x/f?token=t&a=1", own.port);
    let mut stand = Stand::new();
    mirrored(&mut stand, &own.url("/x/"), &[mirror.url("/y/")]);
    run(&stand, &fetch(&url), &nowhere()).unwrap();
    assert_eq!(mirror.requests()[0].path, "/y/f?a=1");
    assert_eq!((own.requests().len(), stand.remarks.lock().unwrap().etag.clone()), (0, None));

    // Whether it changed is asked of the URL itself.
    stand.again();
    let digest = flow_core::Digest::of(b"");
    stand.before = Some(flow_core::Pinned { digest, size: 7, etag: Some("\"own\"".into()), revision: None });
    let error = run(&stand, &fetch(&url), &nowhere()).unwrap_err();
    assert!(error.is::<flow_core::Unchanged>(), "{error:#}");
    assert_eq!((own.requests().len(), mirror.requests().len()), (1, 1));
}

#[test]
fn entries_of_several_places_are_checked() {
    let nodes =
        expand::<Fetch>(json!({"urls": [["https://a.example/{0..1}.gz", "https://b.example/x{0..1}"], "c"]})).unwrap();
    assert_eq!(nodes.len(), 3);
    assert_eq!(nodes[1].urls[0][1].text(), "https://b.example/x1");
    for (urls, field, words) in [
        (json!([["https://a.example/{0..1}", "https://b.example/{0..2}"]]), "urls.0", "stand for 2 and 3 URLs"),
        (json!(["a", ["https://a.example/f", "hf://b/c"]]), "urls.1.1", "named by its URLs"),
        (json!([["data/f", "https://a.example/f"]]), "urls.0.0", "named by its URLs"),
    ] {
        let error = expand::<Fetch>(json!({ "urls": urls })).unwrap_err();
        assert!(error.field.as_deref() == Some(field) && error.message.contains(words), "{error:?}");
    }
}

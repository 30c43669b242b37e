//! Against a hub with its routes, and the cache that its own tools leave.

use super::*;
use crate::{fetch::hub_cache, http::testserver::Request};

/// A hub with one gated and one open repository.
fn hub() -> (Server, Hub) {
    let weights = noise(500_000);
    let store = {
        let weights = weights.clone();
        Server::start(move |request, number| {
            assert!(!request.headers.contains_key("authorization"), "the token is for the hub alone");
            let answer = Answer::file(request, &weights, "\"store\"");
            if number == 0 { answer.cut(200_000) } else { answer }
        })
    };
    let sha256 = <sha2::Sha256 as sha2::Digest>::digest(&weights);
    let sha256: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    let moved = store.url("/weights");
    let server = Server::start(move |request: &Request, _| {
        let allowed = request.headers.get("authorization").is_some_and(|token| token == "Bearer hf_secret");
        match request.path.as_str() {
            "/api/models/org/open/revision/main?blobs=true"
            | "/api/models/org/open/revision/v1?blobs=true"
            | "/api/models/org/open/revision/c0ffee?blobs=true" => Answer::body(
                json!({"sha": "c0ffee", "siblings": [
                    {"rfilename": "sub/model.safetensors", "size": 500_000, "lfs": {"sha256": sha256, "size": 500_000}},
                    {"rfilename": "config.json", "size": 17},
                    {"rfilename": "original/params.json", "size": 2},
                ]})
                .to_string(),
            ),
            "/org/open/resolve/c0ffee/config.json" => Answer::file(request, b"{\"vocab_size\": 8}", "\"c\""),
            "/org/open/resolve/c0ffee/original/params.json" => Answer::file(request, b"{}", "\"p\""),
            "/org/open/resolve/c0ffee/sub/model.safetensors" => Answer::status(302).with("Location", moved.as_str()),
            path if path.contains("/org/gated/") && !allowed => Answer::status(403).with("X-Error-Code", "GatedRepo"),
            path if path.contains("/org/private/") => Answer::status(401),
            _ => Answer::status(404),
        }
    });
    let endpoint = server.url("");
    (server, Hub { endpoint, ..Hub::default() })
}

#[test]
fn a_repository_is_taken_from_one_commit_and_verified() {
    let (server, hub) = hub();
    let stand = Stand::new();
    fs::create_dir(stand.place("scratch/an-old-commit")).unwrap();
    let stage: Fetch = stage(json!({"urls": ["hf://org/open"], "exclude": ["original/*"]}));
    run(&stand, &stage, &hub).unwrap();
    assert_eq!(stand.outs(), ["config.json", "sub/model.safetensors"]);
    assert!(stand.out("sub/model.safetensors") == noise(500_000));
    assert!(!stand.place("scratch/an-old-commit").exists());
    assert!(stand.log().iter().any(|line| line == "org/open at commit c0ffee: 2 files"), "{:?}", stand.log());

    let with_token = Hub { token: Some("hf_secret".into()), ..hub.clone() };
    let stand = Stand::new();
    run(&stand, &fetch("hf://org/open@v1/sub/*"), &with_token).unwrap();
    assert_eq!(stand.outs(), ["sub/model.safetensors"]);
    let asked = server.requests();
    assert_eq!(asked.last().unwrap().headers["authorization"], "Bearer hf_secret");
    assert_eq!(stand.remarks.lock().unwrap().revision.as_deref(), Some("c0ffee"));

    // flow.lock pins the commit: the branch may stand where it will.
    let pinned = |revision: &str| flow_core::Pinned {
        digest: flow_core::Digest::of(b""),
        size: 0,
        etag: None,
        revision: Some(revision.into()),
    };
    let mut stand = Stand::new();
    stand.pinned = Some(pinned("c0ffee"));
    run(&stand, &fetch("hf://org/open/config.json"), &hub).unwrap();
    assert!(server.requests().iter().any(|asked| asked.path == "/api/models/org/open/revision/c0ffee?blobs=true"));
    stand.pinned = Some(pinned("badc0de"));
    stand.again();
    let text = error(&stand, &fetch("hf://org/open/config.json"), &hub);
    assert!(text.contains("has no commit badc0de, which flow.lock pins"), "{text}");
    stand.pinned = None;
    stand.before = Some(pinned("c0ffee"));
    let unchanged = run(&stand, &fetch("hf://org/open/config.json"), &hub).unwrap_err();
    assert!(unchanged.is::<flow_core::Unchanged>(), "{unchanged:#}");

    let text = error(&Stand::new(), &fetch("hf://org/open/*.bin"), &hub);
    assert!(text.contains("none of the 3 files of org/open matches"), "{text}");
}

#[test]
fn a_mirror_of_the_hub_is_asked_before_it_and_gets_no_token() {
    let (server, hub) = hub();
    let hub = Hub { token: Some("hf_secret".into()), ..hub };
    let far = server.url("");
    let mirror = Server::start(move |request, number| {
        assert!(!request.headers.contains_key("authorization"));
        if number > 0 {
            Answer::status(404)
        } else {
            Answer::status(302).with("Location", format!("{far}{}", request.path))
        }
    });
    let mut stand = Stand::new();
    stand.network.mirrors.insert(hub.endpoint.clone(), vec!["http://127.0.0.1:1/".to_owned(), mirror.url("")]);
    // The first mirror does not answer, the second knows the commit and has no files.
    run(&stand, &fetch("hf://org/open/config.json"), &hub).unwrap();
    assert_eq!(stand.outs(), ["config.json"]);
    assert_eq!(mirror.requests().len(), 2);
    let last = server.requests().pop().unwrap();
    assert_eq!(
        (&*last.path, &*last.headers["authorization"]),
        ("/org/open/resolve/c0ffee/config.json", "Bearer hf_secret")
    );
}

#[test]
fn a_refusal_of_the_hub_says_which_page_and_which_token() {
    let (_, hub) = hub();
    let text = error(&Stand::new(), &fetch("hf://org/gated"), &hub);
    assert!(text.contains(&format!("visit {}/org/gated", hub.endpoint)) && text.contains("HF_TOKEN"), "{text}");
    let text = error(&Stand::new(), &fetch("hf://org/private"), &hub);
    assert!(text.contains("gated, private, or does not exist, and there is no token"), "{text}");
    let wrong = Hub { token: Some("wrong".into()), ..hub.clone() };
    let text = error(&Stand::new(), &fetch("hf://org/private"), &wrong);
    assert!(text.contains("does not accept the token") && !text.contains("wrong"), "{text}");
    let text = error(&Stand::new(), &fetch("hf://org/open@nowhere"), &hub);
    assert!(text.contains("has no revision `nowhere`"), "{text}");
}

/// A cache as `hf download` leaves it, of commit `c0ffee`: one file in LFS, one not.
fn hub_cache(stand: &Stand, weights: &[u8]) -> hub_cache::HubCache {
    let digest = <sha2::Sha256 as sha2::Digest>::digest(noise(500_000));
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let root = "hub/models--org--open";
    stand.write(&format!("{root}/refs/main"), "c0ffee");
    stand.write(&format!("{root}/blobs/{digest}"), weights);
    stand.write(&format!("{root}/blobs/0a1b"), "{}");
    let snapshot = stand.place(root).join("snapshots/c0ffee");
    fs::create_dir_all(snapshot.join("sub")).unwrap();
    std::os::unix::fs::symlink("../../blobs/0a1b", snapshot.join("config.json")).unwrap();
    std::os::unix::fs::symlink(format!("../../../blobs/{digest}"), snapshot.join("sub/model.safetensors")).unwrap();
    hub_cache::HubCache(stand.place("hub"))
}

#[test]
fn the_cache_of_the_hubs_own_tools_is_used() {
    let (server, hub) = hub();
    let stand = Stand::new();
    let cached = Hub { cache: Some(hub_cache(&stand, &noise(500_000))), ..hub };
    run(&stand, &fetch("hf://org/open"), &cached).unwrap();
    assert!(stand.out("sub/model.safetensors") == noise(500_000));
    assert_eq!(
        stand.out("config.json"),
        b"{\"vocab_size\": 8}",
        "what the hub does not name by content it is asked for"
    );
    assert!(server.requests().iter().all(|asked| !asked.path.contains("model.safetensors")));

    // Nobody is asked, and what is there is taken; a name that is not there is told.
    let offline = Hub { offline: true, cache: cached.cache.clone(), ..nowhere() };
    stand.again();
    fs::remove_dir_all(stand.place("scratch")).unwrap();
    fs::create_dir(stand.place("scratch")).unwrap();
    run(&stand, &fetch("hf://org/open"), &offline).unwrap();
    assert_eq!(stand.outs(), ["config.json", "sub/model.safetensors"]);
    assert_eq!(stand.remarks.lock().unwrap().revision.as_deref(), Some("c0ffee"));
    for url in ["hf://org/open@v1", "hf://org/other"] {
        let text = error(&Stand::new(), &fetch(url), &offline);
        assert!(text.contains("HF_HUB_OFFLINE is set") && text.contains("hf download org/"), "{text}");
    }

    // A blob that is not what it is called by is not taken.
    let damaged = Stand::new();
    let offline = Hub { cache: Some(hub_cache(&damaged, &[0; 500_000])), ..offline };
    let text = error(&damaged, &fetch("hf://org/open"), &offline);
    assert!(text.contains("the sha256 of") && text.contains("model.safetensors"), "{text}");
}

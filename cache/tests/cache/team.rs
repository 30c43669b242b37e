//! Two caches and the team's cache between them, a shared directory: what comes is whole and what it says, or a miss.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use flow_cache::{Cache, Location, Outcome, Pushed, RemoteConfig, TeamResult, Trust, generate_key};
use flow_core::{Cancel, Key};
use tempfile::TempDir;

use crate::kit::{make, parts};

/// A team of people who share a directory.
struct Team {
    dir: TempDir,
}

impl Team {
    fn new() -> Self {
        let team = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(team.remote()).unwrap();
        team
    }

    fn remote(&self) -> PathBuf {
        self.dir.path().join("remote")
    }

    fn person(&self, name: &str, trust: Trust) -> Cache {
        let cache = Cache::open(&self.dir.path().join(name)).unwrap();
        let location = Location::parse(self.remote().to_str().unwrap()).unwrap();
        let (endpoint, region, push_limit) = (None, None, None);
        cache.connect(RemoteConfig { location, write: true, push_limit, endpoint, region, trust });
        cache
    }

    fn files(&self, of: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for shard in fs::read_dir(self.remote().join(of)).unwrap() {
            files.extend(fs::read_dir(shard.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
        }
        files.sort();
        files
    }
}

fn push(cache: &Cache, key: Key) -> Pushed {
    let mut became = None;
    cache.remote().unwrap().push_now(&[key], &Cancel::default(), |pushed| became = Some(pushed)).unwrap();
    became.unwrap()
}

fn ask(cache: &Cache, key: Key) -> Option<Arc<TeamResult>> {
    cache.remote().unwrap().ask_all(&[key]).remove(0)
}

fn pull(cache: &Cache, result: &TeamResult) -> anyhow::Result<Outcome> {
    cache.remote().unwrap().pull_now(result, &|_| (), &Cancel::default())
}

fn noise(n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

fn replace(path: &Path, bytes: &[u8]) {
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_record_is_enough_until_somebody_wants_the_bytes() {
    let team = Team::new();
    let (alice, bob) = (team.person("alice", Trust::default()), team.person("bob", Trust::default()));
    let (zeros, noise) = (vec![0; 1 << 20], noise(3 << 20));
    let made = make(&alice, &parts(1), &[("zeros", &zeros), ("sub/noise", &noise), ("empty", b""), ("again", &noise)]);
    assert!(matches!(push(&alice, made.key), Pushed::New(_)));
    assert_eq!(push(&alice, made.key), Pushed::Known);
    let names: Vec<_> = team.files("objects").iter().map(|path| path.extension().is_some()).collect();
    assert_eq!((names.len(), names.iter().filter(|packed| **packed).count()), (3, 1), "what pays is compressed");

    assert!(ask(&bob, Key([7; 32])).is_none());
    let found = ask(&bob, made.key).unwrap();
    assert!(found.by.contains('@'), "{}", found.by);
    assert_eq!(found.record.tree, *made.tree);
    let to_fetch = found.to_fetch(&bob);
    assert!((3 << 20..(3 << 20) + 10_000).contains(&to_fetch), "{to_fetch}");
    assert!(bob.lookup(&made.key).unwrap().is_none(), "nothing was fetched");
    // The record is remembered, also where the remote is gone.
    fs::rename(team.remote(), team.dir.path().join("away")).unwrap();
    let bob = team.person("bob", Trust::default());
    assert_eq!(bob.absent(&made.key).unwrap().unwrap().tree, made.tree);
    assert!(pull(&bob, &found).is_err());
    fs::rename(team.dir.path().join("away"), team.remote()).unwrap();

    let pulled = pull(&bob, &found).unwrap();
    assert_eq!(pulled.tree, made.tree);
    assert_eq!(bob.lookup(&made.key).unwrap().unwrap().cost, made.cost);
    let view = bob.view(&pulled.tree).unwrap();
    assert_eq!(fs::read(view.join("sub/noise")).unwrap(), noise);
    assert_eq!(fs::read(view.join("zeros")).unwrap(), zeros);
    assert!(bob.verify(&|_, _| ()).unwrap().damaged.is_empty());
    assert!(bob.absent(&made.key).unwrap().is_none(), "it is one of this cache now");
    assert_eq!(bob.take_warnings(), [""; 0]);
}

#[test]
fn a_broken_off_download_goes_on_and_a_wrong_part_begins_anew() {
    let team = Team::new();
    let alice = team.person("alice", Trust::default());
    let content = noise(2 << 20);
    let made = make(&alice, &parts(1), &[("noise", &content)]);
    push(&alice, made.key);
    let digest = made.tree.entries()[0].digest;
    for (name, begun) in [("bob", content[..1 << 20].to_vec()), ("carol", vec![9; 1 << 20]), ("dave", vec![9; 5 << 20])]
    {
        let cache = team.person(name, Trust::default());
        let part = cache.root().join(format!("tmp/team/{digest}.part"));
        fs::create_dir_all(part.parent().unwrap()).unwrap();
        fs::write(part, begun).unwrap();
        let came = Mutex::new(0);
        let remote = cache.remote().unwrap();
        let found = ask(&cache, made.key).unwrap();
        remote.pull_now(&found, &|bytes| *came.lock().unwrap() += bytes, &Cancel::default()).unwrap();
        assert_eq!(fs::read(cache.object_path(&digest)).unwrap(), content);
        let came = came.into_inner().unwrap();
        assert!(if name == "bob" { came == 1 << 20 } else { came >= 2 << 20 }, "{name}: {came}");
    }
}

#[test]
fn what_is_wrong_there_is_a_miss_and_the_next_push_replaces_it() {
    let team = Team::new();
    let alice = team.person("alice", Trust::default());
    let made = make(&alice, &parts(1), &[("a", &noise(50_000)), ("b", &[1; 50_000])]);
    push(&alice, made.key);
    for (n, spoil) in [
        // Truncated, replaced by something as long, longer, gone.
        |path: &Path| replace(path, &fs::read(path).unwrap()[..path.metadata().unwrap().len() as usize / 2]),
        |path: &Path| replace(path, &vec![b'x'; path.metadata().unwrap().len() as usize]),
        |path: &Path| replace(path, &noise(90_000)),
        |path: &Path| fs::remove_file(path).unwrap(),
    ]
    .into_iter()
    .enumerate()
    {
        for object in team.files("objects") {
            let good = fs::read(&object).unwrap();
            spoil(&object);
            let bob = team.person(&format!("bob{n}{}", object.extension().is_some()), Trust::default());
            let found = ask(&bob, made.key).unwrap();
            let error = format!("{:#}", pull(&bob, &found).unwrap_err());
            assert!(error.contains("its object") || error.contains("an object of it"), "{error}");
            assert!(bob.lookup(&made.key).unwrap().is_none());
            assert!(bob.verify(&|_, _| ()).unwrap().damaged.is_empty());
            // He makes it himself, and the team is healed.
            make(&bob, &parts(1), &[("a", &noise(50_000)), ("b", &[1; 50_000])]);
            assert!(matches!(push(&bob, made.key), Pushed::New(_)));
            assert_eq!(fs::read(&object).unwrap(), good);
        }
    }
}

#[test]
fn records_of_others_are_believed_if_somebody_trusted_signed_them() {
    let team = Team::new();
    let key_file = team.dir.path().join("key");
    let public = generate_key(&key_file).unwrap();
    let signing = Trust { trusted_keys: Vec::new(), sign_key: Some(key_file) };
    let trusting = Trust { trusted_keys: vec![format!("{public} alice").parse().unwrap()], sign_key: None };
    let alice = team.person("alice", signing);
    let mallory = team.person("mallory", Trust::default());
    let signed = make(&alice, &parts(1), &[("a", b"a")]);
    let unsigned = make(&mallory, &parts(2), &[("a", b"evil")]);
    push(&alice, signed.key);
    push(&mallory, unsigned.key);

    let bob = team.person("bob", trusting.clone());
    assert_eq!(ask(&bob, signed.key).unwrap().by, "alice");
    assert!(ask(&bob, unsigned.key).is_none());
    let warnings = bob.take_warnings().join("\n");
    assert!(warnings.contains("not signed") && warnings.contains("is not used"), "{warnings}");

    // Under another name, with another tree, or without its signature, the signed record is none.
    let [path] = team
        .files("results")
        .into_iter()
        .filter(|path| path.ends_with(format!("{}.json", signed.key)))
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    for forged in [
        text.replace(&signed.tree.entries()[0].digest.to_string(), &unsigned.tree.entries()[0].digest.to_string()),
        text.replace("\"signature\"", "\"unknown\""),
        text.replace("\"cost\":0.01", "\"cost\":9"),
        fs::read_to_string(team.files("results").into_iter().find(|other| *other != path).unwrap()).unwrap(),
        "{}".into(),
        String::new(),
    ] {
        replace(&path, forged.as_bytes());
        let dave = team.person(&format!("dave{}", flow_core::Digest::of(forged.as_bytes())), trusting.clone());
        assert!(ask(&dave, signed.key).is_none(), "{forged}");
        assert_eq!(dave.take_warnings().len(), 1);
    }
    // A record that is not of its key is refused by everybody.
    assert!(ask(&mallory, signed.key).is_none());
    // Who may sign puts it right; a clock that goes wrong hinders nobody.
    let alice = team.person("alice", Trust { sign_key: Some(team.dir.path().join("key")), ..Trust::default() });
    assert!(ask(&alice, signed.key).is_none());
    push(&alice, signed.key);
    fs::File::open(&path)
        .unwrap()
        .set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(1 << 30))
        .unwrap();
    let erin = team.person("erin", trusting);
    pull(&erin, &ask(&erin, signed.key).unwrap()).unwrap();
    // What she hands on is still alice's word, and not hers.
    fs::remove_file(&path).unwrap();
    push(&erin, signed.key);
    let frank =
        team.person("frank", Trust { trusted_keys: vec![format!("{public} alice").parse().unwrap()], sign_key: None });
    assert_eq!(ask(&frank, signed.key).unwrap().by, "alice");
}

#[test]
fn two_push_the_same_at_once() {
    let team = Team::new();
    let people = ["alice", "bob"].map(|name| team.person(name, Trust::default()));
    let results: Vec<Outcome> = (0..20)
        .map(|n| {
            let made = people
                .each_ref()
                .map(|cache| make(cache, &parts(n), &[("a", &noise(100_000)), ("n", &[n as u8; 9000])]));
            made[0].clone()
        })
        .collect();
    for cache in &people {
        results.iter().for_each(|made| cache.remote().unwrap().push(made.key, false));
    }
    for cache in &people {
        cache.remote().unwrap().finish(&Cancel::default(), |_| ());
        assert_eq!(cache.take_warnings(), [""; 0]);
        assert!(!cache.remote().unwrap().has_notes());
    }
    let carol = team.person("carol", Trust::default());
    for made in &results {
        assert_eq!(pull(&carol, &ask(&carol, made.key).unwrap()).unwrap().tree, made.tree);
    }
    assert_eq!(carol.remote().unwrap().keys().unwrap().len(), 20);
}

#[test]
fn who_does_not_answer_is_left_alone_and_what_is_to_be_pushed_is_kept() {
    let team = Team::new();
    let alice = team.person("alice", Trust::default());
    let made = make(&alice, &parts(1), &[("a", b"a")]);
    fs::remove_dir(team.remote()).unwrap();
    assert!(alice.remote().unwrap().keys().is_err(), "a directory that is gone is not an empty one");
    alice.remote().unwrap().push(made.key, false);
    alice.remote().unwrap().finish(&Cancel::default(), |_| ());
    assert!(ask(&alice, Key([1; 32])).is_none() && ask(&alice, Key([2; 32])).is_none());
    let warnings = alice.take_warnings();
    assert_eq!(warnings.len(), 2, "one of pushing, one of asking: {warnings:?}");
    // Another flow, a moment later, does not even ask; but who insists does.
    fs::create_dir(team.remote()).unwrap();
    let alice = team.person("alice", Trust::default());
    assert!(ask(&alice, made.key).is_none());
    assert!(alice.take_warnings().join("\n").contains("is not asked"));
    let alice = team.person("alice", Trust::default());
    assert!(alice.remote().unwrap().has_notes());
    alice.remote().unwrap().insist();
    assert!(matches!(push(&alice, made.key), Pushed::New(_)));
    assert!(ask(&alice, made.key).is_some() && !alice.remote().unwrap().has_notes());
}

#[test]
fn an_archive_carries_results_over() {
    let team = Team::new();
    let alice = team.person("alice", Trust::default());
    let made: Vec<Outcome> =
        (0..3).map(|n| make(&alice, &parts(n), &[("a", &noise(70_000)), ("n", &[n as u8; 5000])])).collect();
    let keys: Vec<Key> = made.iter().map(|made| made.key).collect();
    let file = team.dir.path().join("archive");
    let exported = alice.export(&keys, &file, &Trust::default()).unwrap();
    assert_eq!((exported.results, exported.objects), (3, 4));

    let bob = team.person("bob", Trust::default());
    assert_eq!(bob.import(fs::File::open(&file).unwrap(), &Trust::default()).unwrap(), exported);
    for made in &made {
        assert_eq!(bob.lookup(&made.key).unwrap().unwrap().tree, made.tree);
    }
    assert!(bob.verify(&|_, _| ()).unwrap().damaged.is_empty());
    assert_eq!(fs::read_dir(bob.root().join("tmp")).unwrap().count(), 0);

    // Cut off anywhere: said, and whatever is there is whole.
    let bytes = fs::read(&file).unwrap();
    // Also behind the last entry, where all has come already.
    for cut in (0..bytes.len()).step_by(bytes.len() / 40).chain(bytes.len() - 24..bytes.len()) {
        let carol = team.person(&format!("carol{cut}"), Trust::default());
        let error = format!("{:#}", carol.import(&bytes[..cut], &Trust::default()).unwrap_err());
        assert!(error.contains("cut off or damaged"), "{error}");
        assert!(carol.verify(&|_, _| ()).unwrap().damaged.is_empty());
        carol.results().for_each(|record| assert!(carol.lookup(&record.key).unwrap().is_some()));
    }
    // A byte that changed on the way.
    for at in (20..bytes.len()).step_by(bytes.len() / 20) {
        let mut spoiled = bytes.clone();
        spoiled[at] ^= 1;
        let dave = team.person(&format!("dave{at}"), Trust::default());
        assert!(dave.import(spoiled.as_slice(), &Trust::default()).is_err());
        assert!(dave.verify(&|_, _| ()).unwrap().damaged.is_empty());
    }
    // Nobody signed it.
    let public = generate_key(&team.dir.path().join("key")).unwrap();
    let trust = Trust { trusted_keys: vec![public.to_string().parse().unwrap()], sign_key: None };
    let erin = team.person("erin", Trust::default());
    let refused = erin.import(bytes.as_slice(), &trust).unwrap();
    assert_eq!((refused.results, refused.refused), (0, 3));
}

#[test]
fn what_was_freed_travels_by_its_record() {
    let team = Team::new();
    let key_file = team.dir.path().join("key");
    let public = generate_key(&key_file).unwrap();
    let signing = Trust { trusted_keys: Vec::new(), sign_key: Some(key_file) };
    let trusting = Trust { trusted_keys: vec![format!("{public} alice").parse().unwrap()], sign_key: None };
    let alice = team.person("alice", signing.clone());
    let made = make(&alice, &parts(1), &[("a", &noise(50_000))]);
    alice.free(&[made.key].into()).unwrap();
    assert!(alice.lookup(&made.key).unwrap().is_none());
    assert_eq!(push(&alice, made.key), Pushed::New(0));
    assert!(!team.remote().join("objects").exists());
    let file = team.dir.path().join("archive");
    let exported = alice.export(&[made.key], &file, &signing).unwrap();
    assert_eq!((exported.results, exported.bare, exported.objects), (1, 1, 0));

    let bob = team.person("bob", trusting.clone());
    assert!(!ask(&bob, made.key).unwrap().has_objects());
    let carol = team.person("carol", trusting.clone());
    assert_eq!(carol.import(fs::File::open(&file).unwrap(), &trusting).unwrap(), exported);
    for cache in [&bob, &carol] {
        assert_eq!(cache.absent(&made.key).unwrap().unwrap().tree, made.tree);
        assert!(cache.verify(&|_, _| ()).unwrap().is_good());
        // Handed on it is still alice's word.
        cache.export(&[made.key], &file, &Trust::default()).unwrap();
        let dave = team.person("dave", trusting.clone());
        assert_eq!(dave.import(fs::File::open(&file).unwrap(), &trusting).unwrap().refused, 0);
        fs::remove_dir_all(dave.root()).unwrap();
    }
    // Whom she does not trust any more, she does not believe what was not fetched.
    let other = generate_key(&team.dir.path().join("other")).unwrap();
    let erin = Trust { trusted_keys: vec![other.to_string().parse().unwrap()], sign_key: None };
    assert!(team.person("bob", erin).absent(&made.key).unwrap().is_none());

    // Who makes it again gives the team what it lacks.
    make(&bob, &parts(1), &[("a", &noise(50_000))]);
    assert!(matches!(push(&bob, made.key), Pushed::New(size) if size > 40_000));
    let frank = team.person("frank", Trust::default());
    assert_eq!(pull(&frank, &ask(&frank, made.key).unwrap()).unwrap().tree, made.tree);
    assert_eq!(push(&alice, made.key), Pushed::Known);
    assert!(ask(&frank, made.key).unwrap().has_objects());
}

/// A few bytes that stand for many: nothing is written of them beyond what they may be.
#[test]
fn a_bomb_stops_at_its_size() {
    const MUCH: u64 = 64 << 20;
    let team = Team::new();
    let alice = team.person("alice", Trust::default());
    let made = make(&alice, &parts(1), &[("a", &[b'a'; 200_000])]);
    push(&alice, made.key);
    let bomb = zstd::encode_all(std::io::Read::take(std::io::repeat(b'a'), MUCH), 19).unwrap();
    assert!(bomb.len() < 20_000);
    let packed = team.files("objects").remove(0);
    assert_eq!(packed.extension().unwrap(), "zst");
    replace(&packed, &bomb);
    let bob = team.person("bob", Trust::default());
    let error = format!("{:#}", pull(&bob, &ask(&bob, made.key).unwrap()).unwrap_err());
    assert!(error.contains("more bytes than it should have"), "{error}");
    // As it is, under its plain name.
    fs::remove_file(&packed).unwrap();
    fs::write(packed.with_extension(""), vec![b'a'; 300_000]).unwrap();
    let error = format!("{:#}", pull(&bob, &ask(&bob, made.key).unwrap()).unwrap_err());
    assert!(error.contains("more bytes than it should have"), "{error}");

    let file = team.dir.path().join("archive");
    alice.export(&[made.key], &file, &Trust::default()).unwrap();
    let good = zstd::decode_all(fs::File::open(&file).unwrap()).unwrap();
    // An object of more bytes than any disk has, before the good ones; and more bytes without end behind them.
    let mut header = tar::Header::new_gnu();
    let hex = "ab".repeat(32);
    header.set_path(format!("objects/ab/{hex}")).unwrap();
    header.set_size(1 << 60);
    header.set_cksum();
    let big = [header.as_bytes().as_slice(), &vec![0; MUCH as usize]].concat();
    let long = [good.as_slice(), &vec![0; MUCH as usize]].concat();
    for (name, bytes, why, there) in [("carol", big, "room for", 0), ("dave", long, "it goes on behind its end", 1)] {
        let person = team.person(name, Trust::default());
        let sent = zstd::encode_all(bytes.as_slice(), 3).unwrap();
        let error = format!("{:#}", person.import(sent.as_slice(), &Trust::default()).unwrap_err());
        assert!(error.contains(why), "{error}");
        assert_eq!(person.results().count(), there);
        assert_eq!(fs::read_dir(person.root().join("tmp")).unwrap().count(), 0);
    }
}

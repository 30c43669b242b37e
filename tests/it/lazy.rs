//! Of what the team has, what is needed comes and nothing else: counted in objects, and with the others taken away.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value as Json;

use crate::support::Sandbox;

/// `raw` feeds `text`, which feeds `end`; `raw` feeds `side`, too. Each says its name in what it gives.
fn pipeline(more: &str) -> String {
    let stage = |name: &str, from: &str, more: &str| {
        let (cat, port) = match from {
            "" => (String::new(), String::new()),
            from => ("cat {in.x}/*; ".to_owned(), format!("in = {{ x = \"{from}\" }}\n")),
        };
        let run = format!("({cat}echo {name} ${{{name}}}) > {{out}}/{name}");
        format!("[stage.{name}]\nkind = \"command\"\nrun = \"{run}\"\n{port}{more}")
    };
    [
        "[params]\nraw = \"1\"\ntext = \"1\"\nside = \"1\"\nend = \"1\"\n".to_owned(),
        stage("raw", "", more),
        stage("text", "raw", more),
        stage("side", "raw", ""),
        stage("end", "text", ""),
    ]
    .concat()
}

/// A team with a shared directory, to which Alice gave what she made.
pub struct Team {
    pub dir: tempfile::TempDir,
    pipeline: String,
}

impl Team {
    pub fn new(pipeline: &str) -> Self {
        let team = Self { dir: tempfile::tempdir().unwrap(), pipeline: pipeline.to_owned() };
        team.person("read-write").json(&[]);
        team
    }

    pub fn person(&self, mode: &str) -> Sandbox {
        let sandbox = Sandbox::with(&self.pipeline);
        let url = self.dir.path().display();
        sandbox.write("flow.toml", &format!("[remote]\nurl = \"{url}\"\nmode = \"{mode}\"\n"));
        sandbox
    }

    /// The objects that the team has.
    pub fn objects(&self) -> Vec<PathBuf> {
        objects(&self.dir.path().join("objects"))
    }

    /// Takes away every object but those that hold exactly these.
    fn keep(&self, kept: &[&str]) {
        for object in self.objects() {
            if !kept.contains(&fs::read_to_string(&object).unwrap().as_str()) {
                fs::remove_file(object).unwrap();
            }
        }
    }
}

fn objects(dir: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(dir).into_iter().flatten().flatten();
    shards.flat_map(|shard| fs::read_dir(shard.path()).unwrap()).map(|object| object.unwrap().path()).collect()
}

/// What objects a person has, by their content.
fn has(sandbox: &Sandbox) -> BTreeSet<String> {
    let objects = objects(&sandbox.cache().join("objects"));
    objects.into_iter().map(|object| fs::read_to_string(object).unwrap().replace(" 1", "").replace('\n', " ")).collect()
}

/// What the plan says of each node: its state, and of the team's whether it is needed.
pub fn planned(sandbox: &Sandbox, args: &[&str]) -> String {
    let plan = sandbox.ok(&[&["plan", "p.toml", "--json"], args].concat());
    let lines = plan.lines().map(|line| serde_json::from_str::<Json>(line).unwrap());
    let word = |line: Json| {
        let need = line["need"].as_str().map_or_else(String::new, |need| format!(":{need}"));
        format!("{} {}{need}", line["node"].as_str().unwrap(), line["state"].as_str().unwrap())
    };
    lines.map(word).collect::<Vec<_>>().join(", ")
}

#[test]
fn only_the_ends_come_and_the_rest_when_it_is_needed() {
    let team = Team::new(&pipeline(""));
    assert_eq!(team.objects().len(), 4);
    team.keep(&["raw 1\nside 1\n", "raw 1\ntext 1\nend 1\n", "raw 1\ntext 1\n"]);
    let bob = team.person("read");
    assert_eq!(planned(&bob, &[]), "raw team:no, text team:no, side team:yes, end team:yes");
    assert_eq!(has(&bob), [].into());
    let plan = bob.run(&["plan", "p.toml"]);
    assert!(plan.stdout.contains("raw") && plan.stdout.contains("nobody needs its files"), "{plan}");
    assert!(plan.stderr.contains("4 in the team's cache") && plan.stderr.contains("fetches 32 B"), "{plan}");
    let taken = bob.run(&["run", "p.toml", "--json"]);
    assert!(taken.code == Some(0) && !taken.stdout.contains("warning"), "{taken}");
    let events = crate::support::Events::of(&taken.stdout);
    // What the plan was told is known here since.
    let how = [("end", "remote"), ("raw", "cached"), ("side", "remote"), ("text", "cached")];
    assert_eq!(events.how(), how.into(), "{taken}");
    assert_eq!(has(&bob), ["raw side ".to_owned(), "raw text end ".to_owned()].into());
    bob.ok(&["cache", "verify"]);

    // From then on the team is not asked, whether all is decided anew or not.
    fs::rename(team.dir.path().join("results"), team.dir.path().join("away")).unwrap();
    let quiet = |args: &[&str]| {
        let again = bob.run(&[&["run", "p.toml", "--json"], args].concat());
        let events = crate::support::Events::of(&again.stdout);
        assert!(again.code == Some(0) && !again.stdout.contains("warning"), "{again}");
        assert!(events.how().len() == 4 && events.how().values().all(|how| *how == "cached"), "{again}");
    };
    quiet(&[]);
    bob.write("p.toml", &(bob.read("p.toml") + "# another word\n"));
    quiet(&[]);
    bob.write("flow.toml", "");
    quiet(&[]);
    assert_eq!(planned(&bob, &[]), "raw cached, text cached, side cached, end cached");
    fs::rename(team.dir.path().join("away"), team.dir.path().join("results")).unwrap();
    bob.write("flow.toml", &team.person("read").read("flow.toml"));

    // Who must run gets what it takes, and no more.
    let end = ["--set", "params.end=2"];
    assert_eq!(planned(&bob, &end), "raw team:no, text team:yes, side cached, end run");
    assert_eq!(bob.json(&end).ran(), ["end"]);
    assert_eq!(has(&bob).len(), 4, "{:?}", has(&bob));
    // The team lost the bytes of `raw`: a warning, and it is made here.
    let side = ["--set", "params.side=2"];
    assert_eq!(planned(&bob, &side), "raw team:yes, text cached, side run, end cached");
    let made = bob.run(&[&["run", "p.toml"], &side[..]].concat());
    assert!(made.code == Some(0) && made.stderr.contains("`raw` is made here"), "{made}");
    assert!(has(&bob).contains("raw ") && has(&bob).contains("raw side 2 "), "{:?}", has(&bob));
    bob.ok(&["cache", "verify"]);
}

#[test]
fn what_is_asked_for_comes() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read");
    let path = bob.run(&["path", "p.toml", "text"]);
    assert!(path.code == Some(0) && path.stderr.contains("text: 13 B come from the team's cache"), "{path}");
    assert_eq!(fs::read_to_string(format!("{}/text", path.stdout.trim())).unwrap(), "raw 1\ntext 1\n");
    assert_eq!(has(&bob), ["raw text ".to_owned()].into());
    let why = bob.ok(&["why", "p.toml", "end"]);
    assert!(why.contains("in the team's cache: 19 B") && why.contains("19 B to fetch"), "{why}");
    // What has a name is wanted, also if something takes from it.
    bob.ok(&["run", "p.toml", "raw", "end"]);
    assert_eq!(has(&bob).len(), 3, "{:?}", has(&bob));
    assert!(bob.ok(&["path", "p.toml", "raw"]).contains("trees"));

    let carol = team.person("read");
    let pull = carol.run(&["cache", "pull", "p.toml", "end"]);
    assert!(pull.code == Some(0) && pull.stderr.contains("3 results fetched"), "{pull}");
    // An export is wanted in its place; as long as it lies there, nothing comes.
    let dave = team.person("read");
    let text = dave.read("p.toml").replace("[stage.text]", "[stage.text]\nexport = \"ex\"");
    dave.write("p.toml", &text);
    dave.ok(&["run", "p.toml"]);
    assert_eq!((has(&dave).len(), dave.read("ex/text").as_str()), (3, "raw 1\ntext 1\n"));
}

#[test]
fn only_takes_what_the_team_has() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read");
    let only = ["--only", "end", "--set", "params.end=2"];
    assert_eq!(planned(&bob, &only), "raw team:no, text team:yes, end run");
    assert_eq!(bob.json(&only).ran(), ["end"]);
    assert_eq!(has(&bob), ["raw text ".to_owned(), "raw text end 2 ".to_owned()].into());
    // What nobody has, and may not run, is said by both before anything begins.
    let changed = ["p.toml", "--only", "end", "--set", "params.text=2"];
    for command in ["plan", "run"] {
        let refused = bob.run(&[&[command], &changed[..]].concat());
        assert!(refused.code == Some(2) && refused.stderr.contains("`text` has no result in the cache"), "{refused}");
    }
    assert_eq!(has(&bob).len(), 2);
}

#[test]
fn what_was_freed_is_known_to_the_team_by_its_record() {
    let team = Team::new(&pipeline("temp = true\n"));
    assert_eq!(team.objects().len(), 2);
    let bob = team.person("read");
    assert_eq!(planned(&bob, &[]), "raw cached, text cached, side team:yes, end team:yes");
    assert_eq!(bob.json(&[]).ran(), [""; 0]);
    assert_eq!(bob.json(&["--set", "params.end=2"]).ran(), ["end", "raw", "text"]);
    assert_eq!(has(&bob).len(), 3, "{:?}", has(&bob));

    // In an archive it is the same.
    let (archive, carol) = (bob.outside("archive"), Sandbox::with(&team.pipeline));
    let archive = archive.to_str().unwrap();
    let export = bob.run(&["cache", "export", archive, "p.toml"]);
    assert!(export.code == Some(0) && export.stderr.contains("4 results with 2 objects"), "{export}");
    carol.ok(&["cache", "import", archive]);
    assert!(carol.json(&[]).how().values().all(|how| *how == "cached"));
    assert_eq!(carol.json(&["--set", "params.side=2"]).ran(), ["raw", "side"]);
    carol.ok(&["cache", "verify"]);
}

#[test]
fn who_is_not_trusted_any_more_is_not_believed_in_what_did_not_come() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read");
    bob.ok(&["run", "p.toml"]);
    let key = bob.ok(&["cache", "keygen"]);
    bob.write("flow.toml", &(bob.read("flow.toml") + &format!("trusted_keys = [\"{}\"]\n", key.trim())));
    let output = bob.run(&["run", "p.toml", "--json"]);
    let events = crate::support::Events::of(&output.stdout);
    assert_eq!(events.ran(), ["raw", "text"], "{output}");
    assert!(output.stdout.contains("it is not signed"), "{output}");
    // Who asks for it gets nothing, and must not take that for a yes; nor who asks for what nobody has.
    let pull = |args: &[&str]| bob.run(&[&["cache", "pull", "p.toml"], args].concat());
    fs::remove_dir_all(bob.cache()).unwrap();
    let refused = pull(&[]);
    assert!(
        refused.code == Some(3) && refused.stderr.contains("nothing of what was asked for can be trusted"),
        "{refused}"
    );
    bob.write("flow.toml", &bob.read("flow.toml").replace("trusted_keys", "# "));
    assert_eq!(pull(&[]).code, Some(0));
    assert_eq!(pull(&[]).code, Some(0), "all of it is here");
    let none = pull(&["--set", "stage.raw.run=echo other > {out}/x"]);
    assert!(none.code == Some(1) && none.stderr.contains("the team has nothing of what was asked for"), "{none}");
}

#[test]
fn a_pin_keeps_the_records_that_its_key_is_made_of() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read");
    bob.write("flow.toml", "");
    bob.ok(&["run", "p.toml"]);
    bob.ok(&["cache", "pin", "p.toml", "end"]);
    let gc = ["cache", "gc", "--max-size", "0", "--keep-runs", "0s"];
    let dry = bob.ok(&[&gc[..], &["--dry-run"]].concat());
    assert!(dry.matches("its record stays").count() == 2 && has(&bob).len() == 4, "{dry}");
    bob.ok(&gc);
    assert_eq!(has(&bob), ["raw text end ".to_owned()].into());
    bob.ok(&["cache", "verify"]);
    // It is found again, and what is not pinned is made with what it takes.
    assert_eq!(bob.json(&["end"]).how(), [("end", "cached"), ("raw", "cached"), ("text", "cached")].into());
    assert_eq!(bob.json(&[]).ran(), ["raw", "side"]);
    // Another pin is made of what is let go: its record stays for it.
    bob.ok(&["cache", "pin", "p.toml", "text"]);
    bob.ok(&["cache", "unpin", "p.toml", "text"]);
    bob.ok(&gc);
    assert_eq!(bob.json(&["end"]).ran(), [""; 0]);
    assert_eq!(fs::read_dir(bob.cache().join("pins")).unwrap().count(), 3);
    bob.ok(&["cache", "unpin", "p.toml"]);
    assert_eq!(fs::read_dir(bob.cache().join("pins")).unwrap().count(), 0);
    bob.ok(&gc);
    assert_eq!(bob.json(&["end"]).ran(), ["end", "raw", "text"]);
}

#[test]
fn verify_brings_back_what_the_team_has() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read");
    bob.ok(&["run", "p.toml", "raw", "text", "side", "end"]);
    let spoil = || {
        for (n, object) in objects(&bob.cache().join("objects")).into_iter().enumerate() {
            fs::remove_file(&object).unwrap();
            if n % 2 == 0 {
                fs::write(object, "rotten").unwrap();
            }
        }
    };
    spoil();
    let verify = bob.run(&["cache", "verify"]);
    assert!(verify.code == Some(0) && verify.stderr.contains("4 things damaged, and the team had all"), "{verify}");
    assert_eq!(verify.stdout.matches("the team had it").count(), 4, "{verify}");
    assert_eq!(has(&bob).len(), 4);
    assert!(bob.ok(&["cache", "verify"]).is_empty());
    assert_eq!(bob.json(&[]).ran(), [""; 0]);
    // What the team does not have is said, and is made again.
    team.keep(&["raw 1\n"]);
    spoil();
    let verify = bob.run(&["cache", "verify"]);
    assert!(verify.code == Some(3) && verify.stdout.matches("the team had it").count() == 1, "{verify}");
    bob.write("flow.toml", "");
    assert_eq!(bob.json(&[]).ran(), ["end", "side", "text"]);
}

#[test]
fn the_doctor_looks_at_the_team() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read-write");
    let line = |code: i32| {
        let doctor = bob.run(&["doctor"]);
        let line = doctor.stdout.lines().find(|line| line.contains(" team ")).unwrap_or_default().to_owned();
        // Another thing may be wrong with this machine.
        assert!(code == 0 || doctor.code == Some(code), "{doctor}");
        line
    };
    let good = line(0);
    assert!(good.starts_with("ok") && good.contains("read-write, answers in"), "{good}");
    assert!(good.contains("signs nothing, trusts everybody"), "{good}");
    let settings = bob.read("flow.toml");
    bob.write("flow.toml", &format!("{settings}sign_key = \"nowhere\"\n"));
    let bad = line(3);
    assert!(bad.starts_with("BAD") && bad.contains("cannot read the signing key"), "{bad}");
    // Before anything is made that could not be given; who takes and makes nothing needs no key.
    let made = ["--set", "params.end=2"];
    for (command, code) in [("check", 2), ("plan", 2), ("run", 3)] {
        let said = bob.run(&[&[command, "p.toml"], &made[..]].concat());
        assert!(said.code == Some(code) && said.stderr.contains("cannot be signed for the team"), "{said}");
        assert!(said.stderr.contains("cannot read the signing key"), "{said}");
    }
    assert!(!has(&bob).contains("raw text end 2 "), "{:?}", has(&bob));
    let read = bob.flow(&[&["run", "p.toml"], &made[..]].concat()).env("FLOW_REMOTE_MODE", "read").output().unwrap();
    assert!(read.status.success(), "{read:?}");
    let push = {
        bob.ok(&["run", "p.toml"]);
        bob.run(&["cache", "push", "p.toml"])
    };
    assert!(push.code == Some(3) && push.stderr.contains("cannot read the signing key"), "{push}");
    let key = bob.ok(&["cache", "keygen", "key"]);
    bob.write("flow.toml", &format!("{settings}sign_key = \"key\"\ntrusted_keys = [\"{} bob\"]\n", key.trim()));
    let good = line(0);
    assert!(good.contains(&format!("signs as {}, trusts bob", key.trim())), "{good}");
    fs::rename(team.dir.path().join("results"), bob.outside("results")).unwrap();
    fs::remove_dir_all(team.dir.path()).unwrap();
    let bad = line(3);
    assert!(bad.starts_with("BAD") && bad.contains("cannot be used"), "{bad}");
}

#[test]
fn files_that_were_freed_and_are_found_again_are_somebodys() {
    let stages = "[stage.a]\nkind = \"command\"\nrun = \"echo same > {out}/x\"\n\
        [stage.z]\nkind = \"command\"\nin = { a = \"a\" }\nrun = \"cat {in.a}/x > {out}/x\"\n";
    let team = Team::new(stages);
    // `z` is known as freed first, and the bytes come by another result.
    let bob = team.person("read");
    bob.ok(&["plan", "p.toml"]);
    bob.pipeline("[stage.other]\nkind = \"command\"\ntemp = true\nrun = \"echo same > {out}/x\"\n\
        [stage.end]\nkind = \"command\"\nin = { a = \"other\" }\nrun = \"cat {in.a}/x > {out}/x; echo end >> {out}/x\"\n");
    bob.ok(&["run", "p.toml", "other"]);
    bob.pipeline(stages);
    assert_eq!(bob.json(&[]).ran(), [""; 0]);
    bob.ok(&["cache", "pin", "p.toml", "z"]);
    bob.ok(&["cache", "gc", "--max-size", "0", "--keep-runs", "0s"]);
    assert_eq!(has(&bob), ["same ".to_owned()].into());
    bob.write("flow.toml", "");
    assert_eq!(bob.json(&["z"]).how()["z"], "cached");
}

#[test]
fn a_plan_counts_once_what_comes_once() {
    let stage = |name: &str, text: &str| {
        let run = format!("echo {text} > {{out}}/x; : ${{matrix.i}}");
        format!("[stage.{name}]\nkind = \"command\"\nmatrix = {{ i = [1, 2, 3] }}\nrun = \"{run}\"\n")
    };
    let team = Team::new(&(stage("same", "same") + &stage("each", "s${matrix.i}")));
    let bob = team.person("read");
    let plan = bob.run(&["plan", "p.toml"]);
    // Five bytes once, and three each.
    assert!(plan.stderr.contains("fetches 14 B from the team"), "{plan}");
    bob.ok(&["run", "p.toml"]);
    assert_eq!(objects(&bob.cache().join("objects")).len(), 4);
}

#[test]
fn a_path_says_that_the_team_cannot_be_reached() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read");
    bob.ok(&["run", "p.toml"]);
    let path = |code: i32, says: &str| {
        let path = bob.run(&["path", "p.toml", "raw"]);
        assert!(path.code == Some(code) && path.stderr.contains(says), "{path}");
    };
    let away = bob.outside("away");
    fs::rename(team.dir.path(), &away).unwrap();
    path(3, "the files of `raw` are not here, and the team's cache");
    fs::rename(&away, team.dir.path()).unwrap();
    bob.write("flow.toml", "");
    path(1, "flow run p.toml raw");
    bob.ok(&["run", "p.toml", "raw"]);
    path(0, "");
}

#[test]
fn what_is_gone_and_may_not_be_made_is_not_said_to_be_made() {
    let team = Team::new(&pipeline(""));
    let bob = team.person("read");
    bob.ok(&["run", "p.toml"]);
    team.keep(&[]);
    let only = bob.run(&["run", "p.toml", "--only", "end", "--set", "params.end=2"]);
    assert!(only.code != Some(0) && !only.stderr.contains("is made here"), "{only}");
    assert!(only.stderr.contains("`text` has no result in the cache, and may not run"), "{only}");
}

#[test]
fn a_name_of_others_does_not_turn_the_text_around() {
    let team = Team::new(&pipeline(""));
    for record in objects(&team.dir.path().join("results")) {
        let mut json: Json = serde_json::from_str(&fs::read_to_string(&record).unwrap()).unwrap();
        json["shared"]["by"] = "eve\u{202e}ecila\u{1b}[2J".into();
        fs::remove_file(&record).unwrap();
        fs::write(&record, json.to_string()).unwrap();
    }
    let plan = team.person("read").run(&["plan", "p.toml"]);
    assert!(plan.stdout.contains("by eveecila[2J,"), "{plan}");
}

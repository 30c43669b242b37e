//! The directory that all nodes of a stage export to, when what they make moves from one to another.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use crate::support::Sandbox;

fn fetch(urls: &str) -> String {
    format!("[stage.raw]\nkind = \"fetch\"\nurls = [{urls}]\nexport = \"out\"\n")
}

/// With `d/t_0.jsonl` to `d/t_4.jsonl`.
fn sandbox(urls: &str) -> Sandbox {
    let sandbox = Sandbox::with(&fetch(urls));
    for nth in 0..5 {
        sandbox.write(&format!("d/t_{nth}.jsonl"), &format!("{{\"text\":\"{nth}\"}}\n"));
    }
    sandbox
}

/// That the export holds these files as they are in `d`, and no other.
#[track_caller]
fn holds(sandbox: &Sandbox, shards: &[u32]) {
    let names = fs::read_dir(sandbox.path("out")).unwrap().map(|one| one.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    let wanted: Vec<_> = shards.iter().map(|nth| format!("t_{nth}.jsonl")).collect();
    assert_eq!(names, wanted);
    for name in names {
        assert_eq!(sandbox.read(&format!("out/{name}")), sandbox.read(&format!("d/{name}")), "{name}");
    }
}

/// Runs it so, sees that the export is right, and that nothing is left to do.
#[track_caller]
fn runs(sandbox: &Sandbox, urls: &str, shards: &[u32]) {
    sandbox.pipeline(&fetch(urls));
    sandbox.ok(&["run", "p.toml"]);
    holds(sandbox, shards);
    sandbox.ok(&["run", "p.toml"]);
    holds(sandbox, shards);
}

#[test]
fn what_moves_to_another_shard_stays() {
    let sandbox = sandbox("\"d/t_{0..2}.jsonl\"");
    runs(&sandbox, "\"d/t_{0..2}.jsonl\"", &[0, 1, 2]);
    // A shifted range, forth and back.
    runs(&sandbox, "\"d/t_{1..3}.jsonl\"", &[1, 2, 3]);
    runs(&sandbox, "\"d/t_{0..2}.jsonl\"", &[0, 1, 2]);
    // A list that shrinks, to one and from the front.
    runs(&sandbox, "\"d/t_0.jsonl\"", &[0]);
    runs(&sandbox, "\"d/t_{0..4}.jsonl\"", &[0, 1, 2, 3, 4]);
    runs(&sandbox, "\"d/t_{3..4}.jsonl\"", &[3, 4]);
    // Two swapped, and one in front of them.
    runs(&sandbox, "\"d/t_4.jsonl\", \"d/t_3.jsonl\"", &[3, 4]);
    runs(&sandbox, "\"d/t_1.jsonl\", \"d/t_4.jsonl\", \"d/t_3.jsonl\"", &[1, 3, 4]);
    // What is the user's stays: a file that flow never put there, and one that they changed.
    sandbox.write("out/mine", "mine");
    sandbox.write("out/t_4.jsonl", "changed");
    sandbox.pipeline(&fetch("\"d/t_3.jsonl\", \"d/t_1.jsonl\""));
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!((sandbox.read("out/mine"), sandbox.read("out/t_4.jsonl")), ("mine".into(), "changed".into()));
}

#[test]
fn a_part_of_a_stage_removes_nothing_and_all_of_it_does() {
    let sandbox = sandbox("\"d/t_{0..2}.jsonl\"");
    sandbox.ok(&["run", "p.toml"]);
    sandbox.pipeline(&fetch("\"d/t_{2..4}.jsonl\""));
    sandbox.ok(&["run", "p.toml", "raw[1]"]);
    holds(&sandbox, &[0, 1, 2, 3]);
    // Also if one of them fails.
    sandbox.pipeline(&fetch("\"d/t_2.jsonl\", \"d/t_3.jsonl\", \"d/gone.jsonl\""));
    assert_ne!(sandbox.run(&["run", "p.toml"]).code, Some(0));
    holds(&sandbox, &[0, 1, 2, 3]);
    runs(&sandbox, "\"d/t_{2..4}.jsonl\"", &[2, 3, 4]);
}

#[test]
fn profiles_with_other_shards() {
    let text = |more: &str| {
        format!(
            "[params]\nrange = \"0..2\"\n[profile.late.params]\nrange = \"1..3\"\n[profile.long.params]\nrange = \"0..4\"\n{}{more}",
            fetch("\"d/t_{${range}}.jsonl\"")
        )
    };
    let sandbox = sandbox("");
    sandbox.pipeline(&text(""));
    let all: [(&[&str], &[u32]); 3] =
        [(&[], &[0, 1, 2]), (&["--profile", "late"], &[1, 2, 3]), (&["--profile", "long"], &[0, 1, 2, 3, 4])];
    // One after each other: also where all files of one are there while another is there.
    for nth in [0, 1, 0, 2, 0, 2, 1, 2, 1, 0, 0] {
        let (profile, shards) = all[nth];
        sandbox.ok(&[&["run", "p.toml"], profile].concat());
        holds(&sandbox, shards);
    }
    // What flow put there is flow's under every profile, also when the cache has forgotten it.
    sandbox.ok(&["cache", "gc", "--max-age", "0s", "--keep-runs", "0d"]);
    fs::remove_dir_all(sandbox.cache()).unwrap();
    for command in ["check", "plan", "run"] {
        sandbox.ok(&[command, "p.toml", "--profile", "late"]);
    }
    holds(&sandbox, &[1, 2, 3]);
}

#[test]
fn stages_of_two_pipelines_leave_each_others_files() {
    let sandbox = sandbox("\"d/t_{0..1}.jsonl\"");
    sandbox.ok(&["run", "p.toml"]);
    let other = fetch("\"d/t_3.jsonl\"").replace("stage.raw", "stage.other");
    sandbox.write("q.toml", &format!("[pipeline]\nname = \"q\"\n{other}"));
    sandbox.ok(&["run", "q.toml"]);
    holds(&sandbox, &[0, 1, 3]);
}

#[test]
fn killed_while_files_are_placed_the_next_run_removes_what_is_left() {
    for fault in ["commit:objects", "commit:recorded", "restore:written"] {
        let sandbox = sandbox("\"d/t_{0..2}.jsonl\"");
        sandbox.ok(&["run", "p.toml"]);
        sandbox.pipeline(&fetch("\"d/t_{1..3}.jsonl\""));
        let killed = sandbox.flow(&["run", "p.toml"]).env("FLOW_FAULT", fault).output().unwrap();
        assert_eq!(killed.status.code(), None, "{fault}: it was killed");
        assert!((0..3).all(|nth| sandbox.path(&format!("out/t_{nth}.jsonl")).exists()), "{fault}");
        sandbox.ok(&["run", "p.toml"]);
        assert!(!sandbox.path("out/t_0.jsonl").exists(), "{fault}");
        assert!((1..4).all(|nth| sandbox.path(&format!("out/t_{nth}.jsonl")).exists()), "{fault}");
    }
}

/// As flow noted exports once: on pages with other names, that say the place and not whose it is.
fn as_noted_once(project: &Path) {
    let pages = project.join(".flow/places");
    for (nth, page) in fs::read_dir(&pages).unwrap().map(|one| one.unwrap().path()).enumerate() {
        let mut note: serde_json::Value = serde_json::from_slice(&fs::read(&page).unwrap()).unwrap();
        note.as_object_mut().unwrap().remove("stage").unwrap();
        fs::remove_file(&page).unwrap();
        fs::write(pages.join(format!("{nth:032}")), note.to_string()).unwrap();
    }
}

#[test]
fn what_was_noted_by_shards_alone_is_flows() {
    let sandbox = sandbox("\"d/t_{0..2}.jsonl\"");
    sandbox.ok(&["run", "p.toml"]);
    as_noted_once(&sandbox.path(""));
    fs::remove_dir_all(sandbox.cache()).unwrap();
    sandbox.write("d/t_1.jsonl", "{\"text\":\"new\"}\n");
    for command in ["check", "plan"] {
        sandbox.pipeline(&fetch("\"d/t_{1..3}.jsonl\""));
        sandbox.ok(&[command, "p.toml"]);
    }
    runs(&sandbox, "\"d/t_{1..3}.jsonl\"", &[1, 2, 3]);
}

#[test]
fn an_export_may_be_second_names_of_the_caches_files() {
    let sandbox = sandbox("");
    let text = |link: &str| {
        fetch("\"d/t_{0..1}.jsonl\"").replace("\"out\"", &format!("{{ to = \"out\", link = \"{link}\" }}"))
    };
    sandbox.pipeline(&text("hardlink"));
    sandbox.ok(&["run", "p.toml"]);
    holds(&sandbox, &[0, 1]);
    let exported = || fs::metadata(sandbox.path("out/t_0.jsonl")).unwrap();
    assert_eq!((exported().nlink(), exported().permissions().mode() & 0o222), (2, 0), "the cache's own, read-only");
    // What the second name does to the file's times is no reason to doubt it, or to do anything.
    assert_eq!(sandbox.json(&[]).ran(), [""; 0]);
    sandbox.ok(&["cache", "verify"]);
    // Deleted, it comes back; a plan says so.
    fs::remove_file(sandbox.path("out/t_0.jsonl")).unwrap();
    let plan = sandbox.ok(&["plan", "p.toml"]);
    assert_eq!(plan.matches("is put back").count(), 1, "{plan}");
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!(exported().nlink(), 2);
    // The other way: files that may be written to.
    sandbox.pipeline(&text("copy"));
    sandbox.ok(&["run", "p.toml"]);
    assert_eq!((exported().nlink(), exported().permissions().mode() & 0o200), (1, 0o200));
    // A file of the user's under a second name is theirs.
    sandbox.pipeline(&text("hardlink"));
    sandbox.write("out/t_0.jsonl", "mine");
    assert_eq!(sandbox.run(&["run", "p.toml"]).code, Some(2));
    assert_eq!(sandbox.read("out/t_0.jsonl"), "mine");
}

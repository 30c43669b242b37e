//! Tests of loading.

use super::*;
use std::path::PathBuf;

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn load(file: &Path, options: &LoadOptions) -> Result<Merged, Vec<Diagnostic>> {
    let merged = super::load(file, options)?;
    if merged.errors.is_empty() { Ok(merged) } else { Err(merged.errors) }
}

fn load_text(text: &str, options: &LoadOptions) -> Result<Merged, Vec<Diagnostic>> {
    let dir = tempfile::tempdir().unwrap();
    load(&write(dir.path(), "pipe.toml", text), options)
}

fn text_of(merged: &Merged, path: &str) -> String {
    let (stage, path) = path.split_once('.').unwrap();
    let value = &merged.stages.iter().find(|entry| entry.name == stage).unwrap().variants[0].value;
    format!("{:?}", value.nearest(path).kind)
}

const PIPE: &str = "[pipeline]\nname = 'p'\n[params]\nshards = '{0..13}'\nn = 1\n\
    [profile.mini]\nparams.shards = '{0..2}'\nstage.train.max_steps = 30\n\
    [profile.mini.stage.base]\nkind = 'init'\nseed = 1\n\
    [stage.base]\nkind = 'fetch'\nurls = ['x']\n\
    [stage.raw]\nkind = 'fetch'\nurls = ['${shards}']\n\
    [stage.train]\nkind = 'train'\nmax_steps = 150\noptim = { lr = 1.0, eps = 2.0 }\n";

#[test]
fn a_profile_merges_and_a_stage_with_a_kind_replaces() {
    let plain = load_text(PIPE, &LoadOptions::default()).unwrap();
    assert_eq!((plain.name.as_str(), plain.profiles.as_slice()), ("p", &["mini".to_owned()][..]));
    assert_eq!(text_of(&plain, "train.max_steps"), "Integer(150)");
    assert_eq!(text_of(&plain, "raw.urls.0"), "String(\"{0..13}\")");

    let mini = load_text(PIPE, &LoadOptions { profile: Some("mini".into()), ..Default::default() }).unwrap();
    assert_eq!(text_of(&mini, "train.max_steps"), "Integer(30)");
    assert_eq!(text_of(&mini, "train.optim.lr"), "Float(1.0)");
    assert_eq!(text_of(&mini, "raw.urls.0"), "String(\"{0..2}\")");
    let base = mini.stages.iter().find(|entry| entry.name == "base").unwrap().variants[0].value.as_table().unwrap();
    assert_eq!(base.entries.len(), 2, "the file's `urls` are gone");
}

#[test]
fn environment_wins_over_the_profile_and_set_over_both() {
    let mut options = LoadOptions {
        profile: Some("mini".into()),
        env: vec![("FLOW_PARAM_SHARDS".into(), "{5..6}".into()), ("FLOW_PARAM_OTHER".into(), "1".into())],
        set: vec!["stage.train.optim.lr=0.5".into(), "stage.train.optim.betas=[0.9, 0.95]".into()],
    };
    let merged = load_text(PIPE, &options).unwrap();
    assert_eq!(text_of(&merged, "raw.urls.0"), "String(\"{5..6}\")");
    assert_eq!(text_of(&merged, "train.optim.lr"), "Float(0.5)");
    assert_eq!(text_of(&merged, "train.optim.eps"), "Float(2.0)");
    assert_eq!(text_of(&merged, "train.optim.betas.1"), "Float(0.95)");
    options.set.push("params.shards={7..8}".into());
    assert_eq!(text_of(&load_text(PIPE, &options).unwrap(), "raw.urls.0"), "String(\"{7..8}\")");
}

#[test]
fn what_cannot_be_set_is_said_with_what_was_meant() {
    let said = |set: &str| {
        let error = load_text(PIPE, &LoadOptions { set: vec![set.into()], ..Default::default() }).unwrap_err();
        assert_eq!(error.len(), 1, "{error:?}");
        format!("{} | {}", error[0].message, error[0].hints.join(" "))
    };
    assert!(said("params.shrads=1").ends_with("there is no parameter `shrads` | did you mean `shards`?"));
    assert!(said("stage.trian.x=1").ends_with("did you mean `train`?"));
    assert!(said("shards=1").ends_with("write `params.shards=…`"));
    assert!(said("stage.train.max_steps").contains("there is no `=`"));
    assert!(said("stage.train.max_steps.x=1").contains("not a table"));
    let error = load_text(PIPE, &LoadOptions { profile: Some("mni".into()), ..Default::default() }).unwrap_err();
    assert_eq!(error[0].hints, ["did you mean `mini`?"]);
}

#[test]
fn every_error_is_said_at_once() {
    let errors = load_text(
        "[pipeline]\nnmae = 'x'\n[stages.a]\nkind = 'x'\n[stage.'a b']\nx = '${no}'\n[params]\np = '${q}'",
        &LoadOptions::default(),
    )
    .unwrap_err();
    let mut lines: Vec<_> = errors.iter().map(|e| e.span.as_ref().unwrap().line_column().0).collect();
    lines.sort_unstable();
    assert_eq!(lines, [2, 3, 5, 6, 8], "{errors:?}");
}

#[test]
fn includes_lie_under_the_file_and_circles_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "base.toml", "[params]\na = 1\nb = 2\n[stage.s]\nkind = 'x'\nv = '${a}${b}'");
    let file = write(dir.path(), "pipe.toml", "include = ['base.toml']\n[params]\nb = 3\n");
    let merged = load(&file, &LoadOptions::default()).unwrap();
    assert_eq!(text_of(&merged, "s.v"), "String(\"13\")");
    assert_eq!(merged.name, "pipe");
    assert_eq!(outline(&file).stages, ["s"]);

    write(dir.path(), "base.toml", "include = 'pipe.toml'");
    let errors = load(&file, &LoadOptions::default()).unwrap_err();
    assert!(errors[0].message.contains("in a circle: pipe.toml → base.toml → pipe.toml"), "{errors:?}");
    std::fs::remove_file(dir.path().join("base.toml")).unwrap();
    let errors = load(&file, &LoadOptions::default()).unwrap_err();
    assert_eq!(errors[0].span.as_ref().unwrap().line_column(), (1, 12));
}

/// Loads any text as a pipeline; what matters is that it ends without a panic, and that errors have words.
fn load_any(text: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = write(dir.path(), "pipe.toml", text);
    let options = LoadOptions { profile: text.contains("mini").then(|| "mini".into()), ..Default::default() };
    let errors = match crate::Project::load(&file, &[], &options) {
        Ok(_) => Vec::new(),
        Err(errors) => errors,
    };
    assert!(errors.iter().all(|error| !error.message.is_empty()), "{text}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(256))]

    #[test]
    fn no_text_makes_the_loader_panic(text in "[ -~\n]{0,200}|\\PC{0,80}") {
        load_any(&text);
    }

    #[test]
    fn no_change_of_a_pipeline_makes_the_loader_panic(
        at in 0usize..6000,
        remove in 0usize..12,
        insert in r#"[\[\]{}=",.'$\n a-z0-9]{0,6}|matrix = \{ a = \[1, 2\] \}|when = "|include = "|\$\{matrix\}"#,
    ) {
        let mut chars: Vec<char> = include_str!("../../../pipelines/ja_wiki.toml").chars().collect();
        let at = at.min(chars.len());
        let end = (at + remove).min(chars.len());
        chars.splice(at..end, insert.chars());
        load_any(&chars.into_iter().collect::<String>());
    }
}

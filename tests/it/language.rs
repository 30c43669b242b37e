//! The language of the pipeline file, as a person meets it: every error at once with its place, and what the keys that
//! every stage has do.

use crate::support::Sandbox;

/// What `flow check` says of a pipeline that cannot work; `flow run` and `flow plan` say the same.
fn refused(sandbox: &Sandbox, args: &[&str]) -> String {
    let with = |command| [&[command, "p.toml"], args].concat();
    let check = sandbox.run(&with("check"));
    for other in ["run", "plan"] {
        let output = sandbox.run(&with(other));
        assert_eq!((output.code, &output.stderr), (Some(2), &check.stderr), "{other}\n{output}\n{check}");
    }
    assert_eq!(check.code, Some(2), "{check}");
    check.stderr
}

/// The places `line:column` of the errors in `file`, in the order in which they are said.
fn places(said: &str, file: &str) -> Vec<String> {
    let arrow = format!("--> {file}:");
    said.lines().filter_map(|line| line.trim().strip_prefix(&arrow)).map(str::to_owned).collect()
}

const WRONG: &str = r#"
[params]
n = 99999999999999999999
lost = "${nothing}"

[profile.mini]
parms.n = 1

[stage.raw]
kind = "fetch"
urls = ["{0..", "gopher://x", "https://example.org/ok"]
sha256 = "abc"

[stage.text]
kind = "gunzip"
inptu = "raw"
retries = -1
timeout = "soon"

[stage.tokens]
kind = "tokenize"
input = "txt"
tokenizer = "no/where"
json_key = "a"
json_keys = ["b"]
workers = "many"
append_eod = "yes"

[stage.train]
kind = "train"
model = "tokens"
train = "tokens"
seq_length = 128.0
micro_batch_size = "${n}"
global_batch_size = 7
max_steps = "30"
optim = { lr = -1, betas = [0.9], nme = "adamw" }
precision = "fp8"

[stage.shell]
kind = "command"
run = "cat {in.nothing}"
in = { x = "lost" }
needs = ["trian"]

[stages.typo]
kind = "command"
"#;

#[test]
fn every_error_is_said_at_once_in_the_order_of_the_file() {
    let sandbox = Sandbox::with(WRONG);
    let said = refused(&sandbox, &[]);
    let expected = [
        "5:5 the integer `99999999999999999999` is too big",
        "6:8 there is no parameter `nothing`",
        "9:1 unknown key `parms` in profile `mini`",
        "13:9 the `{` of `{0..` is never closed",
        "13:17 ",
        "14:10 not a sha256",
        "16:1 `input` is missing",
        "18:1 unknown key `inptu`",
        "19:11 `retries`: expected an integer from 0 to 4294967295, found -1",
        "20:11 `timeout`: expected a number of seconds",
        "24:9 `txt` is neither a stage nor",
        "25:13 `no/where` is neither a stage nor",
        "27:13 `json_key` and `json_keys` are both there",
        "28:11 `workers`: expected an integer",
        "29:14 `append_eod`: expected true or false",
        "35:14 `seq_length`: expected an integer",
        "38:13 `max_steps`: expected an integer",
        "39:16 `optim.lr` is -1: it must be above 0",
        "39:28 `betas`: expected a list of 2, found 1",
        "39:35 unknown key `nme`",
        "40:13 `fp8` is not a choice here",
        "44:7 `{in.nothing}`: there is no input `nothing`",
        "45:12 `lost` is neither a stage nor",
        "46:10 there is no stage `trian`",
        "48:2 unknown key `stages`",
    ];
    let heads: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    let found: Vec<String> =
        places(&said, "p.toml").into_iter().zip(&heads).map(|(place, head)| format!("{place} {head}")).collect();
    assert_eq!(heads.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}\n{said}");
    }
    for jargon in
        ["usize", "u64", "u32", "f64", "i64", "a sequence", "a map", "missing field", "invalid type", "a string"]
    {
        assert!(!said.contains(jargon), "{jargon}\n{said}");
    }
    for hint in [
        "did you mean `input`?",
        "did you mean `append_eod`?",
        "seq_length = 128",
        "without quotes: max_steps = 30",
        "did you mean `name`?",
        "did you mean `train`?",
        "did you mean `stage`?",
        "did you mean the stage `text`?",
    ] {
        let hinted = said.contains(hint);
        assert_eq!(hinted, hint != "did you mean `append_eod`?", "{hint}\n{said}");
    }
}

#[test]
fn an_error_on_the_command_line_points_into_it() {
    let sandbox = Sandbox::with(
        "[params]\nshards = 1\n[stage.train]\nkind = \"command\"\nrun = \"echo ${shards}\"\n[profile.mini]\nparams.shards = 2\n",
    );
    let said = |set: &str| refused(&sandbox, &["--set", set]);
    for (set, parts) in [
        ("params.shrads=3", &["--> --set:1:8", "params.shrads=3\n   |        ^^^^^^\n", "did you mean `shards`?"][..]),
        ("stage.trian.run=x", &["--> --set:1:7", "did you mean `train`?"]),
        ("stage.train.rnu=x", &["--> --set:1:13", "did you mean `run`?"]),
        ("stage.train.run=3", &["--> --set:1:17", "expected a text, found 3", "in quotes"]),
        ("stage.train.retries=99999999999999999999", &["--> --set:1:21", "is too big"]),
        ("stage.train.retries=nan", &["--> --set:1:21", "finite"]),
        ("train.run=x", &["--> --set:1:1", "write `stage.train.run=…`"]),
        ("params.shards", &["--> --set:1:1", "there is no `=`"]),
    ] {
        let said = said(set);
        for part in parts {
            assert!(said.contains(part), "{set}: {part}\n{said}");
        }
    }
    let output = sandbox.flow(&["check", "p.toml"]).env("FLOW_PARAM_SHARDS", "1e999").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("--> environment:1:19"), "{said}");
}

#[test]
fn an_included_file_lies_under_the_one_that_includes_it() {
    let sandbox = Sandbox::new();
    sandbox.write(
        "lib/base.toml",
        "include = \"deep.toml\"\n[params]\nword = \"base\"\n[stage.a]\nkind = \"command\"\nrun = \"cat seed.txt > {out}/a; echo ${word} >> {out}/a\"\nfiles = [\"seed.txt\"]\n\
         [profile.loud.params]\nword = \"LOUD\"\n",
    );
    sandbox.write("lib/deep.toml", "[params]\nword = \"deep\"\nend = \"!\"\n");
    sandbox.write("seed.txt", "seed\n");
    let top = "include = [\"lib/base.toml\", \"lib/deep.toml\"]\n\
               [stage.b]\nkind = \"command\"\nrun = \"cat {in.a}/a > {out}/b; echo ${end} >> {out}/b\"\nin = { a = \"a\" }\n";
    sandbox.write("p.toml", top);
    let result = |args: &[&str]| {
        let args = [&["path", "p.toml", "b"], args].concat();
        std::fs::read_to_string(std::path::Path::new(sandbox.ok(&args).trim()).join("b")).unwrap()
    };
    sandbox.json(&[]);
    // `lib/deep.toml` is named after `lib/base.toml`, and so wins; paths are those of the project's folder.
    assert_eq!(result(&[]), "seed\ndeep\n!\n");
    sandbox.json(&["--profile", "loud"]);
    assert_eq!(result(&["--profile", "loud"]), "seed\nLOUD\n!\n");
    // A change of an included file is a change.
    assert_eq!(sandbox.json(&[]).ran(), Vec::<&str>::new());
    sandbox.write("lib/deep.toml", "[params]\nword = \"changed\"\nend = \"!\"\n");
    assert_eq!(sandbox.json(&[]).ran(), ["a", "b"]);
    assert_eq!(result(&[]), "seed\nchanged\n!\n");

    // Errors point into the included file; a circle is refused where it is closed.
    sandbox.write("lib/deep.toml", "[stage.c]\nkind = \"command\"\nrnu = \"x\"\n");
    let said = refused(&sandbox, &[]);
    assert!(said.contains("--> lib/deep.toml:3:1"), "{said}");
    sandbox.write("lib/deep.toml", "include = [\"../p.toml\"]\n");
    let said = refused(&sandbox, &[]);
    assert!(said.contains("p.toml → base.toml → deep.toml → p.toml"), "{said}");
    assert!(said.contains("lib/deep.toml:1:12"), "{said}");
    std::fs::remove_file(sandbox.path("lib/deep.toml")).unwrap();
    let said = refused(&sandbox, &[]);
    assert!(said.contains("cannot read lib/deep.toml") && said.contains("--> lib/base.toml:1:11"), "{said}");

    // What else is wrong is said beside it; what may be in the missing file is not said to be nowhere.
    sandbox.write(
        "p.toml",
        &format!("{top}retries = -1\nneeds = [\"c\"]\n[stage.d]\nkind = \"cmd\"\nrun = \"${{end}}\"\n"),
    );
    let said = refused(&sandbox, &[]);
    let heads: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert_eq!(heads.len(), 4, "{said}");
    assert!(heads[1].starts_with("`retries`") && heads[2].contains("no stage kind `cmd`"), "{said}");
    assert!(said.matches("cannot read").count() == 2, "it is included twice\n{said}");
}

const SWEEP: &str = r#"
[stage.train]
kind = "command"
matrix = { lr = [1e-3, 3e-4, 1e-4], seed = [1, 2] }
run = "echo ${matrix.lr} ${matrix.seed} >> ../ran; echo ${matrix.lr} ${matrix.seed} > {out}/x"
export = "out/${matrix}"

[stage.eval]
kind = "command"
matrix = { lr = [1e-3, 3e-4, 1e-4], seed = [1, 2] }
run = "echo eval >> ../ran; cat {in.model}/x > {out}/y"
in = { model = "train[lr=${matrix.lr},seed=${matrix.seed}]" }

[stage.best]
kind = "command"
run = "echo best >> ../ran; cat {in.all} > /dev/null; for d in {in.all}; do cat $d/y; done > {out}/z"
in = { all = "eval" }
"#;

#[test]
fn a_matrix_is_a_node_a_combination() {
    let sandbox = Sandbox::with(&SWEEP.replace("cat {in.all} > /dev/null; ", ""));
    let events = sandbox.json(&[]);
    let ran = events.ran();
    assert_eq!(ran.len(), 13, "{ran:?}");
    assert!(ran.contains(&"train[lr=0.001,seed=1]") && ran.contains(&"eval[lr=0.0001,seed=2]"), "{ran:?}");
    let best = sandbox.ok(&["path", "p.toml", "best"]);
    let all = std::fs::read_to_string(std::path::Path::new(best.trim()).join("z")).unwrap();
    assert_eq!(all, "0.001 1\n0.001 2\n0.0003 1\n0.0003 2\n0.0001 1\n0.0001 2\n");
    assert_eq!(sandbox.read("out/lr=0.0003,seed=2/x"), "0.0003 2\n");
    assert!(sandbox.json(&[]).ran().is_empty());

    // By its words, by a part of them, by its place.
    let path = |name: &str| sandbox.ok(&["path", "p.toml", name]).lines().count();
    let count = ["train", "train[lr=1e-3]", "train[seed=2]", "train[seed=2,lr=0.0003]", "train[5]"].map(path);
    assert_eq!(count, [6, 2, 3, 1, 1]);
    assert_eq!(
        sandbox.json(&["--only", "train[seed=2]", "--force", "train[lr=0.001]"]).ran(),
        ["train[lr=0.001,seed=2]"]
    );
    let output = sandbox.run(&["path", "p.toml", "train[lr=7]"]);
    assert!(output.code == Some(2) && output.stderr.contains("`train[lr=0.001,seed=1]`"), "{output}");

    // One more value is two more nodes, and what joins them.
    sandbox.pipeline(&SWEEP.replace("cat {in.all} > /dev/null; ", "").replace("3e-4, 1e-4]", "3e-4, 1e-4, 1e-5]"));
    assert_eq!(sandbox.json(&[]).ran().len(), 5);
}

#[test]
fn a_matrix_says_which_combination_is_wrong() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nmatrix = { n = [1, 2, \"x\"] }\nrun = \"true > {out}/a\"\nretries = \"${matrix.n}\"\n\
         [stage.b]\nkind = \"command\"\nmatrix = { n = [1, 2] }\nrun = \"true > {out}/${matrix.m}\"\nrnu = 1\n\
         [stage.c]\nkind = \"megatron-to-hf\"\ninput = \"a\"\nsource = \"b[n=3]\"\n\
         [stage.d]\nkind = \"command\"\nrun = \"${matrix.n}\"\n",
    );
    let said = refused(&sandbox, &[]);
    assert!(said.contains("this is about `a[n=x]`"), "{said}");
    assert_eq!(said.matches("there is no `m` in the stage's matrix").count(), 1, "{said}");
    assert_eq!(said.matches("unknown key `rnu`").count(), 1, "{said}");
    assert!(said.contains("did you mean `${matrix.n}`?") && said.contains("add it: matrix = { n = [ … ] }"), "{said}");
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nmatrix = { n = [1, 2] }\nrun = \"true > {out}/a\"\n\
         [stage.c]\nkind = \"megatron-to-hf\"\ninput = \"a\"\nsource = \"a[n=3]\"\n",
    );
    let said = refused(&sandbox, &[]);
    assert!(said.contains("there is no `a[n=3]`") && said.contains("`a[n=1]`, `a[n=2]`"), "{said}");
    sandbox.pipeline(
        "[stage.a]\nkind = \"command\"\nmatrix = { n = [1, 2] }\nrun = \"true > {out}/a\"\n\
         [stage.c]\nkind = \"megatron-to-hf\"\ninput = \"a\"\nsource = \"p.toml\"\n",
    );
    let said = refused(&sandbox, &[]);
    assert!(said.contains("`input` takes one input, and 2 enter") && said.contains("\"a[${matrix}]\""), "{said}");
}

#[test]
fn shards_of_a_matrix_keep_its_words_and_chosen_combinations_are_listed() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nmatrix = [{ l = \"ja\", n = 1 }, { l = \"en\", n = 5 }]\nrun = \"echo ${matrix.l} ${matrix.n} | gzip > {out}/${matrix.l}.gz\"\n\
         [stage.b]\nkind = \"gunzip\"\ninput = \"a\"\n",
    );
    assert_eq!(sandbox.json(&[]).ran(), ["a[l=en,n=5]", "a[l=ja,n=1]", "b[l=en,n=5]", "b[l=ja,n=1]"]);
}

#[test]
fn a_stage_that_is_off_takes_those_with_it_that_have_nothing_else() {
    let pipeline = |when: &str| {
        format!(
            "[params]\nsteps = 3\nlang = \"ja\"\n[stage.a]\nkind = \"command\"\nwhen = {when}\nrun = \"true > {{out}}/a\"\n\
             [stage.b]\nkind = \"command\"\nrun = \"ls {{in.a}} > {{out}}/b\"\nin = {{ a = \"a\" }}\n\
             [stage.c]\nkind = \"command\"\nrun = \"ls {{in.any}} > {{out}}/c\"\nin = {{ any = [\"a\", \"d\"] }}\n\
             [stage.d]\nkind = \"command\"\nrun = \"true > {{out}}/d\"\n"
        )
    };
    for (when, ran) in [
        ("true", &["a", "b", "c", "d"][..]),
        ("\"${steps} > 2 and ${lang} == ja\"", &["a", "b", "c", "d"]),
        ("\"${steps} > 3 or ${lang} == en\"", &["c", "d"]),
        ("false", &["c", "d"]),
    ] {
        let sandbox = Sandbox::with(&pipeline(when));
        assert_eq!(sandbox.json(&[]).ran(), ran, "{when}");
    }
    let sandbox = Sandbox::with(&pipeline("\"maybe\""));
    let said = refused(&sandbox, &[]);
    assert!(said.contains("--> p.toml:8:8") && said.contains("`maybe` is neither true nor false"), "{said}");
    // In a matrix, combination by combination; who takes from one that is off is off as well.
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nmatrix = { n = [1, 2, 3] }\nwhen = \"${matrix.n} != 2\"\nrun = \"echo ${matrix.n} > {out}/a\"\n\
         [stage.b]\nkind = \"command\"\nmatrix = { n = [1, 2] }\nrun = \"ls {in.a} > {out}/b\"\nin = { a = \"a[${matrix}]\" }\n",
    );
    assert_eq!(sandbox.json(&[]).ran(), ["a[n=1]", "a[n=3]", "b[n=1]"]);
}

#[test]
fn comments_order_and_spelling_are_no_change() {
    let sandbox = Sandbox::with(
        "[params]\nlr = 1e-3\n[stage.a]\nkind = \"command\"\nrun = \"echo ${lr} > {out}/a\"\nenv = { A = \"1\", B = \"2\" }\n\
         [stage.b]\nkind = \"command\"\nin = { a = \"a\" }\nrun = \"cat {in.a}/a > {out}/b\"\n",
    );
    assert_eq!(sandbox.json(&[]).ran(), ["a", "b"]);
    sandbox.pipeline(
        "# said anew\n[stage.b]\nrun = 'cat {in.a}/a > {out}/b' # the same\nin.a = \"a\"\nkind = \"command\"\n\
         [stage.a]\nrun = \"\"\"echo ${lr} > {out}/a\"\"\"\nkind = \"command\"\n[stage.a.env]\nB = \"2\"\nA = '1'\n[params]\nlr = 0.001\n",
    );
    assert_eq!(sandbox.json(&[]).ran(), Vec::<&str>::new());
}

#[test]
fn what_is_no_toml_says_what_to_type() {
    let sandbox = Sandbox::new();
    for (text, place, hint) in [
        ("[params]\na = \"x\n", "p.toml:2", "close the text"),
        ("[params]\na = [1, 2\n", "p.toml:2", "close the list with `]`"),
        ("[params]\na 1\n", "p.toml:2:3", "write a = …"),
        ("[params]\na = x\n", "p.toml:2:5", "a text stands in quotes: a = \"x\""),
        ("[params]\na =\n", "p.toml:2", "a value is missing: a = …"),
        ("[params]\na: 1\n", "p.toml:2:2", "a = 1"),
        ("[params]\na = True\n", "p.toml:2:5", "written small"),
        ("[params]\na = 1\nb = 2\na = 3\n", "p.toml:4:1", "it stands in line 2 for the first time"),
        ("[params]\na = 1\n[params]\na = 3\n", "p.toml:3:2", "it stands in line 1 for the first time"),
    ] {
        sandbox.write("p.toml", text);
        let said = refused(&sandbox, &[]);
        assert!(said.contains(place) && said.contains(hint), "{text}\n{said}");
    }
    let output = sandbox.run(&["check", "q.toml"]);
    assert!(output.code == Some(2) && output.stderr.contains("did you mean `p.toml`?"), "{output}");
    let output = sandbox.run(&["check", "pipeline.toml"]);
    assert!(output.code == Some(2) && output.stderr.contains("pipelines here: p.toml"), "{output}");
}

#[test]
fn check_speaks_json() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrnu = 1\n");
    let output = sandbox.run(&["check", "p.toml", "--json"]);
    assert_eq!((output.code, output.stderr.as_str()), (Some(2), ""), "{output}");
    let lines: Vec<serde_json::Value> = output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{output}");
    let place = |at: &serde_json::Value| (at["file"].clone(), at["line"].clone(), at["column"].clone());
    assert_eq!(place(&lines[1]), ("p.toml".into(), 5.into(), 1.into()));
    assert_eq!((&lines[1]["severity"], &lines[1]["hints"][0]), (&"error".into(), &"did you mean `run`?".into()));
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"true > {out}/a\"\n");
    assert_eq!(sandbox.ok(&["check", "p.toml", "--json"]), "");
}

#[test]
fn a_file_without_an_end_is_no_pipeline() {
    let sandbox = Sandbox::new();
    sandbox.write("p.toml", "include = [\"/dev/zero\", \"lib\"]\n[stage.a]\nkind = \"comand\"\n");
    std::fs::create_dir(sandbox.path("lib")).unwrap();
    let said = refused(&sandbox, &[]);
    for part in ["cannot read /dev/zero", "more than 64 MiB", "cannot read lib", "directory", "did you mean `command`?"]
    {
        assert!(said.contains(part), "{part}\n{said}");
    }
}

#[test]
fn what_is_wrong_with_one_value_hides_no_other() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nrun = echo\nretries = -1\ntimeout = 1_\n[stage.b]\nkind = \"comand\"\n\
         [stage.c]\nkind = \"command\"\nrun = \"{ouT} {in.y} {in.z}\"\n",
    );
    let said = refused(&sandbox, &[]);
    assert_eq!(places(&said, "p.toml"), ["5:7", "6:11", "7:12", "9:8", "12:7", "12:7", "12:7"], "{said}");
    for part in ["a text stands in quotes", "`{in.y}`", "`{in.z}`", "did you mean `{out}`?"] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    // What takes the rest of the file with it is said alone.
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"\"\"echo\nretries = -1\n");
    assert_eq!(refused(&sandbox, &[]).matches("error: ").count(), 1);
}

#[test]
fn profiles_that_nobody_chose_are_checked() {
    let sandbox = Sandbox::with(
        "[params]\nn = 1\n[stage.a]\nkind = \"command\"\nrun = \"echo ${n} > {out}/x\"\n\
         [profile.good.params]\nn = 2\n\
         [profile.bad.stage.a]\nrnu = 1\n[profile.bad.stage.b]\nkind = \"fecth\"\n\
         [profile.worse.stage.a]\nrun = \"{in.x}\"\n[profile.worse.stage.c]\nretries = 1\n",
    );
    let output = sandbox.run(&["check", "p.toml"]);
    assert_eq!(output.code, Some(2), "{output}");
    for part in [
        "unknown key `rnu`",
        "this is with the profile `bad`",
        "did you mean `fetch`?",
        "`{in.x}`",
        "this is with the profile `worse`",
        "stage `c` has no `kind`",
    ] {
        assert!(output.stderr.contains(part), "{part}\n{output}");
    }
    assert_eq!(output.stderr.matches("error: ").count(), 4, "{output}");
    // They are no error of who chose another.
    for args in [&["check", "p.toml", "--profile", "good"][..], &["plan", "p.toml"], &["run", "p.toml"]] {
        sandbox.ok(args);
    }
    sandbox.pipeline("[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/x\"\n[profile.good.params]\nn = 2\n");
    assert!(sandbox.run(&["check", "p.toml"]).stderr.contains("1 stage in 1 node, 1 profile, nothing wrong"));
}

#[test]
fn a_pipeline_without_stages_says_so() {
    let sandbox = Sandbox::with("[params]\nn = 1\n");
    for command in ["check", "plan", "run", "graph"] {
        let output = sandbox.run(&[command, "p.toml"]);
        assert!(output.code == Some(0) && output.stderr.contains("p.toml has no stages"), "{command}\n{output}");
    }
}

#[test]
fn why_a_stage_is_off_or_failed_is_said_in_its_words() {
    let sandbox = Sandbox::with(
        "[params]\nn = 1\non = false\n[stage.a]\nkind = \"command\"\nwhen = \"${n} > 3\"\nrun = \"true\"\n\
         [stage.b]\nkind = \"command\"\nwhen = \"${on}\"\nrun = \"true\"\n\
         [stage.c]\nkind = \"command\"\nrun = \"ls {in.a}\"\nin = { a = \"a\" }\n\
         [stage.d]\nkind = \"command\"\nrun = \"test -e ../good && echo > {out}/x\"\n",
    );
    let plan = sandbox.ok(&["plan", "p.toml"]);
    for (stage, off) in
        [("a", "when = \"${n} > 3\" is false: 1 > 3"), ("b", "when = \"${on}\" is false"), ("c", "`a` is off")]
    {
        assert!(plan.lines().any(|line| line.starts_with("off") && line.contains(off)), "{off}\n{plan}");
        assert_eq!(sandbox.ok(&["why", "p.toml", stage]), format!("{stage}\n  off: {off}\n"));
    }
    assert!(sandbox.ok(&["why", "p.toml", "d"]).contains("would run: never ran before"));
    assert_eq!(sandbox.run(&["run", "p.toml"]).code, Some(1));
    assert!(sandbox.ok(&["why", "p.toml", "d"]).contains("would run: failed last time"));
}

#[test]
fn nodes_of_a_matrix_are_named_by_number_and_by_words_everywhere() {
    let sandbox = Sandbox::with(
        "[stage.a]\nkind = \"command\"\nmatrix = { lr = [1e-3, 1e-4], s = [\"x\", \"y\"] }\n\
         run = \"echo ${matrix}; echo > {out}/x\"\n\
         [stage.b]\nkind = \"command\"\nrun = \"ls {in.a}\"\nin = { a = \"a\" }\n",
    );
    sandbox.ok(&["run", "p.toml"]);
    for (name, label) in
        [("a[2]", "lr=0.0001,s=x"), ("a[lr=1e-3,s=y]", "lr=0.001,s=y"), ("a[lr=0.001,s=x]", "lr=0.001,s=x")]
    {
        assert_eq!(sandbox.ok(&["log", name]), format!("{label}\n"), "{name}");
        assert_eq!(sandbox.ok(&["log", name, "-f"]), format!("{label}\n"), "{name}");
        assert!(sandbox.ok(&["show", "last", name]).starts_with(&format!("a[{label}]\n")), "{name}");
        assert_eq!(sandbox.ok(&["show", "last", name, "--json"]).lines().count(), 1, "{name}");
    }
    assert_eq!(sandbox.ok(&["log", "a[s=y]"]).matches("==> ").count(), 2);
    assert_eq!(sandbox.ok(&["log", "a"]).matches("==> ").count(), 4);
    for name in ["a[4]", "a[lr=1]"] {
        for args in [&["log", name][..], &["show", "last", name]] {
            assert_eq!(sandbox.run(args).code, Some(2), "{args:?}");
        }
    }
    let stages = sandbox.ok(&["graph", "p.toml"]);
    assert_eq!(stages.lines().count(), 2, "{stages}");
    let nodes = sandbox.ok(&["graph", "p.toml", "--nodes"]);
    assert!(nodes.lines().count() == 5 && nodes.contains("a[lr=0.0001,s=y]  command"), "{nodes}");
    assert!(
        nodes
            .lines()
            .last()
            .unwrap()
            .ends_with("<- a[lr=0.001,s=x], a[lr=0.001,s=y], a[lr=0.0001,s=x], a[lr=0.0001,s=y]"),
        "{nodes}"
    );
    assert!(sandbox.ok(&["graph", "p.toml", "--nodes", "--format", "mermaid"]).contains("a[lr=0.001,s=y]<br/>command"));
}

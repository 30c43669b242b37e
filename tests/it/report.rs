//! `flow report`: the page of real runs, looked at in a real browser.

use std::{fs, path::Path};

use serde_json::Value as Json;

use crate::{
    browser::Browser,
    support::{Sandbox, copy},
};

/// A training as a command can play it: `metrics.jsonl`, an evaluation, samples; and a family of shards.
const TRAINING: &str = r#"
[params]
lr = "0.1"
[stage.words]
kind = "command"
run = "echo words > {out}/a.txt"
[stage.shards]
kind = "command"
matrix = { n = [1, 2, 3, 4, 5] }
in = { x = "words" }
run = "cp {in.x}/a.txt {out}/${matrix.n}.txt"
[stage.train]
kind = "command"
in = { x = "shards" }
run = '''
awk -v lr=${lr} 'BEGIN { for (s = 1; s <= 300; s++) {
  printf "{\"step\":%d,\"loss\":%f,\"lr\":%f,\"grad_norm\":%f", s, 2 + 8 * exp(-s * lr / 5) + s % 7 / 50, lr * (1 - s / 400), 1 + s % 5
  if (s % 30 == 0) printf ",\"val_loss\":%f", 2.1 + 8 * exp(-s * lr / 5)
  print "}" } }' > {out}/metrics.jsonl
'''
[stage.eval]
kind = "command"
in = { x = "train" }
run = '''
mkdir {out}/samples
echo '{"format":2,"versions":{"flow":"0.1.0"},"models":{"model":{"name":"hf"},"compare":{"name":"base"}},"tasks":[{"task":"piqa","version":1,"documents":20,"num_fewshot":0,"metrics":[{"metric":"acc","higher_is_better":true,"model":{"value":0.75,"stderr":0.05},"compare":{"value":0.5,"stderr":0.06},"difference":{"value":0.25,"stderr":0.07}}]}]}' > {out}/results.json
echo '{"document":0,"prompt":"<b>Q:</b> 2+2?","target":"4","prediction":"four"}' > {out}/samples/qa.model.jsonl
echo '{"document":0,"prompt":"<b>Q:</b> 2+2?","target":"4","prediction":"fish"}' > {out}/samples/qa.compare.jsonl
'''
"#;

fn url(sandbox: &Sandbox, file: &str) -> String {
    format!("file://{}", sandbox.path(file).display())
}

/// Each chart with the number of points of its longest curve.
const POINTS: &str = "return [...document.querySelectorAll('[data-chart]')].map((chart) => [chart.dataset.chart,
    Math.max(...[...chart.querySelectorAll('path.line')].map((path) => path.getAttribute('d').split(/[ML]/).length - 1))])";
/// The steps that stand below the first chart.
const STEPS: &str = "return [...document.querySelectorAll('[data-chart=loss] text.tick[text-anchor=middle]')].map((t) => t.textContent)";
const PRESS: &str = "document.querySelector('[data-chart=loss] svg').dispatchEvent(new KeyboardEvent('keydown', { key: arguments[0] ?? KEY, bubbles: true }))";

fn press(browser: &Browser, key: &str) {
    browser.script(&PRESS.replace("arguments[0] ?? KEY", &format!("'{key}'")));
}

#[test]
fn a_run_is_a_page_that_a_browser_shows_without_complaint() {
    let sandbox = Sandbox::with(TRAINING);
    sandbox.ok(&["run", "p.toml"]);
    let place = sandbox.ok(&["report"]);
    assert_eq!(Path::new(place.trim()), sandbox.path("report.html").canonicalize().unwrap());
    let page = sandbox.read("report.html");
    // Also without a script there are curves, and a table of them.
    assert!(page.contains("<path class=\"line s0\"") && page.contains("300 values"), "no static chart");
    assert!(!page.contains("http://") || !page.contains("<link"), "nothing is loaded");

    let Some(browser) = Browser::start() else { return };
    browser.open(&url(&sandbox, "report.html"));
    let text = browser.script("return document.body.innerText");
    let text = text.as_str().unwrap();
    for told in
        ["words", "shards", "command ×5", "train", "Took", "0.75", "0.25", "better", "fish", "four", "<b>Q:</b> 2+2?"]
    {
        assert!(text.contains(told), "{told} in {text}");
    }
    let points = browser.script(POINTS);
    let points: Vec<(String, f64)> = serde_json::from_value(points).unwrap();
    assert_eq!(points.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["loss", "lr", "grad_norm"]);
    assert!(points.iter().all(|(_, number)| *number >= 300.0), "{points:?}");
    assert_eq!(browser.script("return document.querySelectorAll('.timeline rect').length"), 8);
    assert_eq!(browser.script("return document.querySelectorAll('.dag .node').length"), 4);
    assert_eq!(browser.script("return document.querySelectorAll('.dag .edge').length"), 3);

    // Closer, and back; by keys and by the mouse.
    let whole = browser.script(STEPS);
    assert_eq!(browser.script("return document.getElementById('reset').disabled"), true);
    press(&browser, "+");
    let closer = browser.script(STEPS);
    assert_ne!(whole, closer);
    press(&browser, "0");
    assert_eq!(browser.script(STEPS), whole);
    browser.script(
        "const svg = document.querySelector('[data-chart=loss] svg'), box = svg.getBoundingClientRect();
         const at = (type, share) => svg.dispatchEvent(new PointerEvent(type,
            { clientX: box.left + box.width * share, clientY: box.top + 50, button: 0, pointerType: 'touch', bubbles: true }));
         at('pointerdown', .4); at('pointermove', .5); at('pointerup', .5);",
    );
    let dragged = browser.script(STEPS);
    assert!(dragged != whole && dragged != closer, "{dragged}");
    browser.script("document.getElementById('reset').click()");
    assert_eq!(browser.script(STEPS), whole);
    // The value under the cursor; the scale; a curve less.
    press(&browser, "ArrowRight");
    let tip = "return document.querySelector('.tipbox').textContent";
    let first = browser.script(tip);
    press(&browser, "ArrowRight");
    assert!(first.as_str().unwrap().starts_with("Step ") && browser.script(tip) != first, "{first}");
    let loss = "return document.querySelector('[data-chart=loss] path.line').getAttribute('d')";
    let linear = browser.script(loss);
    browser.script("document.getElementById('log').click()");
    assert_ne!(browser.script(loss), linear);
    browser.script("const s = document.getElementById('smooth'); s.value = '0.9'; s.dispatchEvent(new Event('input'))");
    assert_eq!(browser.script("return document.querySelectorAll('[data-chart=loss] path.raw').length"), 1);
    browser.script("document.querySelector('[data-chart=loss] .keys button').click()");
    assert_eq!(browser.script("return document.querySelectorAll('[data-chart=loss] path.line').length"), 1);
    browser.script("document.querySelector('[data-chart=loss] .keys button').click()");
    // A click on a stage of the graph opens what there is of it.
    browser.script("location.hash = document.querySelectorAll('.dag .node')[1].getAttribute('href')");
    browser
        .script("document.querySelectorAll('.dag .node')[1].dispatchEvent(new MouseEvent('click', { bubbles: true }))");
    crate::support::until("the stage is open", || {
        browser.script("return document.getElementById('r0-stage-shards').open") == true
    });

    // Light, dark, on a phone: never wider than the window, and never blank.
    let paper = "return getComputedStyle(document.body).backgroundColor";
    let mut papers = Vec::new();
    for scheme in ["light", "dark"] {
        browser.colors(scheme);
        papers.push(browser.script(paper));
        assert!(browser.picture(&format!("report-{scheme}")) > 50);
    }
    assert_ne!(papers[0], papers[1]);
    browser.script("document.getElementById('theme').click(); document.getElementById('theme').click()");
    assert_eq!(browser.script(paper), papers[0], "by hand it is light whatever the system");
    browser.width(360, true);
    assert!(browser.picture("report-phone") > 50);
    assert_eq!(browser.script("return document.documentElement.scrollWidth"), 360);
    assert_eq!(browser.script("return performance.getEntriesByType('resource').length"), 0);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// As a whole a long curve is drawn with less than all its values; from near each of them is there.
#[test]
fn from_near_a_curve_has_every_step() {
    let sandbox = Sandbox::with(
        r#"
[stage.train]
kind = "command"
run = '''
awk 'BEGIN { for (s = 1; s <= 15000; s++) printf "{\"step\":%d,\"loss\":%f}\n", s, 1 + s % 2 + 1 / s }' > {out}/metrics.jsonl
'''
"#,
    );
    sandbox.ok(&["run", "p.toml"]);
    sandbox.ok(&["report", "-o", "long.html"]);
    let size = sandbox.read("long.html").len();
    assert!(size < 400_000, "{size}");
    let Some(browser) = Browser::start() else { return };
    browser.open(&url(&sandbox, "long.html"));
    let points: Vec<(String, f64)> = serde_json::from_value(browser.script(POINTS)).unwrap();
    assert!(points[0].1 > 100.0 && points[0].1 < 3000.0, "{points:?}");
    (0..20).for_each(|_| press(&browser, "+"));
    let step = || -> u64 {
        press(&browser, "ArrowRight");
        let step = browser.script("return document.querySelector('.tipbox b').textContent");
        step.as_str().unwrap().trim_start_matches("Step ").replace(',', "").parse().unwrap()
    };
    let first = step();
    assert_eq!((step(), step()), (first + 1, first + 2));
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn runs_side_by_side_share_their_charts_and_say_what_differs() {
    let sandbox = Sandbox::with(TRAINING);
    sandbox.ok(&["run", "p.toml"]);
    sandbox.ok(&["run", "p.toml", "--set", "params.lr=0.2"]);
    sandbox.ok(&["report", "last-1", "last", "-o", "two.html"]);
    let json: Json = serde_json::from_str(&sandbox.ok(&["report", "last-1", "last", "--json"])).unwrap();
    let differs: Vec<&str> =
        json["differences"].as_array().unwrap().iter().map(|row| row["what"].as_str().unwrap()).collect();
    assert_eq!(differs, ["set", "run"]);
    assert_eq!(json["runs"][1]["stages"][2]["nodes"][0]["curves"]["loss"]["x"].as_array().unwrap().len(), 300);
    let Some(browser) = Browser::start() else { return };
    browser.open(&url(&sandbox, "two.html"));
    let keys = browser
        .script("return [...document.querySelectorAll('[data-chart=loss] .keys li')].map((k) => k.innerText.trim())");
    assert_eq!(keys, serde_json::json!(["A", "A validation", "B", "B validation"]));
    assert_eq!(browser.script("return document.querySelectorAll('.dag').length"), 2);
    assert!(browser.picture("report-two") > 50);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn the_corpus_is_counted_and_what_was_dropped_is_said() {
    let sandbox = Sandbox::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), &sandbox.path("examples"));
    sandbox.ok(&["run", "examples/curate/pipeline.toml"]);
    let json: Json = serde_json::from_str(&sandbox.ok(&["report", "--json"])).unwrap();
    let stages = json["runs"][0]["stages"].as_array().unwrap();
    let corpus = |name: &str| &stages.iter().find(|stage| stage["name"] == name).unwrap()["corpus"];
    let sum = |of: &Json| of.as_array().unwrap().iter().map(|pair| pair[1].as_u64().unwrap()).sum::<u64>();
    let good = corpus("good");
    let number = |of: &Json| of.as_u64().unwrap();
    assert_eq!(sum(&good["dropped"]), number(&good["documents"]) - number(&good["kept"]));
    assert!(!good["examples"].as_array().unwrap().is_empty());
    let tokens = corpus("tokens");
    let lengths = tokens["lengths"].as_object().unwrap();
    assert_eq!(lengths.values().map(number).sum::<u64>(), number(&tokens["documents"]));
    assert!(number(&tokens["tokens"]) > 0);
    assert_eq!(sum(&corpus("parts")["parts"]), number(&corpus("parts")["documents"]));
}

#[test]
fn what_failed_is_told_and_no_text_of_a_users_is_obeyed() {
    let evil = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)>";
    let sandbox = Sandbox::with(&format!(
        r#"
[params]
evil = "{evil}"
[stage.breaks]
kind = "command"
run = "echo '${{evil}}'; exit 3"
[stage.after]
kind = "command"
in = {{ x = "breaks" }}
run = "true"
"#
    ));
    assert_eq!(sandbox.run(&["run", "p.toml"]).code, Some(1));
    sandbox.ok(&["report", "-o", "failed.html"]);
    let page = sandbox.read("failed.html");
    assert!(!page.contains("<img src=x") && !page.contains("<script>document"), "a text is a part of the page");
    let Some(browser) = Browser::start() else { return };
    browser.open(&url(&sandbox, "failed.html"));
    let text = browser.script("return document.body.innerText");
    let text = text.as_str().unwrap();
    assert!(text.contains(evil) && text.contains("exit status 3") && text.contains("not run"), "{text}");
    let title = browser.script("return document.title");
    assert!(title.as_str().unwrap().starts_with("p · "), "{title}");
    assert_eq!(browser.script("return document.querySelector('#r0-stage-breaks').open"), true);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[test]
fn a_file_that_flow_did_not_write_is_left_alone() {
    let sandbox = Sandbox::with("[stage.a]\nkind = \"command\"\nrun = \"echo > {out}/a\"");
    assert_eq!(sandbox.run(&["report"]).code, Some(2), "there are no runs");
    sandbox.ok(&["run", "p.toml"]);
    sandbox.write("mine.html", "<p>mine");
    let refused = sandbox.run(&["report", "-o", "mine.html"]);
    assert_eq!(refused.code, Some(2), "{refused}");
    assert!(refused.stderr.contains("mine.html") && refused.stderr.contains("--force"), "{refused}");
    assert_eq!(sandbox.read("mine.html"), "<p>mine");
    for args in [&["report", "-o", "mine.html", "--force"][..], &["report", "-o", "mine.html"]] {
        sandbox.ok(args);
        assert!(sandbox.read("mine.html").starts_with("<!DOCTYPE html>"));
    }
    assert_eq!(sandbox.ok(&["report", "-o", "-"]).lines().next(), sandbox.read("mine.html").lines().next());
    for args in [&["report", "nobody"][..], &["report", "-o", "no/such/dir.html"], &["report", "-o", "/dev"]] {
        let wrong = sandbox.run(args);
        assert_eq!(wrong.code, Some(2), "{wrong}");
    }
    let left: Vec<_> = fs::read_dir(sandbox.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
}

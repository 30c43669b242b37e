//! A small dump with all that pages are made of, beside what wikiextractor makes of it; and dumps that are damaged.

use std::io::Write;

use serde_json::{Value as Json, json};

use super::*;
use crate::testing::{Stand, repository, stage};

fn dump() -> String {
    std::fs::read_to_string(repository().join("tests/golden/wiki_extract/dump.xml")).unwrap()
}

fn golden(name: &str) -> Vec<Json> {
    let text = std::fs::read_to_string(repository().join("tests/golden/wiki_extract").join(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn bzip2(text: &[u8]) -> Vec<u8> {
    let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn extract(name: &str, content: &[u8]) -> Stand {
    let mut stand = Stand::new();
    let path = stand.write(name, content);
    stand.input("input", &path);
    stand.run(&stage::<WikiExtract>(json!({ "input": "dump" }))).unwrap();
    stand
}

fn cleaned(wikitext: &str) -> String {
    markup::text(&Site::default(), wikitext).0
}

#[test]
fn a_dump_becomes_its_articles() {
    let dump = dump();
    // Streams behind each other, cut at any byte, as the multistream dumps have them.
    let (head, tail) = dump.as_bytes().split_at(dump.len() / 3);
    let stand = extract("test-pages-articles.xml.bz2", &[bzip2(head), bzip2(tail)].concat());
    assert_eq!(stand.outs(), ["test-pages-articles.jsonl", "test-pages-articles.stats.json"]);
    let out = String::from_utf8(stand.out("test-pages-articles.jsonl")).unwrap();
    let path = repository().join("tests/golden/wiki_extract/flow.jsonl");
    if std::env::var_os("FLOW_UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &out).unwrap();
    }
    let articles: Vec<Json> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(articles, golden("flow.jsonl"));
    let stats: Json = serde_json::from_slice(&stand.out("test-pages-articles.stats.json")).unwrap();
    assert_eq!((&stats["pages"], &stats["articles"]), (&json!(10), &json!(5)));
    assert_eq!(stats["dropped"], json!({"empty": 1, "other_models": 1, "other_namespaces": 2, "redirects": 1}));
    assert_eq!(stats["removed"]["unclosed_tables"], 1);
}

#[test]
fn what_wikiextractor_gives_is_there_too() {
    let ours = golden("flow.jsonl");
    for peer in golden("wikiextractor.jsonl") {
        let id = &peer["id"];
        let Some(article) = ours.iter().find(|article| article["id"] == *id) else {
            assert_eq!(peer["text"], "", "page {id}");
            continue;
        };
        assert_eq!((&article["url"], &article["revid"]), (&peer["url"], &peer["revid"]));
        // It escapes for HTML, makes quotes of italics and ends headings with a stop.
        let plain = |text: &Json| {
            let text = text.as_str().unwrap().replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
            text.replace('"', "").replace('\u{a0}', " ")
        };
        assert_eq!(article["title"], plain(&peer["title"]));
        let lines: Vec<_> = plain(&article["text"]).lines().map(|line| line.trim().to_owned()).collect();
        // Formulas and code are placeholders there, what is small or behind a stray brace is missing, and a poem has
        // no lines of its own.
        let differs =
            ["formula_1", "Behaviour words", "and red and", "An apples and", "here.", "print(x)", "roses", "red line"];
        for line in plain(&peer["text"]).lines().map(str::trim).filter(|line| !differs.iter().any(|d| line.contains(d)))
        {
            let there = |ours: &String| ours == line || Some(ours.as_str()) == line.strip_suffix('.');
            assert!(lines.iter().any(there), "page {id} lacks {line:?}: {lines:#?}");
        }
    }
}

#[test]
fn every_mark_is_read_as_the_reader_of_the_page_sees_it() {
    for (wikitext, text) in [
        ("'''Bold''', ''italic'' and '''''both'''''; don't", "Bold, italic and both; don't"),
        ("a{{b|{{c}}|[[d]]}}e {{{f|g}}} h", "ae h"),
        ("{{#if:{{{1|}}}|x}}y", "y"),
        (
            "[[a|b]]s [[c]] [[d#e|]] [[:Category:F]] [[Category:G]] [[Image:h.png|[[i]]]] [[ja:犬]] [[Star Trek: V]]",
            "bs c d#e Category:F Star Trek: V",
        ),
        ("[[File:a.jpg|thumb|[http://x.example b]]]c", "c"),
        ("[http://x.example label] [//y.example] [1] https://z.example", "label [1] https://z.example"),
        ("x<ref name=O'Reilly>y</ref><ref name=\"a/b\" />z<!-- c -->.", "xz."),
        ("5 < 6 &lt; 7 &amp;amp; &#x41;&nbsp;&bogus; a<b", "5 < 6 < 7 &amp; A &bogus; a<b"),
        ("<nowiki>''[[x]]''</nowiki> <math>a^2</math> <code>b</code> <br/>c<br>d", "''[[x]]'' $a^2$ b c d"),
        ("<nowiki>* no list</nowiki>\n* list\n## number\n;term\n:: text", "* no list\n- list\n- number\nterm\ntext"),
        ("== A ==\n=== B ===\n== C ==\ntext\n=== D ===\n", "C\ntext"),
        ("== A ==\n=== B ===\ntext", "A\nB\ntext"),
        ("a\n{|\n| b\n{|\n| c\n|}\n|}\nd <table><tr><td>e<table></table></td></tr></table>f", "a\nd f"),
        ("a\n{|\n| never closed\n== B ==\nc", "a\nB\nc"),
        ("{{never closed\n| a = b\ntext", "never closed\ntext"),
        ("a }} b ]] c |} d [[e", "a b c |} d e"),
        ("[[[x]]] [[[[y]]]] [[a\nb]]", "[x] y a\nb"),
        ("Kyoto ({{lang|ja|x}}, {{y}}) is （{{z}}、）old {{w}}.", "Kyoto is old."),
        ("<syntaxhighlight lang=c>\nif (x) {\n  y();\n}\n</syntaxhighlight>", "if (x) {\n  y();\n}"),
        ("__NOTOC__a __init__ b__目次強制__", "a __init__ b"),
        ("<poem>a\nb</poem><div class='x'>c</div>d <unknown>e", "a\nb\nc\nd <unknown>e"),
        ("a <ref>never closed\nb", "a\nb"),
        ("----\na\n|- debris\n(!)", "a"),
    ] {
        assert_eq!(cleaned(wikitext), text, "{wikitext}");
    }
}

#[test]
fn no_page_takes_long_or_fails() {
    for broken in [
        "{{",
        "[[",
        "{|",
        "<ref>",
        "<nowiki>",
        "[[a|",
        "{{{",
        "<!--",
        "'''",
        "<table>",
        "[http://a ",
        "\n{|",
        "&",
        "__A",
    ] {
        let text = cleaned(&broken.repeat(200_000 / broken.len()));
        assert!(text.len() <= 400_000);
    }
    proptest::proptest!(|(text in r"([\[\]{}|<>/'=*:;&#_!\n -]|ref|nowiki|table|a|日|File:|http://){0,60}")| {
        cleaned(&text);
    });
}

#[test]
fn a_number_that_is_no_character_costs_that_character_alone() {
    let page = "<page><title>T</title><ns>0</ns><id>7</id><revision><id>8</id><text>a&#0;b&#x41;c&#xd800;&amp;</text></revision></page>";
    let stand = extract("a.xml", format!("<mediawiki>{page}</mediawiki>").as_bytes());
    let article: Json = serde_json::from_slice(&stand.out("a.jsonl")).unwrap();
    assert_eq!(article["text"], "a\u{fffd}bAc\u{fffd}&");
}

#[test]
fn a_damaged_dump_is_told() {
    let dump = dump();
    let run = |name: &str, content: &[u8]| {
        let mut stand = Stand::new();
        let path = stand.write(name, content);
        stand.input("input", &path);
        stand.error(&stage::<WikiExtract>(json!({ "input": "dump" })))
    };
    let packed = bzip2(dump.as_bytes());
    let text = run("a.xml.bz2", &packed[..packed.len() / 2]);
    assert!(text.contains("truncated bzip2"), "{text}");
    let text = run("a.xml", &dump.as_bytes()[..dump.find("</page>").unwrap()]);
    assert!(text.contains("a.xml, at byte") && text.contains("ends inside of <page>"), "{text}");
    assert!(run("a.xml", b"<html></html>").contains("<html> begins no dump"));
    for empty in ["", " \n", "<!-- a -->"] {
        let text = run("a.xml", empty.as_bytes());
        assert!(text.contains("a.xml holds no dump of a wiki"), "{text}");
    }
    assert!(run("a.xml", b"<mediawiki><page></mediawiki>").contains("at byte"));
}

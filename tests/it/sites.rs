//! What `docs/sites` shows is read by flow: every `flow.toml` as settings, every other block of TOML as a pipeline.

use std::{fs, path::Path};

use crate::support::Sandbox;

/// The TOML blocks of a Markdown text.
fn blocks(markdown: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut block: Option<String> = None;
    for line in markdown.lines() {
        match &mut block {
            None if line == "```toml" => block = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(block.take()),
            Some(text) => *text += &format!("{line}\n"),
        }
    }
    blocks
}

#[test]
fn the_pages_of_sites_are_true() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sites");
    let (mut settings, mut pipelines) = (0, 0);
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let blocks = blocks(&fs::read_to_string(&path).unwrap());
        let is_settings = |block: &&String| block.starts_with("# flow.toml\n");
        for said in blocks.iter().filter(is_settings) {
            settings += 1;
            for pipeline in blocks.iter().filter(|block| !is_settings(block)) {
                pipelines += 1;
                let sandbox = Sandbox::with(pipeline);
                sandbox.write("flow.toml", said);
                for file in ["prepare.py", "score.py", "stats.py", "filter.py", "data/in.jsonl", "data/text.jsonl"] {
                    sandbox.write(file, "");
                }
                for image in ["images/python.sif", "images/pytorch.sqsh"] {
                    sandbox.write(image, "");
                }
                let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/ja_wiki_mini/tokenizer");
                crate::support::copy(&tokenizer, &sandbox.path("tokenizer"));
                // What this machine lacks, an engine or a scheduler, is a word of its own; what is in the files is what counts.
                let output = sandbox.run(&["check", "p.toml", "--json"]);
                for line in output.stdout.lines() {
                    let said: serde_json::Value = serde_json::from_str(line).unwrap();
                    let message = said["message"].as_str().unwrap();
                    let lacks = ["is not here", "runs such a container", "and there is no `", "and there are"];
                    assert!(lacks.iter().any(|word| message.contains(word)), "{}: {said}", path.display());
                }
            }
        }
    }
    assert!(settings >= 5 && pipelines >= 5, "{settings} {pipelines}");
}

//! `gunzip`, also called `decompress`: files without their compression.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use flow_core::{Check, Ctx, Port, Refs, Stage, Unit};
use flow_formats::compressed::{Compression, Decoder, strip_ending};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `kind = "gunzip"`: one node a shard; every file of it, gzip (also of several members), zstd, bzip2 or xz, without its
/// compression and the ending that said so.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gunzip {
    /// Compressed files: one node each.
    #[serde(skip_serializing)]
    input: Refs,
}

impl Stage for Gunzip {
    const KIND: &'static str = "gunzip";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Decompresses gzip, zstd, bzip2 and xz files";

    fn ports(&self) -> Vec<Port> {
        vec![Port::each("input", &self.input)]
    }

    fn check(&self, check: &mut Check<'_>) {
        let names = check.input("input").iter().flat_map(|known| &known.files);
        check.files = names.map(|name| strip_ending(name).to_owned()).collect();
        let paths: Vec<_> = check.input("input").iter().filter_map(|known| known.path.clone()).collect();
        for path in paths.iter().filter(|path| path.is_file()) {
            if let Err(error) = compressed(path) {
                check.error("input", crate::diagnostic(&error));
            }
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let input = ctx.one("input")?;
        let files = input.files();
        let total = input.tree.size();
        let mut before = 0;
        for (name, path) in &files {
            let target = ctx.out.join(strip_ending(name));
            ensure!(!target.exists(), "two files of {} would both become {}", input.name, strip_ending(name));
            decompress(ctx, path, &target, before, total)?;
            before += path.metadata()?.len();
        }
        Ok(())
    }
}

fn compressed(path: &Path) -> Result<Decoder> {
    let decoder = Decoder::open(path)?;
    ensure!(
        decoder.compression() != Compression::None,
        "{} is not gzip, zstd, bzip2 or xz: it needs no gunzip stage",
        path.display()
    );
    Ok(decoder)
}

fn decompress(ctx: &Ctx<'_>, path: &Path, target: &Path, before: u64, total: u64) -> Result<()> {
    let mut decoder = compressed(path)?;
    let position = decoder.position();
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let mut out = File::create_new(target).with_context(|| format!("cannot create {}", target.display()))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        ctx.go_on()?;
        let n = decoder.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..n]).with_context(|| format!("cannot write {}", target.display()))?;
        ctx.progress(before + position.get(), Some(total), Unit::Bytes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::{Stand, stage};

    fn gunzip() -> Gunzip {
        stage(json!({ "input": "raw" }))
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_file_loses_its_compression_and_its_ending() {
        let mut stand = Stand::new();
        stand.write("raw/a.jsonl.gz", [gzip(b"one\n"), gzip(b"two\n")].concat());
        stand.write("raw/sub/b.txt.zst", zstd::encode_all(&b"three\n"[..], 1).unwrap());
        let raw = stand.place("raw");
        stand.input("input", &raw);
        stand.run(&gunzip()).unwrap();
        assert_eq!(stand.outs(), ["a.jsonl", "sub/b.txt"]);
        assert_eq!((stand.out("a.jsonl"), stand.out("sub/b.txt")), (b"one\ntwo\n".to_vec(), b"three\n".to_vec()));
    }

    #[test]
    fn damage_and_what_is_not_compressed_are_told() {
        for (name, content, words) in [
            ("a.gz", gzip(&[7; 5000])[..20].to_vec(), "truncated gzip: the file ends at byte 20"),
            ("a.jsonl", b"{}".to_vec(), "it needs no gunzip stage"),
            ("b.gz", b"<html>".to_vec(), "a page of HTML"),
        ] {
            let mut stand = Stand::new();
            let path = stand.write(name, content);
            stand.input("input", &path);
            let error = stand.error(&gunzip());
            assert!(error.contains(words) && error.contains(name), "{error}");
            let (errors, ..) = stand.check(&gunzip());
            assert_eq!(errors.len(), usize::from(name != "a.gz"), "what the first bytes say is said before the run");
        }
        let mut stand = Stand::new();
        stand.write("raw/a.gz", gzip(b"1"));
        stand.write("raw/a.zst", zstd::encode_all(&b"2"[..], 1).unwrap());
        let raw = stand.place("raw");
        stand.input("input", &raw);
        assert!(stand.error(&gunzip()).contains("would both become a"));
    }
}

//! `merge`: several indexed datasets as one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use flow_core::{Check, Ctx, Diagnostic, Input, Level, Port, Refs, Stage, Unit, is_safe_name};
use flow_formats::indexed::{IndexedDataset, IndexedWriter};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::datasets;

/// `kind = "merge"`: the `.bin/.idx` of all inputs, in the order of the inputs and within one in the order of names,
/// as one `.bin/.idx` with the bytes that Megatron's merging gives.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Tokens: stages, directories, or prefixes of a `.bin` and an `.idx`.
    #[serde(skip_serializing)]
    input: Refs,
    /// The result's name, before `.bin` and `.idx`.
    #[serde(default = "default_name")]
    name: String,
}

fn default_name() -> String {
    "merged_text_document".to_owned()
}

impl Stage for Merge {
    const KIND: &'static str = "merge";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Merges several .bin/.idx datasets into one, in Megatron's order";

    fn ports(&self) -> Vec<Port> {
        vec![Port::all("input", &self.input).or_prefix_of(&[".bin", ".idx"]).only(&["*.bin", "*.idx"])]
    }

    fn check(&self, check: &mut Check<'_>) {
        check.files = ["bin", "idx"].map(|ending| format!("{}.{ending}", self.name)).into();
        if !is_safe_name(&self.name) || self.name.contains('/') {
            let error = Diagnostic::new(format!("`{}` is not a file name", self.name));
            check.error("name", error.hint("a name without `/`, such as \"train_text_document\""));
        }
        for wrong in check.input("input").iter().filter_map(datasets::wrong).collect::<Vec<_>>() {
            check.error("input", wrong);
        }
        // Ids of the merged data are ids of its parts: what is said of one of them holds only if all say the same.
        for fact in ["tokenizer_vocab", "max_token_id"] {
            let biggest = check.input("input").iter().map(|known| known.facts.get(fact)?.as_u64());
            if let Some(Some(biggest)) = biggest.max().filter(|_| !check.input("input").is_empty())
                && check.input("input").iter().all(|known| known.facts.contains_key(fact))
            {
                check.provide(fact, biggest);
            }
        }
    }

    fn run(&self, ctx: &Ctx<'_>) -> Result<()> {
        let mut prefixes = Vec::new();
        for input in ctx.input("input") {
            prefixes.extend(prefixes_of(input)?);
        }
        let sets = prefixes.iter().map(|prefix| IndexedDataset::open(prefix)).collect::<Result<Vec<_>>>()?;
        let total = sets.iter().map(|set| set.data().len() as u64).sum();
        let first = sets.first().context("there is nothing to merge")?;
        let mut writer = IndexedWriter::create(&ctx.out.join(&self.name), first.dtype())?;
        let mut before = 0;
        for (set, prefix) in sets.iter().zip(&prefixes) {
            let appended = writer.append_dataset(set, |done| {
                ctx.progress(before + done, Some(total), Unit::Bytes);
                Ok(ctx.go_on()?)
            });
            appended.with_context(|| format!("cannot merge {}", prefix.display()))?;
            before += set.data().len() as u64;
        }
        let (sequences, documents, tokens) = writer.counts();
        writer.finish()?;
        let text = format!("{} datasets: {documents} documents, {sequences} sequences, {tokens} tokens", sets.len());
        ctx.log(Level::Info, text);
        Ok(())
    }
}

/// Where the datasets of an input lie: their paths without `.bin` and `.idx`, in the order of names.
fn prefixes_of(input: &Input) -> Result<Vec<PathBuf>> {
    let without = |name: &str, ending: &str| name.strip_suffix(ending).map(str::to_owned);
    let mut prefixes = Vec::new();
    for (name, path) in input.files() {
        if let Some(stem) = without(name, ".idx") {
            let both = input.tree.get(&format!("{stem}.bin")).is_some();
            ensure!(both, "{} has {name}, but no {stem}.bin", input.name);
            prefixes.push(path.with_file_name(stem_of(&path)));
        } else if let Some(stem) = without(name, ".bin") {
            let both = input.tree.get(&format!("{stem}.idx")).is_some();
            ensure!(both, "{} has {name}, but no {stem}.idx", input.name);
        }
    }
    ensure!(!prefixes.is_empty(), "{} holds no .bin/.idx", input.name);
    Ok(prefixes)
}

fn stem_of(path: &Path) -> std::ffi::OsString {
    path.file_stem().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        testing::{Stand, repository, stage},
        tokenize::Tokenize,
    };

    /// The example's shards, each as the tokens of it.
    fn tokens(shards: &[&str]) -> Vec<Stand> {
        let example = repository().join("examples/ja_wiki_mini");
        let tokenize = |shard: &&str| {
            let mut stand = Stand::new();
            stand
                .input("input", &example.join(format!("{shard}.jsonl.gz")))
                .input("tokenizer", &example.join("tokenizer"));
            stand.run(&stage::<Tokenize>(json!({"input": "raw", "tokenizer": "base", "append_eod": true}))).unwrap();
            stand
        };
        shards.iter().map(tokenize).collect()
    }

    #[test]
    fn merged_shards_are_the_tokens_of_the_shards_behind_each_other() {
        let manifest: serde_json::Value =
            crate::facts::read_json(&repository().join("tests/golden/preprocess/manifest.json")).unwrap();
        let shards = tokens(&["train_0", "train_1", "train_2"]);
        let mut stand = Stand::new();
        for shard in &shards {
            stand.input("input", &shard.place("out"));
        }
        stand.run(&stage::<Merge>(json!({"input": "tokens", "name": "train_all"}))).unwrap();
        assert_eq!(stand.outs(), ["train_all.bin", "train_all.idx"]);
        for ending in ["bin", "idx"] {
            let digest = <sha2::Sha256 as sha2::Digest>::digest(stand.out(&format!("train_all.{ending}")));
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(manifest["train_all"][ending], digest);
        }
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let merge = || stage::<Merge>(json!({ "input": "tokens" }));
        let mut stand = Stand::new();
        stand.write("a/x.bin", "");
        let place = stand.place("a");
        stand.input("input", &place);
        assert!(stand.error(&merge()).contains("has x.bin, but no x.idx"));

        let mut stand = Stand::new();
        for (name, dtype) in
            [("a", flow_formats::indexed::TokenType::U16), ("b", flow_formats::indexed::TokenType::I32)]
        {
            std::fs::create_dir(stand.place(name)).unwrap();
            IndexedWriter::create(&stand.place(name).join("x"), dtype).unwrap().finish().unwrap();
            let place = stand.place(name);
            stand.input("input", &place);
        }
        let error = stand.error(&merge());
        assert!(error.contains("cannot append int32 ids to a dataset of uint16"), "{error}");
        assert_eq!(stand.outs(), Vec::<String>::new());
        let (errors, ..) = stand.check(&stage::<Merge>(json!({"input": "tokens", "name": "a/b"})));
        assert_eq!(errors[0].field.as_deref(), Some("name"));

        let mut stand = Stand::new();
        stand.write("a.txt", "text");
        let place = stand.place("a.txt");
        stand.input("input", &place);
        let (errors, ..) = stand.check(&merge());
        assert_eq!(errors[0].field.as_deref(), Some("input"));
        assert!(errors[0].message.contains("a.txt is one file"), "{errors:?}");
    }
}

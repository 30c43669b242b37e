//! What `transformers` makes of a tokenizer's files when it loads them.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value as Json, json};
use tokenizers::{
    AddedToken, PreTokenizerWrapper, Tokenizer as HfTokenizer,
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::{SpecialToken, Template, TemplateProcessing},
};

use super::files::Config;
use crate::facts::read_json;

/// Changes a tokenizer as `transformers` does when it loads the same directory.
///
/// # Errors
/// The configuration is of another tokenizer.
pub fn as_transformers_does(hf: &mut HfTokenizer, config: &Config) -> Result<()> {
    // Callers pass neither truncation nor padding, which turns off both.
    hf.with_truncation(None).map_err(|error| anyhow!("{error}"))?;
    hf.with_padding(None);
    hf.set_encode_special_tokens(config.truth("split_special_tokens").unwrap_or(false));

    let known = hf.get_added_tokens_decoder();
    let missing: Vec<AddedToken> = config
        .declared()?
        .into_iter()
        .filter(|token| !known.values().any(|known| known.content == token.content))
        .collect();
    for token in missing {
        let added = if token.special { hf.add_special_tokens([token]) } else { hf.add_tokens([token]) };
        added.map_err(|error| anyhow!("{error}"))?;
    }

    if let Some(PreTokenizerWrapper::ByteLevel(level)) = hf.get_pre_tokenizer() {
        let wanted = config.truth("add_prefix_space").unwrap_or(false);
        if level.add_prefix_space != wanted {
            let level = ByteLevel::new(wanted, level.trim_offsets, level.use_regex);
            hf.with_pre_tokenizer(Some(level));
        }
    }

    // These classes make their post-processor from the configuration, and overrule the one in tokenizer.json.
    let explicit = config.truth("add_bos_token").is_some() || config.truth("add_eos_token").is_some();
    if explicit && config.puts_bos() {
        let template = bos_and_eos(hf, config)?;
        hf.with_post_processor(Some(template));
    }
    Ok(())
}

/// The post-processor that puts BOS before and EOS behind, as far as the configuration wants them.
fn bos_and_eos(hf: &HfTokenizer, config: &Config) -> Result<TemplateProcessing> {
    let mut template = vec!["$A:0".to_owned()];
    let mut tokens = Vec::new();
    for (flag, name, default) in [("add_bos_token", "bos_token", true), ("add_eos_token", "eos_token", false)] {
        if config.truth(flag).unwrap_or(default) {
            let token = config.special(name).with_context(|| format!("`{flag}` is set, but `{name}` is not"))?;
            let id = hf.token_to_id(token).with_context(|| format!("the tokenizer has no token `{token}`"))?;
            template.insert(if name == "bos_token" { 0 } else { template.len() }, format!("{token}:0"));
            tokens.push(SpecialToken::from((token.to_owned(), id)));
        }
    }
    let template = Template::try_from(template).map_err(|error| anyhow!("{error}"))?;
    TemplateProcessing::builder()
        .single(template)
        .special_tokens(tokens)
        .build()
        .map_err(|error| anyhow!("the post-processor of this tokenizer: {error}"))
}

/// The tokenizer.json of a `vocab.json` and a `merges.txt`, as GPT-2 has them.
///
/// # Errors
/// They cannot be read, are not what they should be, or are of a class that cuts text in another way.
pub fn gpt2(vocabulary: &Path, merges: &Path, config: &Config) -> Result<Vec<u8>> {
    let class = config.class();
    ensure!(
        class.is_empty() || class.starts_with("GPT2"),
        "{}: a vocab.json with a merges.txt is read as GPT-2 does, and this is of {class}; \
         `AutoTokenizer.from_pretrained(…).save_pretrained(…)` makes a tokenizer.json of it",
        vocabulary.display()
    );
    let tokens: serde_json::Map<String, Json> = read_json(vocabulary)?;
    // Where ids are missing, all up to the highest are filled in.
    let highest = tokens.values().filter_map(Json::as_u64).max().unwrap_or(0);
    ensure!(
        highest < tokens.len() as u64 + 65_536,
        "{}: an id of {highest} among {} tokens",
        vocabulary.display(),
        tokens.len()
    );
    let text = std::fs::read_to_string(merges).with_context(|| format!("cannot read {}", merges.display()))?;
    let mut lines = text.lines();
    ensure!(
        lines.next().is_some_and(|first| first.starts_with("#version")),
        "{} does not begin with `#version`: its first line would be lost on `transformers`",
        merges.display()
    );
    let level =
        |trim: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trim, "use_regex": true});
    let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
        "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": tokens, "merges": lines.filter(|line| !line.is_empty()).collect::<Vec<_>>()});
    let mut before = level(false);
    if config.truth("add_bos_token") == Some(true) {
        let bos = config.special("bos_token").context("`add_bos_token` is set, but `bos_token` is not")?;
        let id = tokens.get(bos).with_context(|| format!("the tokenizer has no token `{bos}`"))?;
        let sequence = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
        let special = json!({"SpecialToken": {"id": bos, "type_id": 0}});
        before = json!({"type": "TemplateProcessing", "single": [special, sequence("A")],
            "pair": [special, sequence("A"), sequence("B")],
            "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}}});
    }
    let all = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level(true), "post_processor": before, "decoder": level(true), "model": model});
    Ok(all.to_string().into_bytes())
}

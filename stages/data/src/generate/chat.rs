//! A model's chat template: messages as the prompt that the model was trained on.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use flow_core::Diagnostic;
use minijinja::{Environment, Error, ErrorKind, context, syntax::SyntaxConfig, value::Serde};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::{
    facts::{named, read_json},
    tokenize::Tokenizer,
};

/// What someone said.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    /// `user`, `assistant` or `system`.
    pub role: &'static str,
    /// It.
    pub content: String,
}

/// Says messages as the template of the model in `dir` does, up to where the assistant speaks.
///
/// # Errors
/// It has none, or one that cannot say them.
pub fn prompt(dir: &Path, tokenizer: &Tokenizer, messages: &[Message]) -> Result<String> {
    let template = template(dir)?;
    let mut environment = Environment::new();
    environment.set_unknown_method_callback(unknown_method_callback);
    // As transformers renders them.
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    let special = |name| tokenizer.special(name).unwrap_or_default();
    environment
        .render_str(
            &template,
            context! {
                messages => Serde(messages), add_generation_prompt => true, bos_token => special("bos_token"),
                eos_token => special("eos_token"), pad_token => special("pad_token"),
            },
        )
        .map_err(|error| anyhow::anyhow!("{error:#}"))
        .with_context(|| format!("the chat template of {}", dir.display()))
}

/// `chat_template.jinja`, or `chat_template` of `tokenizer_config.json`.
fn template(dir: &Path) -> Result<String> {
    if let Some(file) = named(dir, "chat_template.jinja") {
        return std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()));
    }
    let config: Map<String, Json> =
        named(dir, "tokenizer_config.json").as_deref().map(read_json).transpose()?.unwrap_or_default();
    match config.get("chat_template") {
        Some(Json::String(template)) => Ok(template.clone()),
        // Several, of which one has no purpose of its own.
        Some(Json::Array(all)) => {
            let default = all.iter().find(|one| one["name"] == "default").and_then(|one| one["template"].as_str());
            default.map(str::to_owned).context("tokenizer_config.json has no chat template named `default`")
        }
        Some(other) => bail!("`chat_template` in tokenizer_config.json is {other}"),
        None => Err(Diagnostic::new(format!("{} has no chat template", dir.display()))
            .hint("without --chat the prompt is continued as it is")
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testing::repository, tokenize::Files};

    /// Rendered by transformers 4.57.6: `tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)`.
    #[test]
    fn messages_are_said_as_transformers_does() {
        let tokenizer =
            Tokenizer::load(&Files::find(&repository().join("examples/ja_wiki_mini/tokenizer")).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let template = "{%- if messages[0]['role'] == 'system' %}\n    {%- set loop_messages = messages[1:] %}\n    \
            [{{ messages[0]['content'] | trim }}]\n{%- else %}\n    {%- set loop_messages = messages %}\n{%- endif %}\n\
            {{- bos_token }}\n{% for message in loop_messages %}\n    \
            {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n        \
            {{- raise_exception('roles must alternate') }}\n    {%- endif %}\n    \
            {{- '<|' + message['role'].upper() + '|>\\n' + message['content'].strip() + eos_token }}\n\
            {% endfor %}\n{% if add_generation_prompt %}\n{{ '<|ASSISTANT|>' }}\n{% endif %}";
        let config = serde_json::json!({ "chat_template": template }).to_string();
        std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let (bos, eos) = (tokenizer.special("bos_token").unwrap(), tokenizer.special("eos_token").unwrap());
        let said = prompt(
            dir.path(),
            &tokenizer,
            &[message("user", " 日本? "), message("assistant", "はい"), message("user", "x")],
        );
        let expected =
            format!("{bos}\n<|USER|>\n日本?{eos}\n<|ASSISTANT|>\nはい{eos}\n<|USER|>\nx{eos}\n<|ASSISTANT|>\n");
        assert_eq!(said.unwrap(), expected);
        let wrong = prompt(dir.path(), &tokenizer, &[message("assistant", "x")]).unwrap_err();
        assert!(format!("{wrong:#}").contains("roles must alternate"), "{wrong:#}");
        std::fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
        let none = prompt(dir.path(), &tokenizer, &[]).unwrap_err();
        assert!(none.to_string().contains("has no chat template"));
    }
}

//! What nobody else should see: known by what it is called, or by how it looks.

use std::ops::Range;

use serde_json::Value as Json;

use crate::masked;

/// How names of secrets end.
const WORDS: [&str; 9] =
    ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY"];
/// Tokens of a vocabulary are no secrets.
const OF_A_VOCABULARY: [&str; 26] = [
    "BOS", "EOS", "EOD", "EOT", "PAD", "UNK", "MASK", "SEP", "CLS", "SPECIAL", "START", "STOP", "BEGIN", "END",
    "FIRST", "LAST", "NEXT", "TEXT", "IMAGE", "AUDIO", "VIDEO", "PREFIX", "SUFFIX", "MIDDLE", "NEWLINE", "IGNORE",
];
/// How the tokens of well-known services begin, and how many characters follow at least.
const TOKENS: [(&str, usize); 14] = [
    ("ghp_", 30),
    ("gho_", 30),
    ("ghu_", 30),
    ("ghs_", 30),
    ("ghr_", 30),
    ("github_pat_", 30),
    ("glpat-", 20),
    ("hf_", 30),
    ("sk-", 32),
    ("xoxb-", 20),
    ("xoxp-", 20),
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 35),
];
/// What stands before a token in the head of a request; a shorter word there is a word.
const BEARER: &str = "bearer ";
const SHORTEST: usize = 8;
/// A token has so many letters and digits without a break: names have words.
const RUN: usize = 16;
/// What is given to a variable of a secret's name (`WANDB_API_KEY=…`) and is shorter is a word.
const GIVEN: usize = 12;

/// Whether something of this name holds a secret: `API_KEY`, `db-password`.
#[must_use]
pub fn is_secret_name(name: &str) -> bool {
    let name = name.to_uppercase().replace(['-', '.'], "_");
    WORDS.iter().any(|word| match name.strip_suffix(word) {
        Some("") => true,
        Some(before) => {
            let last = before.strip_suffix('_').map(|before| before.rsplit('_').next().unwrap_or_default());
            last.is_some_and(|last| *word != "TOKEN" || !OF_A_VOCABULARY.contains(&last))
        }
        None => false,
    })
}

/// Whether a text holds a token or a password as it is: a variable in its place (`$TOKEN`) is none.
#[must_use]
pub fn holds_secret(text: &str) -> bool {
    !tokens(text).is_empty() || has_password(text)
}

/// A text without the secrets in it that are known by how they look.
pub(crate) fn without_tokens(text: String) -> String {
    let tokens = tokens(&text);
    if tokens.is_empty() {
        return text;
    }
    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    for token in tokens {
        out += &text[at..token.start];
        out += "***";
        at = token.end;
    }
    out + &text[at..]
}

/// A value without the secrets in it: texts under the name of a secret, and what [`masked`] does not show.
#[must_use]
pub fn masked_json(value: &Json) -> Json {
    match value {
        Json::Object(map) => {
            let hidden = |(name, value): (&String, &Json)| match value {
                Json::String(_) if is_secret_name(name) => (name.clone(), "***".into()),
                _ => (name.clone(), masked_json(value)),
            };
            Json::Object(map.iter().map(hidden).collect())
        }
        Json::Array(items) => items.iter().map(masked_json).collect(),
        Json::String(text) => masked(text).into(),
        other => other.clone(),
    }
}

/// Where tokens stand in a text.
fn tokens(text: &str) -> Vec<Range<usize>> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(begin) = text[at..].find(is_part).map(|begin| at + begin) {
        let end = text[begin..].find(|c| !is_part(c)).map_or(text.len(), |length| begin + length);
        let word = &text[begin..end];
        let of_a_service = TOKENS.iter().any(|(head, least)| {
            let long = |rest: &str| rest.split(['_', '-']).any(|run| run.len() >= RUN);
            word.strip_prefix(head).is_some_and(|rest| rest.len() >= *least && has_digit(rest) && long(rest))
        });
        let (head, bearer) = text.split_at_checked(begin.saturating_sub(BEARER.len())).unwrap_or(("", ""));
        let of_a_bearer = bearer.get(..BEARER.len()).is_some_and(|before| before.eq_ignore_ascii_case(BEARER))
            && !head.ends_with(is_part)
            && word.len() >= SHORTEST
            && (has_digit(word) || word.contains('_') && is_mixed(word));
        let name = text[..begin].trim_end_matches(['"', '\'']).strip_suffix('=');
        let name = name.map(|name| name.rsplit(|c| !is_part(c)).next().unwrap_or_default().trim_start_matches('-'));
        let of_a_name = name.is_some_and(is_secret_name) && word.len() >= GIVEN && has_digit(word);
        if of_a_service || of_a_bearer || of_a_name {
            found.push(begin..end);
        }
        at = end;
    }
    found
}

fn has_digit(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_digit())
}

/// Names stand in letters of one case: `YOUR_TOKEN`.
fn is_mixed(text: &str) -> bool {
    text.contains(|c: char| c.is_ascii_lowercase()) && text.contains(|c: char| c.is_ascii_uppercase())
}

/// Whether a URL in the text holds a password.
fn has_password(text: &str) -> bool {
    text.split("://").skip(1).any(|after| {
        let end = after.find(|c: char| c.is_whitespace() || "/\"'`<>".contains(c)).unwrap_or(after.len());
        let user = after[..end].rsplit_once('@').map(|(user, _)| user);
        let password = user.and_then(|user| Some(user.split_once(':')?.1));
        password.is_some_and(|password| !password.is_empty() && !password.starts_with(['$', '{', '*']))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_and_those_of_vocabularies_are_none() {
        for name in ["TOKEN", "API_KEY", "db-password", "hf_token", "wandb.api_key", "SECRET", "aws_credentials"] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in [
            "tokens",
            "eos_token",
            "eod-token",
            "max_tokens",
            "tokenizer",
            "key",
            "secretary",
            "MYTOKEN",
            "IMAGE_TOKEN",
        ] {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn secrets_in_texts_are_known_and_what_stands_for_one_is_none() {
        let digits = "0123456789abcdefABCDEF0123456789abcdef";
        for text in [
            format!("curl -H 'X: ghp_{digits}'"),
            format!("echo hf_{digits}"),
            format!("OPENAI=sk-proj-{digits} x"),
            "curl -H 'Authorization: Bearer ghp_PLANTED'".into(),
            "curl http://u:pw@x/".into(),
            format!("export WANDB_API_KEY='{digits}'; x --api-key={digits}"),
            "git clone https://me:s3cret@host:80/a b".into(),
        ] {
            assert!(holds_secret(&text), "{text}");
        }
        for text in [
            "curl -H \"Authorization: Bearer $TOKEN\"",
            "curl -H \"Authorization: bearer ${GITHUB_TOKEN}\"",
            "the bearer bringsit",
            "Bearer YOUR_TOKEN, the bearer token_count, pallbearer 12345678",
            "hf_Llama_3_1_8B_Instruct_converted_to_megatron sk-learn-0123456789-abcdef-ghijklm-nopqrst",
            "HF_TOKEN=$TOKEN HF_TOKEN=\"$T\" EOS_TOKEN='<|end_of_text_128001|>' KEYS=0123456789abcdef",
            "git clone https://me:$PW@host/a https://me@host/b http://host:80/c@d",
            "pip install sk-learn-contrib-and-other-things hf_transfer AKIA",
            "a@b:c://d",
            "ends with bearer ",
            "名前://é:日本@",
        ] {
            assert_eq!(holds_secret(text), text.contains("日本"), "{text}");
        }
        assert_eq!(masked("x 'Bearer ghp_PLANTED' http://u:pw@x/ y"), "x 'Bearer ***' http://***@x/ y");
        let value = serde_json::json!({ "env": { "API_KEY": "a", "N": "b" }, "run": ["http://u:p@h"], "n": 1 });
        let shown = serde_json::json!({ "env": { "API_KEY": "***", "N": "b" }, "run": ["http://***@h"], "n": 1 });
        assert_eq!(masked_json(&value), shown);
    }
}

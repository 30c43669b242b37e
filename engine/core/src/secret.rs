//! What nobody else should see: known by what it is called, or by how it looks.

use std::ops::Range;

use serde_json::Value as Json;

use crate::masked;

/// How names of secrets end.
const WORDS: [&str; 9] =
    ["TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "CREDENTIALS", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY"];
/// And what some programs call theirs.
const NAMES: [&str; 4] = ["PGPASSWORD", "SSHPASS", "MYSQL_PWD", "RSYNC_PASSWORD"];
/// Of these, a name's value is one whatever it looks like; of the others it could be a word.
const PASSWORDS: [&str; 4] = ["PASSWORD", "PASSWD", "SSHPASS", "MYSQL_PWD"];
/// What is said of a password, and is none.
const NO_PASSWORDS: [&str; 8] = ["true", "false", "yes", "no", "none", "null", "required", "optional"];
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
    NAMES.contains(&&*name)
        || WORDS.iter().any(|word| match name.strip_suffix(word) {
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

/// Where tokens and passwords stand in a text, in order.
fn tokens(text: &str) -> Vec<Range<usize>> {
    let mut found = words(text);
    found.extend(given(text));
    found.extend(of_curl(text));
    found.extend(web_tokens(text));
    found.extend(keys(text));
    found.sort_unstable_by_key(|range| (range.start, range.end));
    // One may be found in two ways.
    found.dedup_by(|next, last| {
        let overlap = next.start < last.end;
        if overlap {
            last.end = last.end.max(next.end);
        }
        overlap
    });
    found
}

fn is_part(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-".contains(c)
}

/// The parts of a text that hold only such characters.
fn runs(text: &str, is_of: impl Fn(char) -> bool) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let begin = at + text[at..].find(&is_of)?;
        at = text[begin..].find(|c| !is_of(c)).map_or(text.len(), |length| begin + length);
        Some(begin..at)
    })
}

/// What begins as the tokens of a service do, or stands behind `Bearer`.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for Range { start: begin, end } in runs(text, is_part) {
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
        if of_a_service || of_a_bearer {
            found.push(begin..end);
        }
    }
    found
}

/// What is given to the name of a secret: `API_KEY=…`, `--password …`, `X-Api-Key: …`.
fn given(text: &str) -> Vec<Range<usize>> {
    let value = |Range { start, end }: Range<usize>| {
        let name = text[start..end].trim_start_matches('-');
        if !is_secret_name(name) {
            return None;
        }
        let is_flag = text[start..].starts_with('-');
        let rest = &text[end..];
        let after = rest.trim_start_matches([' ', '\t']);
        let (rest, is_said) = match rest.strip_prefix('=') {
            Some(rest) => (rest, false),
            None if is_flag && after.len() < rest.len() => (after, false),
            None => (rest.trim_start_matches(['"', '\'']).strip_prefix(':')?.trim_start_matches(' '), true),
        };
        let value = rest.trim_start_matches(['"', '\'']);
        let begin = text.len() - value.len();
        let length = value.find(|c: char| c.is_whitespace() || "\"'`;&|()<>,".contains(c)).unwrap_or(value.len());
        let value = &value[..length];
        let upper = name.to_uppercase();
        let is_password = !is_said && PASSWORDS.iter().any(|word| upper.ends_with(word));
        let is_one = is_literal(value)
            && if is_password {
                !NO_PASSWORDS.iter().any(|word| value.eq_ignore_ascii_case(word))
            } else {
                runs(value, |c| is_part(c) || "/+=".contains(c)).any(|run| {
                    // Those of AWS have slashes.
                    is_long(&value[run.clone()]) || upper.ends_with("ACCESS_KEY") && run.len() == 40
                })
            };
        is_one.then(|| begin..begin + length)
    };
    runs(text, is_part).filter_map(value).collect()
}

/// Whether it is a token, and not a path: with slashes only if it mixes as random characters do.
fn is_long(word: &str) -> bool {
    let plain = |part: &str| part.len() >= GIVEN && has_digit(part);
    if word.contains('/') { word.len() >= 2 * GIVEN && is_random(word) } else { plain(word) }
}

/// What a value cannot be that stands for another one: a variable, a placeholder, a file, nothing.
fn is_literal(value: &str) -> bool {
    !value.is_empty()
        && !value.starts_with(['$', '{', '<', '*', '%', '/', '~', '.', '-', '@'])
        && value.chars().any(|c| c.is_alphanumeric() && !"xX".contains(c))
}

/// The password of `curl -u user:password`.
fn of_curl(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("curl") {
        // Up to the end of the command.
        let end = text[at..].find([';', '|', '\n']).map_or(text.len(), |length| at + length);
        let mut words = text[at..end].split_whitespace().peekable();
        while let Some(word) = words.next() {
            let user = match word {
                "-u" | "--user" => words.peek().copied(),
                word => word.strip_prefix("--user=").or_else(|| word.strip_prefix("-u")),
            };
            let Some((_, password)) = user.and_then(|user| user.split_once(':')) else { continue };
            let password = password.trim_end_matches(['"', '\'']);
            if is_literal(password) {
                let begin = password.as_ptr() as usize - text.as_ptr() as usize;
                found.push(begin..begin + password.len());
            }
        }
    }
    found
}

/// JSON Web Tokens: `eyJ….eyJ….…`.
fn web_tokens(text: &str) -> Vec<Range<usize>> {
    let is_one = |range: &Range<usize>| {
        let parts: Vec<&str> = text[range.clone()].split('.').collect();
        parts.len() >= 3 && parts[0].starts_with("eyJ") && parts.iter().take(3).all(|part| part.len() >= SHORTEST)
    };
    runs(text, |c| is_part(c) || c == '.').filter(is_one).collect()
}

/// What looks as the secret keys of AWS do: 40 random characters, which no hexadecimal digest and no path is.
fn keys(text: &str) -> Vec<Range<usize>> {
    let is_one = |range: &Range<usize>| range.len() == 40 && is_random(&text[range.clone()]);
    runs(text, |c| c.is_ascii_alphanumeric() || "/+_-.".contains(c)).filter(is_one).collect()
}

/// Whether letters of both cases and digits follow each other as they do by chance: in words and in digests they do not.
fn is_random(word: &str) -> bool {
    let class = |c: char| match c {
        c if c.is_ascii_digit() => 0,
        c if c.is_ascii_lowercase() => 1,
        c if c.is_ascii_uppercase() => 2,
        _ => 3,
    };
    let classes: Vec<u8> = word.chars().map(class).collect();
    let changes = classes.windows(2).filter(|pair| pair[0] != pair[1] && !pair.contains(&3)).count();
    (0..3).all(|class| classes.contains(&class)) && changes * 5 >= word.len() * 2
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
            "curl -s -u me:hunter2 https://h/".into(),
            "x && curl --user 'me:hunter2' https://h/".into(),
            "PGPASSWORD=hunter2 psql -h h".into(),
            "mysql --password hunter2; DB_PASSWORD='hunter2' x".into(),
            "x --token 0123456789abcdef -H 'X-Api-Key: 0123456789abcdef'".into(),
            "x eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4fwpMeJf36POk6y".into(),
            "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY aws s3 ls".into(),
            "s3cmd wJ4lrXUtnF3MIbK7MD3NGqbPxRfiCY8XAMPL3K9Y".into(),
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
            "docker run -u 1000:1000 x; curl -u me:$PW h; curl -u \"$USER:$PW\" h; curl -u me h; curl https://h:80/ -o a:b",
            "PGPASSWORD=$PW x; --password \"$PW\" --password-file /run/pw --password /run/pw --password=none",
            "DB_PASSWORD= x; password: str; the password is asked for; --token tokenizer.json --eos-token 0123456789abcdef",
            "git checkout 0123456789abcdef0123456789abcdef01234567 da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "Users/Alice/Models/Llama3/Checkpoint0001 eyJ.a.b file.eyJ0.tar.gz python -c 'token=data/tokens_2024/x'",
            "api_key=YOUR_API_KEY_HERE --api-key <key> TOKEN=xxxxxxxxxxxx SECRET=***",
            "ends with bearer ",
            "名前://é:日本@",
        ] {
            assert_eq!(holds_secret(text), text.contains("日本"), "{text}");
        }
        assert_eq!(masked("x 'Bearer ghp_PLANTED' http://u:pw@x/ y"), "x 'Bearer ***' http://***@x/ y");
        assert_eq!(masked("PGPASSWORD='a b' x; curl -u me:pw h"), "PGPASSWORD='*** b' x; curl -u me:*** h");
        let value = serde_json::json!({ "env": { "API_KEY": "a", "N": "b" }, "run": ["http://u:p@h"], "n": 1 });
        let shown = serde_json::json!({ "env": { "API_KEY": "***", "N": "b" }, "run": ["http://***@h"], "n": 1 });
        assert_eq!(masked_json(&value), shown);
    }
}

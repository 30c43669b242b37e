//! `{{ problems | literal }}`: lists and tables that a data set keeps as Python prints them (`ast.literal_eval`).

use std::{iter::Peekable, str::Chars};

use anyhow::{Context as _, Result, bail, ensure};
use minijinja::{Error, ErrorKind, Value, value::Serde};
use serde_json::{Map, Value as Json};

/// What a text of Python's stands for; what is no text is that already.
pub fn literal(value: Value) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return Ok(value) };
    let parsed = parse(text).map_err(|error| {
        Error::new(ErrorKind::InvalidOperation, format!("it is not a list or table as Python prints it: {error}"))
    })?;
    Ok(Value::from(Serde(parsed)))
}

/// Lists stand in each other so deep at most.
const DEPTH: usize = 64;

fn parse(text: &str) -> Result<Json> {
    let mut reader = Reader { chars: text.chars().peekable() };
    let value = reader.value(DEPTH)?;
    ensure!(reader.peek().is_none(), "there is more behind its end");
    Ok(value)
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
}

impl Reader<'_> {
    /// The next sign that is no white space.
    fn peek(&mut self) -> Option<char> {
        while self.chars.next_if(|c| c.is_whitespace()).is_some() {}
        self.chars.peek().copied()
    }

    fn takes(&mut self, sign: char) -> bool {
        let there = self.peek() == Some(sign);
        if there {
            self.chars.next();
        }
        there
    }

    fn value(&mut self, depth: usize) -> Result<Json> {
        ensure!(depth > 0, "it is too deep");
        match self.peek().context("it ends too early")? {
            '[' => self.items(']', |reader| reader.value(depth - 1)).map(Json::Array),
            '(' => self.items(')', |reader| reader.value(depth - 1)).map(Json::Array),
            '{' => {
                let entry = |reader: &mut Self| {
                    let Json::String(key) = reader.value(depth - 1)? else { bail!("a key is no text") };
                    ensure!(reader.takes(':'), "`:` is missing after a key");
                    Ok((key, reader.value(depth - 1)?))
                };
                Ok(Json::Object(self.items('}', entry)?.into_iter().collect::<Map<_, _>>()))
            }
            '\'' | '"' => {
                let mut text = String::new();
                // Texts beside each other are one.
                while let Some(quote @ ('\'' | '"')) = self.peek() {
                    self.text(quote, &mut text)?;
                }
                Ok(Json::String(text))
            }
            _ => self.word(),
        }
    }

    fn items<T>(&mut self, end: char, item: impl Fn(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        self.chars.next();
        let mut items = Vec::new();
        while !self.takes(end) {
            items.push(item(self)?);
            if !self.takes(',') {
                ensure!(self.takes(end), "`,` or `{end}` is missing");
                break;
            }
        }
        Ok(items)
    }

    fn text(&mut self, quote: char, text: &mut String) -> Result<()> {
        self.chars.next();
        loop {
            match self.chars.next().context("a text does not end")? {
                c if c == quote => return Ok(()),
                '\\' => text.extend(self.escaped()?),
                c => text.push(c),
            }
        }
    }

    /// What follows a backslash.
    fn escaped(&mut self) -> Result<[char; 1]> {
        let c = self.chars.next().context("a text does not end")?;
        let mut code = |digits: usize| {
            let digits: String = self.chars.by_ref().take(digits).collect();
            let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
            code.with_context(|| format!("`\\{c}{digits}` is no sign"))
        };
        Ok([match c {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '\\' | '\'' | '"' => c,
            'x' => code(2)?,
            'u' => code(4)?,
            'U' => code(8)?,
            _ => bail!("`\\{c}` is not known"),
        }])
    }

    fn word(&mut self) -> Result<Json> {
        let mut word = String::new();
        while let Some(c) = self.chars.next_if(|c| c.is_alphanumeric() || "+-._".contains(*c)) {
            word.push(c);
        }
        Ok(match word.as_str() {
            "True" => Json::Bool(true),
            "False" => Json::Bool(false),
            "None" => Json::Null,
            number => serde_json::from_str(number).with_context(|| format!("`{number}` is no value"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_prints_is_read() {
        // print([{'question': "It's _ .", 'options': ['a"\n', "\t日本\x07", '\\', "\u200b"], 'n': (1, -2.5, None, True)}, {}, []])
        let printed = r#"[{'question': "It's _ .", 'options': ['a"\n', '\t日本\x07', '\\', '\u200b'], 'n': (1, -2.5, None, True)}, {}, []]"#;
        let expected = json!([{"question": "It's _ .", "options": ["a\"\n", "\t日本\u{7}", "\\", "\u{200b}"],
            "n": [1, -2.5, null, true]}, {}, []]);
        assert_eq!(parse(printed).unwrap(), expected);
        assert_eq!(parse(" ['a' 'b',\n 'c', ] ").unwrap(), json!(["ab", "c"]));
        for wrong in ["", "['a'", "['a' 1]", "{1: 2}", "{'a' 2}", "['a\\q']", "['a] ", "x", "[] []", &"[".repeat(100)] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}

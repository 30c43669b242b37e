//! A document → what a model is asked about it, and what is kept to judge the answers. As `api/task.py` of
//! lm-evaluation-harness makes its requests.

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{
    encode::Ask,
    metric::Metric,
    task::{Choices, Kind, Task},
    template::{Document, Templates},
};

/// What is kept of a document to judge the answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// The prompt; of several contexts the right one's.
    pub prompt: String,
    /// What is right.
    pub gold: Gold,
}

/// What is right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gold {
    /// The text itself.
    Text {
        /// `len(re.split(r"\s+", text))`
        words: usize,
        /// Of UTF-8.
        bytes: usize,
    },
    /// One of these.
    Choice {
        /// What there was to choose from: of several contexts these.
        choices: Vec<String>,
        /// Which, from 0.
        right: usize,
    },
    /// One of these texts; nothing is known if there are none.
    Answers(Vec<String>),
}

impl Task {
    /// What is asked about a document that follows these examples.
    ///
    /// # Errors
    /// The document has not what the templates want.
    pub fn ask(&self, templates: &Templates, document: &Document, shots: &[Document]) -> Result<(Item, Vec<Ask>)> {
        if self.kind == Kind::Perplexity {
            let text = templates.text("text", document)?;
            let gold = Gold::Text { words: words(&text), bytes: text.len() };
            return Ok((Item { prompt: String::new(), gold }, vec![Ask::Text(text)]));
        }
        let mut before = String::new();
        if templates.has("description") {
            before += &templates.text("description", document)?;
        }
        for shot in shots {
            before += &self.shot(templates, shot).context("a few-shot example")?;
        }
        let prompt = |text: &str| format!("{before}{text}");
        match self.kind {
            Kind::MultipleChoice if self.contexts.is_some() => {
                let choices = self.choices("contexts", &self.contexts, templates, document)?;
                let right = index(&templates.fill("label", document)?, &choices).context("`label`")?;
                let follows = format!("{}{}", self.target_delimiter, templates.text("target", document)?);
                let asks = choices.iter().map(|context| Ask::Score(prompt(context), follows.clone())).collect();
                Ok((Item { prompt: prompt(&choices[right]), gold: Gold::Choice { choices, right } }, asks))
            }
            Kind::MultipleChoice => {
                let choices = self.choices("choices", &self.choices, templates, document)?;
                let right = index(&templates.fill("target", document)?, &choices).context("`target`")?;
                let prompt = prompt(&templates.text("text", document)?);
                let follows = |choice| format!("{}{choice}", self.target_delimiter);
                let mut asks: Vec<Ask> =
                    choices.iter().map(|choice| Ask::Score(prompt.clone(), follows(choice))).collect();
                if self.metrics().contains(&Metric::AccMutualInfo) {
                    asks.extend(choices.iter().map(|choice| Ask::Score(String::new(), follows(choice))));
                }
                Ok((Item { prompt, gold: Gold::Choice { choices, right } }, asks))
            }
            Kind::LogLikelihood => {
                let prompt = prompt(&templates.text("text", document)?);
                let target = templates.text("target", document)?;
                let ask = Ask::Score(prompt.clone(), target.clone());
                Ok((Item { prompt, gold: Gold::Answers(vec![target]) }, vec![ask]))
            }
            Kind::Generate | Kind::Perplexity => {
                let prompt = prompt(&templates.text("text", document)?);
                let answers = if templates.has("target") { answers(templates, document)? } else { Vec::new() };
                Ok((Item { prompt: prompt.clone(), gold: Gold::Answers(answers) }, vec![Ask::Generate(prompt)]))
            }
        }
    }

    /// An example with its answer.
    fn shot(&self, templates: &Templates, document: &Document) -> Result<String> {
        let (text, answer) = if self.contexts.is_some() {
            let mut choices = self.choices("contexts", &self.contexts, templates, document)?;
            let right = index(&templates.fill("label", document)?, &choices).context("`label`")?;
            (choices.swap_remove(right), templates.text("target", document)?)
        } else {
            let answer = if self.kind == Kind::MultipleChoice {
                let mut choices = self.choices("choices", &self.choices, templates, document)?;
                let right = index(&templates.fill("target", document)?, &choices).context("`target`")?;
                choices.swap_remove(right)
            } else {
                answers(templates, document)?.into_iter().next().context("`target` gives no answer")?
            };
            (templates.text("text", document)?, answer)
        };
        if answer.is_empty() {
            return Ok(text);
        }
        Ok(format!("{text}{}{answer}{}", self.target_delimiter, self.fewshot.delimiter))
    }

    fn choices(
        &self,
        field: &str,
        choices: &Option<Choices>,
        templates: &Templates,
        document: &Document,
    ) -> Result<Vec<String>> {
        let choices = match choices {
            Some(Choices::Templates(sources)) => {
                (0..sources.len()).map(|i| templates.text(&format!("{field}.{i}"), document)).collect::<Result<_>>()?
            }
            _ => templates.list(field, document)?,
        };
        ensure!(!choices.is_empty(), "`{field}` is an empty list");
        Ok(choices)
    }
}

/// All texts that are right.
fn answers(templates: &Templates, document: &Document) -> Result<Vec<String>> {
    match templates.fill("target", document)? {
        Json::Array(_) => templates.list("target", document),
        _ => Ok(vec![templates.text("target", document)?]),
    }
}

/// Which choice is meant: by its number from 0, or by itself.
fn index(target: &Json, choices: &[String]) -> Result<usize> {
    let found = match target {
        Json::Number(number) => number.as_u64().and_then(|at| usize::try_from(at).ok()),
        // A column of truth, as boolq's: no is 0.
        Json::Bool(truth) => Some(usize::from(*truth)),
        Json::String(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        Json::String(text) => choices.iter().position(|choice| choice == text),
        _ => None,
    };
    match found {
        Some(at) if at < choices.len() => Ok(at),
        _ => bail!("{target} is none of the {} choices: their numbers are from 0", choices.len()),
    }
}

/// `len(re.split(r"\s+", text))`: the empty texts at the ends count, and of an empty one there is one.
fn words(text: &str) -> usize {
    let mut words = 1;
    let mut in_space = false;
    for c in text.chars() {
        let space = crate::curate::text::is_space(c);
        words += usize::from(space && !in_space);
        in_space = space;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(task: &str, document: &str, shots: &[&str]) -> (Item, Vec<Ask>) {
        let task: Task = toml::from_str(&format!("task = \"t\"\n{task}")).unwrap();
        let mut errors = Vec::new();
        let templates = task.check(&mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        let read = |line: &str| Document::of_line(line.as_bytes()).unwrap();
        let shots: Vec<Document> = shots.iter().map(|line| read(line)).collect();
        task.ask(&templates, &read(document), &shots).unwrap()
    }

    fn score(context: &str, continuation: &str) -> Ask {
        Ask::Score(context.to_owned(), continuation.to_owned())
    }

    #[test]
    fn words_are_pythons() {
        // len(re.split(r"\s+", text))
        for (text, count) in
            [("", 1), ("a", 1), (" a ", 3), ("a  b\n", 3), ("日本\u{3000}語", 2), ("a\u{1c}b\u{200b}c", 2)]
        {
            assert_eq!(words(text), count, "{text:?}");
        }
    }

    #[test]
    fn a_question_follows_examples_with_their_answers() {
        let task = "kind = \"multiple-choice\"\ndescription = \"Choose.\\n\"\ntext = \"Q: {{q}}\\nA:\"\nchoices = [\"no\", \"yes\"]\n\
            target = \"label\"\nmetrics = [\"acc\", \"acc_mutual_info\"]";
        let (item, asks) = asked(task, r#"{"q": "b?", "label": 0}"#, &[r#"{"q": "a?", "label": true}"#]);
        let prompt = "Choose.\nQ: a?\nA: yes\n\nQ: b?\nA:";
        assert_eq!(item.prompt, prompt);
        assert_eq!(asks, [score(prompt, " no"), score(prompt, " yes"), score("", " no"), score("", " yes")]);
        assert_eq!(item.gold, Gold::Choice { choices: vec!["no".into(), "yes".into()], right: 0 });

        let task = "kind = \"multiple-choice\"\ncontexts = [\"{{s.replace('_', a)}}\", \"{{s.replace('_', b)}}\"]\n\
            label = \"{{answer - 1}}\"\ntarget = \"end\"";
        let one = r#"{"s": "It is _", "a": "x", "b": "y", "answer": 2, "end": "."}"#;
        let (item, asks) = asked(task, one, &[one]);
        assert_eq!(asks, [score("It is y .\n\nIt is x", " ."), score("It is y .\n\nIt is y", " .")]);
        assert_eq!(item.prompt, "It is y .\n\nIt is y");
    }

    /// The columns of SuperGLUE, of Google's own files, and of an export that has numbers as texts.
    #[test]
    fn boolq_takes_what_is_right_from_either_column() {
        let task = super::super::shipped::shipped("boolq").unwrap().task();
        let templates = task.check(&mut Vec::new());
        for (column, right) in
            [("\"label\": 0", 0), ("\"label\": \"1\"", 1), ("\"answer\": true", 1), ("\"answer\": false", 0)]
        {
            let line = format!("{{\"passage\": \"p\", \"question\": \"q\", {column}}}");
            let (item, _) = task.ask(&templates, &Document::of_line(line.as_bytes()).unwrap(), &[]).unwrap();
            assert!(matches!(item.gold, Gold::Choice { right: found, .. } if found == right), "{column}");
        }
        let neither = Document::of_line(b"{\"passage\": \"p\", \"question\": \"q\"}").unwrap();
        let error = format!("{:#}", task.ask(&templates, &neither, &[]).unwrap_err());
        assert!(error.contains("the columns are passage, question"), "{error}");
    }

    #[test]
    fn several_answers_are_right_and_the_first_is_shown() {
        let task =
            "kind = \"generate\"\ntext = \"q\"\ntarget = \"answers\"\nfewshot = { count = 1, delimiter = \"\\n\" }";
        let (item, asks) =
            asked(task, r#"{"q": "1+1?", "answers": ["2", "two"]}"#, &[r#"{"q": "0?", "answers": ["0"]}"#]);
        assert_eq!(asks, [Ask::Generate("0? 0\n1+1?".into())]);
        assert_eq!(item.gold, Gold::Answers(vec!["2".into(), "two".into()]));
        let nested = task.replace("\"answers\"", "\"{{ answers.text }}\"");
        let (item, _) = asked(
            &nested,
            r#"{"q": "1+1?", "answers": {"text": ["2", "two"]}}"#,
            &[r#"{"q": "0?", "answers": {"text": ["0"]}}"#],
        );
        assert_eq!(item.gold, Gold::Answers(vec!["2".into(), "two".into()]));
        let (item, asks) =
            asked("kind = \"log-likelihood\"\ntext = \"a\"\ntarget = \" {{b}}\"", r#"{"a": "x", "b": 1}"#, &[]);
        assert_eq!((item.prompt.as_str(), asks), ("x", vec![score("x", " 1")]));
    }
}

//! What a person or a program sees: three renderers of [`flow_core::Event`], and the drawing of diagnostics.
//!
//! They own nothing: the engine decides and tells, these show. People's text goes to stderr, data to stdout.

mod board;
pub mod diagnostic;
pub mod format;
mod json;
pub mod paint;
mod plain;
mod report;
mod tty;

use std::{io::IsTerminal, path::PathBuf, sync::OnceLock};

use flow_core::{Event, Sink};

use paint::Paint;

/// The words with which this run was started, so that a view can say how to go on.
#[derive(Debug, Default)]
pub struct Rerun {
    variables: String,
    typed: String,
    pipeline: String,
    runs: PathBuf,
    run: OnceLock<String>,
    unwritten: OnceLock<anyhow::Error>,
}

impl Rerun {
    /// `typed` is the whole command, with `variables` (`FLOW_PARAM_N=8 `) before it; `pipeline` what names the pipeline in it:
    /// `p.toml --profile mini`; `runs` is where runs are recorded.
    pub fn new(variables: String, typed: String, pipeline: String, runs: PathBuf) -> Self {
        Self { variables, typed, pipeline, runs, run: OnceLock::new(), unwritten: OnceLock::new() }
    }

    /// The command for the whole run.
    pub fn whole(&self) -> String {
        format!("{}{}", self.variables, self.typed)
    }

    /// The command for just this node.
    pub fn only(&self, node: &str) -> String {
        format!("{}flow run {} --only {}", self.variables, self.pipeline, shell_word(node))
    }

    /// Why some of what was to be written to stdout is not there, if so.
    pub fn into_unwritten(self) -> Option<anyhow::Error> {
        self.unwritten.into_inner()
    }

    /// Where the run is recorded, if it is.
    fn record(&self) -> Option<PathBuf> {
        let dir = self.runs.join(self.run.get()?);
        dir.is_dir().then_some(dir)
    }

    /// Where the node's log lies, if it has one.
    fn log_path(&self, node: &str) -> Option<PathBuf> {
        let path = self.record()?.join("logs").join(format!("{node}.log"));
        path.is_file().then_some(path)
    }
}

/// `text` as a shell reads one word.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "_-./=:,@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// A view of a run: takes its events, and cleans up after itself when dropped.
pub fn view<'a>(json: bool, rerun: &'a Rerun) -> Box<dyn Sink + 'a> {
    let paint = Paint::for_stderr();
    let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
    let view: Box<dyn Sink + 'a> = match (json, terminal) {
        (true, _) => Box::new(json::Json(&rerun.unwritten)),
        (false, true) => Box::new(tty::Tty::new(rerun, paint)),
        (false, false) => Box::new(plain::Plain::new(rerun, paint)),
    };
    Box::new(move |event: Event| {
        if let Event::RunStarted { run, .. } = &event {
            let _ = rerun.run.set(run.clone());
        }
        view.emit(event);
    })
}

/// What stands above all else that is said of a run. Said with the first thing that happens, as only then it is known
/// whether the run takes place and has a record.
#[derive(Debug, Default)]
struct Header(Option<String>);

impl Header {
    /// `ja_wiki (mini) · 14 nodes`, kept until [`Header::before`].
    fn keep(&mut self, event: &Event, paint: Paint) {
        let Event::RunStarted { pipeline, profile, nodes, version, .. } = event else { return };
        let profile = profile.as_ref().map_or_else(String::new, |profile| format!(" ({profile})"));
        let nodes = paint.dim(&format!("· {} · flow {version}", format::plural(*nodes, "node")));
        self.0 = Some(format!("{} {nodes}", paint.bold(&format!("{pipeline}{profile}"))));
    }

    /// `text`, after the header if that was not said. Without a text the header waits, unless the run `begins`.
    fn before(&mut self, text: String, begins: bool, rerun: &Rerun, paint: Paint) -> String {
        if text.is_empty() && !begins {
            return text;
        }
        let Some(head) = self.0.take() else { return text };
        let run = rerun.record().and_then(|dir| Some(format!(" · run {}", dir.file_name()?.to_string_lossy())));
        format!("{head}{}\n{text}", paint.dim(&run.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word("stage.train.lr=2e-5"), "stage.train.lr=2e-5");
        assert_eq!(shell_word("tokens[2]"), "'tokens[2]'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
    }
}

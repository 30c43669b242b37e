//! What an agent and who started it say to each other. An agent (`flow-torch worker --nnodes …`) starts the ranks of one
//! machine; its lines come over whatever carries them: a pipe, `ssh`, `srun`, which passes no more than 1024 bytes in one
//! piece where many write.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

use serde::{Deserialize, Serialize};

/// Longer texts go in pieces.
const PIECE: usize = 900;

/// A line that an agent writes: to its standard output or error, as the rank did.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// `[rank 3] text`; `[rank 3+] text` if the line goes on in the next that is of this rank.
    Line {
        /// The rank.
        rank: usize,
        /// The line, or a piece of it.
        text: String,
        /// Whether there is more of it.
        more: bool,
    },
    /// `[rank 3 ended] exit 1`, or `signal 9`.
    Ended {
        /// The rank.
        rank: usize,
        /// How.
        status: ExitStatus,
    },
    /// `[node 1 ready] {…}`: it waits to be told where the ranks meet.
    Ready(Ready),
    /// `[node 1] text`: of the agent itself.
    Node {
        /// Which machine.
        node: usize,
        /// What.
        text: String,
    },
}

/// An agent that waits to be told where the ranks meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Which machine it is of those of the job.
    pub node: usize,
    /// What the machine calls itself.
    pub host: String,
    /// The address under which who started it reaches it.
    pub address: String,
    /// Where rank 0 is going to serve the store: on the first machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What it speaks: the worker program's `protocol`.
    pub protocol: u32,
}

impl Said {
    /// A line of a rank, in pieces that are passed on whole.
    pub fn pieces(rank: usize, text: &str) -> impl Iterator<Item = Self> {
        let mut rest = Some(text);
        std::iter::from_fn(move || {
            let text = rest.take()?;
            let mut end = text.len().min(PIECE);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let (piece, more) = text.split_at(end);
            rest = Some(more).filter(|more| !more.is_empty());
            Some(Self::Line { rank, text: piece.to_owned(), more: rest.is_some() })
        })
    }

    /// As it is written.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Line { rank, text, more } => format!("[rank {rank}{}] {text}", if *more { "+" } else { "" }),
            Self::Ended { rank, status } => {
                let how = status.code().map(|code| format!("exit {code}"));
                let how = how.or_else(|| status.signal().map(|signal| format!("signal {signal}")));
                format!("[rank {rank} ended] {}", how.unwrap_or_default())
            }
            Self::Ready(ready) => {
                let json = serde_json::to_string(ready).expect("strings and numbers are JSON");
                format!("[node {} ready] {json}", ready.node)
            }
            Self::Node { node, text } => format!("[node {node}] {text}"),
        }
    }

    /// What a line says; nothing if no agent wrote it.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (label, text) = line.strip_prefix('[')?.split_once("] ")?;
        let (what, number) = label.split_once(' ')?;
        let (number, word) = number.split_once(' ').unwrap_or((number, ""));
        match (what, word) {
            ("rank", "") => {
                let (number, more) = number.strip_suffix('+').map_or((number, false), |number| (number, true));
                Some(Self::Line { rank: number.parse().ok()?, text: text.to_owned(), more })
            }
            ("rank", "ended") => {
                let (how, status) = text.split_once(' ')?;
                let status: u8 = status.parse().ok()?;
                let status = match how {
                    "exit" => i32::from(status) << 8,
                    "signal" => i32::from(status),
                    _ => return None,
                };
                Some(Self::Ended { rank: number.parse().ok()?, status: ExitStatus::from_raw(status) })
            }
            ("node", "ready") => serde_json::from_str(text).ok().map(Self::Ready),
            ("node", "") => Some(Self::Node { node: number.parse().ok()?, text: text.to_owned() }),
            _ => None,
        }
    }
}

/// What an agent is told, a line each on its standard input, when that is how it was started (`--tied`). When the input
/// ends, so do the ranks: whoever started them is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start: rank 0 serves the store at this address and port.
    Meet(String, u16),
    /// Ask the ranks to stop.
    Stop,
    /// Kill them.
    Kill,
}

impl Order {
    /// As it is written.
    #[must_use]
    pub fn line(&self) -> String {
        match self {
            Self::Meet(address, port) => format!("meet {address} {port}\n"),
            Self::Stop => "stop\n".to_owned(),
            Self::Kill => "kill\n".to_owned(),
        }
    }

    /// What a line orders.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["meet", address, port] => Some(Self::Meet(address.to_owned(), port.parse().ok()?)),
            ["stop"] => Some(Self::Stop),
            ["kill"] => Some(Self::Kill),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let ready = Ready { node: 1, host: "c2".into(), address: "10.0.0.2".into(), port: Some(4000), protocol: 2 };
        let said = [
            Said::Line { rank: 3, text: "[rank 4] {\"a\": 1}".into(), more: false },
            Said::Line { rank: 12, text: String::new(), more: true },
            Said::Ended { rank: 0, status: ExitStatus::from_raw(75 << 8) },
            Said::Ended { rank: 7, status: ExitStatus::from_raw(9) },
            Said::Ready(ready),
            Said::Node { node: 0, text: "2 ranks".into() },
        ];
        for one in said {
            assert_eq!(Said::parse(&one.line()), Some(one));
        }
        for foreign in ["", "srun: error", "[rank x] a", "[rank 1 ended] well", "[node 1 ready] {", "[rank 1]"] {
            assert_eq!(Said::parse(foreign), None, "{foreign}");
        }
        for order in [Order::Meet("::1".into(), 1), Order::Stop, Order::Kill] {
            assert_eq!(Order::parse(&order.line()), Some(order));
        }
        assert_eq!(Order::parse("meet a b"), None);
    }

    #[test]
    fn long_lines_go_in_pieces_of_whole_characters() {
        let text = "日本".repeat(1000);
        let pieces: Vec<_> = Said::pieces(5, &text).collect();
        assert!(pieces.len() > 5 && pieces.iter().all(|piece| piece.line().len() < 1000));
        let (mut whole, mut last) = (String::new(), true);
        for piece in pieces {
            let Said::Line { rank: 5, text, more } = piece else { panic!("{piece:?}") };
            assert!(last, "nothing follows the last");
            whole += &text;
            last = more;
        }
        assert!(whole == text && !last);
        assert_eq!(Said::pieces(5, "").count(), 1);
    }
}

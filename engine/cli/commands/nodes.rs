//! Tables of nodes: shards of a stage that say the same share a line, so that a thousand of them stay readable.

use flow_engine::Need;

use crate::{
    out,
    ui::format::{bytes, count, duration},
};

/// What a table says of a node.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The state, in a word.
    pub state: String,
    /// The node.
    pub node: String,
    /// Seconds, if they say something.
    pub seconds: Option<f64>,
    /// Bytes, if they say something.
    pub bytes: Option<u64>,
    /// Why, or what of it.
    pub note: String,
    /// How many bytes of it come from the team, if they are needed.
    pub fetch: Option<(u64, Need)>,
    /// Lines that stand below it.
    pub below: Vec<String>,
}

/// The table, with its line ends.
pub fn table(rows: Vec<Row>) -> String {
    let mut below: Vec<Vec<String>> = Vec::new();
    let mut cells = Vec::new();
    for (row, last) in fold(rows) {
        let node = match last {
            Some(last) => format!("{}{last}]", &row.node[..row.node.len() - 1]),
            None => row.node,
        };
        cells.push([
            row.state,
            node,
            row.seconds.map(duration).unwrap_or_default(),
            row.bytes.map(bytes).unwrap_or_default(),
            match row.fetch {
                Some((fetch, need)) => format!("{} · {}", row.note, comes(fetch, need)),
                None => row.note,
            },
        ]);
        below.push(row.below);
    }
    let table = out::table(&cells, &[2, 3]);
    let mut text = String::with_capacity(table.len());
    for (line, below) in table.lines().zip(below) {
        text += line;
        text.push('\n');
        below.iter().for_each(|line| text.extend(["    ", line, "\n"]));
    }
    text
}

/// What comes of a result that the team has.
pub fn comes(fetch: u64, need: Need) -> String {
    match need {
        Need::No => "nobody needs its files".to_owned(),
        Need::Perhaps => format!("{} to fetch if what takes from it must run", bytes(fetch)),
        Need::Yes => format!("{} to fetch", bytes(fetch)),
    }
}

/// Neighbours of one stage that say the same become one row with the sums: with it, the end of its name (`..14`).
fn fold(rows: Vec<Row>) -> Vec<(Row, Option<String>)> {
    let mut folded: Vec<(Row, Option<String>)> = Vec::new();
    for row in rows {
        let shard = shard(&row.node);
        if let Some((before, last)) = folded.last_mut()
            && let Some((stage, index)) = shard
            && let Some((stage_before, first)) = self::shard(&before.node)
            && (stage, &row.state, &row.note, &row.below) == (stage_before, &before.state, &before.note, &before.below)
            && row.fetch.map(|(_, need)| need) == before.fetch.map(|(_, need)| need)
            && last.as_deref().map_or(Some(first), |last| last.trim_start_matches("..").parse().ok())
                == index.checked_sub(1)
        {
            before.seconds = before.seconds.zip(row.seconds).map(|(a, b)| a + b);
            before.bytes = before.bytes.zip(row.bytes).map(|(a, b)| a + b);
            before.fetch = before.fetch.zip(row.fetch).map(|((a, need), (b, _))| (a + b, need));
            *last = Some(format!("..{index}"));
            continue;
        }
        folded.push((row, None));
    }
    folded
}

/// `tokens[2]` → `tokens`, 2.
fn shard(node: &str) -> Option<(&str, usize)> {
    let (stage, index) = node.strip_suffix(']')?.rsplit_once('[')?;
    Some((stage, index.parse().ok()?))
}

/// `12 ran, 3 skipped`: the parts that are not zero.
pub fn tally(parts: &[(usize, &str)]) -> String {
    let texts: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", count(*n as u64))).collect();
    if texts.is_empty() { "nothing".into() } else { texts.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: &str, node: &str, bytes: u64) -> Row {
        Row { state: state.into(), node: node.into(), bytes: Some(bytes), seconds: Some(1.0), ..Row::default() }
    }

    #[test]
    fn shards_that_say_the_same_share_a_line() {
        let mut rows: Vec<Row> = (0..12).map(|i| row("cached", &format!("raw[{i}]"), 100)).collect();
        rows.push(row("run", "raw[12]", 1));
        rows.push(row("run", "raw[14]", 1));
        let team = |i: u64| Row { fetch: Some((10 * i, Need::Yes)), ..row("team", &format!("mix[{i}]"), 100) };
        rows.extend([team(0), team(1), team(2)]);
        rows.push(Row { below: vec!["note".into()], ..row("run", "train", 1) });
        let expected = "\
cached  raw[0..11]   12 s  1.2 kB
run     raw[12]     1.0 s     1 B
run     raw[14]     1.0 s     1 B
team    mix[0..2]   3.0 s   300 B   · 30 B to fetch
run     train       1.0 s     1 B
    note
";
        assert_eq!(table(rows), expected);
    }
}

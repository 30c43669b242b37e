//! `flow graph`

use std::fmt::Write;

use flow_engine::{Graph, Node};

use super::{Done, load, svg};
use crate::{
    args::{self, GraphFormat},
    out,
};

/// Draws the graph of a pipeline.
pub fn graph(args: &args::Graph) -> Done {
    let project = load(&args.pipeline)?;
    let drawing = if args.nodes { Drawing::of_nodes(project.graph()) } else { Drawing::of(project.graph()) };
    let text = match args.format {
        GraphFormat::Ascii => drawing.ascii(),
        GraphFormat::Mermaid => drawing.mermaid(),
        GraphFormat::Dot => drawing.dot(project.name()),
        GraphFormat::Svg => drawing.svg(project.name()),
    };
    Ok(out::write(&text)?)
}

/// What is drawn: stages in the order of running, and what each takes from.
struct Drawing {
    stages: Vec<Row>,
}

/// A stage.
struct Row {
    name: String,
    kind: &'static str,
    nodes: usize,
    on: bool,
    takes: Vec<usize>,
}

impl Drawing {
    fn of(graph: &Graph) -> Self {
        // Nodes stand in the order of running, so stages do by their first.
        let mut order: Vec<usize> = (0..graph.stages.len()).collect();
        order.sort_by_key(|stage| graph.stages[*stage].nodes.start);
        let mut row = vec![0; order.len()];
        for (at, stage) in order.iter().enumerate() {
            row[*stage] = at;
        }
        let mut stages: Vec<Row> = order
            .iter()
            .map(|stage| {
                let stage = &graph.stages[*stage];
                Row {
                    name: stage.name.clone(),
                    kind: stage.kind.name,
                    nodes: stage.nodes.len(),
                    on: stage.off.is_none(),
                    takes: Vec::new(),
                }
            })
            .collect();
        for (from, to) in graph.stage_edges() {
            stages[row[to]].takes.push(row[from]);
        }
        for stage in &mut stages {
            stage.takes.sort_unstable();
        }
        Self { stages }
    }

    /// Every node as a row of its own.
    fn of_nodes(graph: &Graph) -> Self {
        let row = |(id, node): (usize, &Node)| {
            let stage = graph.stage_of(id);
            let (name, takes) = (node.name.clone(), node.dependencies.clone());
            Row { name, kind: stage.kind.name, nodes: 1, on: stage.off.is_none(), takes }
        };
        Self { stages: graph.nodes.iter().enumerate().map(row).collect() }
    }

    fn ascii(&self) -> String {
        let rows: Vec<Vec<String>> = self
            .stages
            .iter()
            .map(|stage| {
                let takes: Vec<&str> = stage.takes.iter().map(|from| self.stages[*from].name.as_str()).collect();
                let takes = if takes.is_empty() { String::new() } else { format!("<- {}", takes.join(", ")) };
                vec![stage.name.clone(), stage.label(), takes]
            })
            .collect();
        out::table(&rows, &[])
    }

    fn mermaid(&self) -> String {
        let mut text = String::from("graph TD\n");
        for (id, stage) in self.stages.iter().enumerate() {
            let name = stage.name.replace('"', "#quot;");
            let _ = writeln!(text, "  s{id}[\"{name}<br/>{}\"]", stage.label());
        }
        for (id, stage) in self.stages.iter().enumerate() {
            for from in &stage.takes {
                let _ = writeln!(text, "  s{from} --> s{id}");
            }
        }
        text
    }

    fn dot(&self, title: &str) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let mut text = format!("digraph {} {{\n  node [shape=box];\n", quoted(title));
        for stage in &self.stages {
            let style = if stage.on { "" } else { ", style=dashed" };
            let label = format!("{}\n{}", stage.name, stage.label());
            let _ = writeln!(text, "  {} [label={}{style}];", quoted(&stage.name), quoted(&label).replace('\n', "\\n"));
        }
        for stage in &self.stages {
            for from in &stage.takes {
                let _ = writeln!(text, "  {} -> {};", quoted(&self.stages[*from].name), quoted(&stage.name));
            }
        }
        text + "}\n"
    }
}

impl Drawing {
    fn svg(&self, title: &str) -> String {
        let stages: Vec<svg::Stage<'_>> = self
            .stages
            .iter()
            .map(|stage| svg::Stage { name: &stage.name, label: stage.label(), on: stage.on, takes: &stage.takes })
            .collect();
        svg::draw(title, &stages)
    }
}

impl Row {
    fn label(&self) -> String {
        let nodes = if self.nodes == 1 { String::new() } else { format!(" x{}", self.nodes) };
        format!("{}{nodes}{}", self.kind, if self.on { "" } else { " (off)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing() -> Drawing {
        let stage = |name: &str, kind, nodes, takes| Row { name: name.into(), kind, nodes, on: true, takes };
        let mut stages = vec![stage("raw", "fetch", 3, vec![]), stage("tokens", "tokenize", 3, vec![0])];
        stages.push(Row { on: false, ..stage("say \"hi\"", "command", 1, vec![0, 1]) });
        Drawing { stages }
    }

    #[test]
    fn three_ways_to_draw() {
        let ascii = "\
raw       fetch x3
tokens    tokenize x3    <- raw
say \"hi\"  command (off)  <- raw, tokens
";
        assert_eq!(drawing().ascii(), ascii);
        let mermaid = "\
graph TD
  s0[\"raw<br/>fetch x3\"]
  s1[\"tokens<br/>tokenize x3\"]
  s2[\"say #quot;hi#quot;<br/>command (off)\"]
  s0 --> s1
  s0 --> s2
  s1 --> s2
";
        assert_eq!(drawing().mermaid(), mermaid);
        let dot = r#"digraph "p" {
  node [shape=box];
  "raw" [label="raw\nfetch x3"];
  "tokens" [label="tokens\ntokenize x3"];
  "say \"hi\"" [label="say \"hi\"\ncommand (off)", style=dashed];
  "raw" -> "tokens";
  "raw" -> "say \"hi\"";
  "tokens" -> "say \"hi\"";
}
"#;
        assert_eq!(drawing().dot("p"), dot);
    }
}

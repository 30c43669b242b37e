//! A graph as a drawing, and that as SVG: stages in layers from top to bottom, each below all that it takes from.
//!
//! An edge over several layers gets a place of its own in each of them, so that it runs between the stages and not
//! through them. Order in a layer is the mean of where its neighbours stand, looked at from above and from below in
//! turn: few crossings, in time linear in the graph.

use std::fmt::Write;

use crate::ui::format::width;

/// What is drawn.
pub struct Stage<'a> {
    pub name: &'a str,
    /// The second line.
    pub label: String,
    pub on: bool,
    /// The stages above that it takes from: smaller numbers than its own.
    pub takes: &'a [usize],
}

const COLUMN: f64 = 7.3; // the width of a character
/// How high a stage is drawn.
pub const HEIGHT: f64 = 40.0;
const LAYER: f64 = 84.0;
const GAP: f64 = 22.0;
const MARGIN: f64 = 16.0;
const ROUNDS: usize = 12;

/// A place in a layer: a stage, or where an edge passes.
struct Place {
    stage: Option<usize>,
    layer: usize,
    width: f64,
    /// Its middle.
    x: f64,
    above: Vec<usize>,
    below: Vec<usize>,
}

/// Where everything is drawn.
pub struct Layout {
    /// Of each stage its left, its top, and how wide it is.
    pub stages: Vec<(f64, f64, f64)>,
    /// Of each edge its `d`.
    pub edges: Vec<String>,
    pub width: f64,
    pub height: f64,
}

/// Finds a place for everything.
pub fn lay_out(stages: &[Stage<'_>]) -> Layout {
    let (mut places, edges) = places(stages);
    let mut layers: Vec<Vec<usize>> = Vec::new();
    for (i, place) in places.iter().enumerate() {
        layers.resize_with(layers.len().max(place.layer + 1), Vec::new);
        layers[place.layer].push(i);
    }
    layers.iter().for_each(|layer| spread(layer, &mut places));
    for round in 0..ROUNDS {
        let order: Vec<usize> =
            if round % 2 == 0 { (0..layers.len()).collect() } else { (0..layers.len()).rev().collect() };
        for at in order {
            for &i in &layers[at] {
                let near = if round % 2 == 0 { &places[i].above } else { &places[i].below };
                if !near.is_empty() {
                    places[i].x = near.iter().map(|&other| places[other].x).sum::<f64>() / near.len() as f64;
                }
            }
            layers[at].sort_by(|&a, &b| places[a].x.total_cmp(&places[b].x).then(a.cmp(&b)));
            spread(&layers[at], &mut places);
        }
    }
    let left = places.iter().map(|place| place.x - place.width / 2.0).fold(f64::INFINITY, f64::min);
    let right = places.iter().map(|place| place.x + place.width / 2.0).fold(f64::NEG_INFINITY, f64::max);
    let shift = MARGIN - if left.is_finite() { left } else { 0.0 };
    places.iter_mut().for_each(|place| place.x += shift);
    let drawn = places.iter().filter(|place| place.stage.is_some());
    Layout {
        stages: drawn.map(|place| (place.x - place.width / 2.0, top(place), place.width)).collect(),
        edges: edges.iter().map(|way| path(way, &places)).collect(),
        width: if right.is_finite() { right + shift + MARGIN } else { 2.0 * MARGIN },
        height: 2.0 * MARGIN + (layers.len().max(1) - 1) as f64 * LAYER + HEIGHT,
    }
}

fn top(place: &Place) -> f64 {
    MARGIN + place.layer as f64 * LAYER
}

/// Stages and the places where edges pass; edges as the places on their way.
fn places(stages: &[Stage<'_>]) -> (Vec<Place>, Vec<Vec<usize>>) {
    let mut places: Vec<Place> = Vec::new();
    for (i, stage) in stages.iter().enumerate() {
        let layer = stage.takes.iter().map(|&from| places[from].layer + 1).max().unwrap_or(0);
        let columns = width(stage.name).max(width(&stage.label));
        let width = columns as f64 * COLUMN + 24.0;
        places.push(Place { stage: Some(i), layer, width, x: 0.0, above: Vec::new(), below: Vec::new() });
    }
    // A stage that takes from nothing stands right above the first that takes from it.
    for i in (0..stages.len()).filter(|&i| stages[i].takes.is_empty()) {
        let first =
            stages.iter().enumerate().filter(|(_, stage)| stage.takes.contains(&i)).map(|(to, _)| places[to].layer);
        places[i].layer = first.min().map_or(0, |layer| layer - 1);
    }
    let mut edges = Vec::new();
    for (to, stage) in stages.iter().enumerate() {
        for &from in stage.takes {
            let mut way = vec![from];
            for layer in places[from].layer + 1..places[to].layer {
                way.push(places.len());
                places.push(Place { stage: None, layer, width: 6.0, x: 0.0, above: Vec::new(), below: Vec::new() });
            }
            way.push(to);
            for step in way.windows(2) {
                places[step[0]].below.push(step[1]);
                places[step[1]].above.push(step[0]);
            }
            edges.push(way);
        }
    }
    (places, edges)
}

/// Moves the places of a layer apart, as little as that takes: those that touch stand around where they wanted to be.
fn spread(layer: &[usize], places: &mut [Place]) {
    // Blocks of places that touch: members, where their first wants its middle (a sum), and how wide they are.
    let mut blocks: Vec<(Vec<usize>, f64, f64)> = Vec::new();
    for &i in layer {
        let half = places[i].width / 2.0;
        let mut block = (vec![i], places[i].x - half, places[i].width + GAP);
        while let Some(before) = blocks.last() {
            if before.1 / before.0.len() as f64 + before.2 <= block.1 / block.0.len() as f64 {
                break;
            }
            let Some(before) = blocks.pop() else { break };
            let wants = before.1 + block.1 - before.2 * block.0.len() as f64;
            block = ([before.0, block.0].concat(), wants, before.2 + block.2);
        }
        blocks.push(block);
    }
    for (members, wants, _) in blocks {
        let mut x = wants / members.len() as f64;
        for i in members {
            places[i].x = x + places[i].width / 2.0;
            x += places[i].width + GAP;
        }
    }
}

/// An edge through these places.
fn path(way: &[usize], places: &[Place]) -> String {
    let mut path = String::new();
    for (n, step) in way.windows(2).enumerate() {
        let (from, to) = (&places[step[0]], &places[step[1]]);
        let (y, end) = (top(from) + HEIGHT, top(to) - if to.stage.is_some() { 2.0 } else { 0.0 });
        let bend = (end - y) / 2.0;
        if n == 0 {
            let _ = write!(path, "M{:.1} {y:.1}", from.x);
        }
        let _ = write!(path, "C{:.1} {:.1} {:.1} {:.1} {:.1} {end:.1}", from.x, y + bend, to.x, end - bend, to.x);
        if to.stage.is_none() {
            let _ = write!(path, "L{:.1} {:.1}", to.x, top(to) + HEIGHT);
        }
    }
    path
}

/// The drawing.
pub fn draw(title: &str, stages: &[Stage<'_>]) -> String {
    let Layout { stages: drawn, edges, width: wide, height: high } = lay_out(stages);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{wide:.0}\" height=\"{high:.0}\" \
         viewBox=\"0 0 {wide:.0} {high:.0}\" font-family=\"ui-monospace, Menlo, Consolas, monospace\">\n\
         <title>{}</title>\n\
         <defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"#6b7280\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        escaped(title)
    );
    for path in edges {
        let _ = writeln!(
            text,
            "<path d=\"{path}\" fill=\"none\" stroke=\"#9ca3af\" stroke-width=\"1.4\" marker-end=\"url(#tip)\"/>"
        );
    }
    for (stage, (x, y, width)) in stages.iter().zip(drawn) {
        let dash = if stage.on { "" } else { " stroke-dasharray=\"4 3\"" };
        let middle = x + width / 2.0;
        let _ = writeln!(
            text,
            "<g><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"#f3f4f6\" \
             stroke=\"#4b5563\"{dash}/><text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"12\" \
             font-weight=\"600\" fill=\"#111827\">{}</text><text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" \
             font-size=\"11\" fill=\"#4b5563\">{}</text></g>",
            y + 17.0,
            escaped(stage.name),
            y + 32.0,
            escaped(&stage.label)
        );
    }
    text + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stage<'a>(name: &'a str, takes: &'a [usize]) -> Stage<'a> {
        Stage { name, label: "command".into(), on: true, takes }
    }

    #[test]
    fn no_two_stages_overlap_and_each_is_below_what_it_takes_from() {
        let takes: Vec<Vec<usize>> =
            (0..60usize).map(|i| if i < 6 { vec![] } else { vec![i - 6, i / 2, i / 7] }).collect();
        let names: Vec<String> = (0..60).map(|i| format!("stage-{}", "x".repeat(i % 9))).collect();
        let stages: Vec<Stage> = names.iter().zip(&takes).map(|(name, takes)| stage(name, takes)).collect();
        let (mut places, edges) = places(&stages);
        assert_eq!(edges.len(), takes.iter().map(Vec::len).sum::<usize>());
        for (to, stage) in stages.iter().enumerate() {
            assert!(stage.takes.iter().all(|from| places[*from].layer < places[to].layer));
        }
        let layer: Vec<usize> = (0..places.len()).filter(|&i| places[i].layer == 3).collect();
        spread(&layer, &mut places);
        for pair in layer.windows(2) {
            let [a, b] = [&places[pair[0]], &places[pair[1]]];
            assert!(a.x + a.width / 2.0 + GAP <= b.x - b.width / 2.0 + 0.01);
        }
    }

    #[test]
    fn names_are_text_and_an_empty_graph_is_a_picture() {
        let text = draw("a<b>", &[stage("say \"&\"", &[])]);
        assert!(text.contains("<title>a&lt;b&gt;</title>") && text.contains("say &quot;&amp;&quot;"), "{text}");
        assert!(draw("p", &[]).ends_with("</svg>\n"));
    }
}

//! In which order stages come, and circles among them, named in full.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
};

use flow_core::{Diagnostic, Span};
use petgraph::{
    Direction,
    algo::tarjan_scc,
    graph::{DiGraph, NodeIndex},
};

use crate::graph::StageId;

/// (from, to) → where `to` says that it needs `from`.
pub type Edges = HashMap<(StageId, StageId), Option<Span>>;

/// The stages, each after what it needs, in the file's order otherwise. Names every circle; its stages are not sound, and
/// its edges are taken out.
pub fn order(names: &[String], edges: &mut Edges, errors: &mut Vec<Diagnostic>, sound: &mut [bool]) -> Vec<StageId> {
    let mut graph: DiGraph<(), ()> = DiGraph::with_capacity(names.len(), edges.len());
    let ids: Vec<_> = names.iter().map(|_| graph.add_node(())).collect();
    let mut sorted: Vec<_> = edges.keys().copied().collect();
    sorted.sort_unstable();
    for (from, to) in sorted {
        graph.add_edge(ids[from], ids[to], ());
    }
    let mut circles = false;
    for group in tarjan_scc(&graph) {
        let mut group: Vec<StageId> = group.into_iter().map(NodeIndex::index).collect();
        group.sort_unstable();
        let circle = match group[..] {
            [one] if edges.contains_key(&(one, one)) => vec![one],
            [_] => continue,
            _ => circle(&group, edges),
        };
        let (first, last) = (circle[0], *circle.last().expect("a circle has members"));
        let mut text: Vec<&str> = circle.iter().map(|&stage| names[stage].as_str()).collect();
        text.push(&names[first]);
        let message = format!("stages need each other in a circle: {}", text.join(" → "));
        let mut error = Diagnostic::new(message).at(edges.get(&(last, first)).cloned().flatten());
        for (i, &to) in circle.iter().enumerate() {
            let from = circle[(i + circle.len() - 1) % circle.len()];
            let line = edges.get(&(from, to)).and_then(Option::as_ref).map(|span| span.line_column().0);
            let at = line.map_or_else(String::new, |line| format!(", in line {line}"));
            error = error.cause(format!("`{}` needs `{}`{at}", names[to], names[from]));
        }
        errors.push(error.hint("take one of these out"));
        group.iter().for_each(|&stage| sound[stage] = false);
        edges.retain(|(from, to), _| !(group.contains(from) && group.contains(to)));
        circles = true;
    }
    if circles {
        return order(names, edges, errors, sound);
    }

    let mut waiting: Vec<usize> =
        ids.iter().map(|&id| graph.neighbors_directed(id, Direction::Incoming).count()).collect();
    let mut ready: BinaryHeap<Reverse<StageId>> =
        (0..names.len()).filter(|&stage| waiting[stage] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(names.len());
    while let Some(Reverse(stage)) = ready.pop() {
        order.push(stage);
        for next in graph.neighbors(ids[stage]) {
            waiting[next.index()] -= 1;
            if waiting[next.index()] == 0 {
                ready.push(Reverse(next.index()));
            }
        }
    }
    order
}

/// The shortest circle through the first member of a strongly connected group.
fn circle(group: &[StageId], edges: &Edges) -> Vec<StageId> {
    let start = group[0];
    let mut came_from: HashMap<StageId, StageId> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for &next in group.iter().filter(|&&next| edges.contains_key(&(at, next))) {
            if next == start {
                let mut circle = vec![at];
                while let Some(&before) = came_from.get(circle.last().expect("it begins with one")) {
                    circle.push(before);
                }
                circle.reverse();
                return circle;
            }
            came_from.entry(next).or_insert_with(|| {
                queue.push_back(next);
                at
            });
        }
    }
    group.to_vec()
}

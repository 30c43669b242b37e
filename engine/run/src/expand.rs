//! Drafts of stages → the nodes of a [`Graph`].

use std::{collections::HashMap, ops::Range};

use flow_core::{Diagnostic, Mode, ValueKind};

use crate::{
    find::Target,
    graph::{Graph, Node, NodeId, PortInputs, Source, StageId, StageInfo, Variant, among, bracket},
    link::{Action, Draft, Taken},
};

/// Makes the nodes, stage by stage. Of stages that are not sound nothing is known, and nobody complains of them.
pub fn expand(
    drafts: Vec<Draft>,
    order: &[StageId],
    by_name: HashMap<String, StageId>,
    sound: &[bool],
    errors: &mut Vec<Diagnostic>,
) -> Graph {
    let mut expander = Expander {
        drafts: &drafts,
        sound,
        nodes: Vec::with_capacity(drafts.len()),
        ranges: vec![0..0; drafts.len()],
        starts: vec![Vec::new(); drafts.len()],
        off: vec![None; drafts.len()],
        off_some: HashMap::new(),
        errors,
    };
    for &stage in order {
        expander.stage(stage);
    }
    let Expander { mut nodes, ranges, mut off, mut off_some, .. } = expander;
    for id in 0..nodes.len() {
        for at in 0..nodes[id].dependencies.len() {
            let from = nodes[id].dependencies[at];
            nodes[from].dependents.push(id);
        }
    }
    // Who implied it is off, too.
    for (stage, _) in drafts.iter().enumerate().filter(|(_, draft)| draft.implied) {
        if nodes[ranges[stage].clone()].iter().all(|node| node.dependents.is_empty()) {
            off[stage].get_or_insert_with(|| "nothing that is on takes it".to_owned());
        }
    }
    let stages = drafts
        .into_iter()
        .zip(ranges.into_iter().zip(off))
        .enumerate()
        .map(|(id, (draft, (nodes, off)))| {
            let some = off_some.remove(&id).unwrap_or_default();
            let named = |(label, why)| (format!("{}[{label}]", draft.name), why);
            StageInfo {
                off_some: some.into_iter().map(named).collect(),
                name: draft.name,
                kind: draft.kind,
                variants: draft.variants,
                nodes,
                off,
                span: draft.span,
            }
        })
        .collect();
    Graph { stages, nodes, by_name }
}

struct Expander<'a> {
    drafts: &'a [Draft],
    sound: &'a [bool],
    nodes: Vec<Node>,
    ranges: Vec<Range<NodeId>>,
    /// The first node of each action of each stage; nothing if the action is off.
    starts: Vec<Vec<Option<NodeId>>>,
    /// Why a stage is off.
    off: Vec<Option<String>>,
    /// The combinations of a stage that are off where others are not, and why.
    off_some: HashMap<StageId, Vec<(String, String)>>,
    errors: &'a mut Vec<Diagnostic>,
}

impl Expander<'_> {
    fn stage(&mut self, stage: StageId) {
        let draft = &self.drafts[stage];
        let first = self.nodes.len();
        let off: Vec<Option<String>> = draft.actions.iter().map(|action| self.why_off(draft, action)).collect();
        if off.iter().all(Option::is_some) {
            // One node, so that the stage is seen; it takes nothing and does nothing.
            self.off[stage] = off.into_iter().flatten().next();
            self.push(stage, &draft.actions[0], Vec::new(), Vec::new());
            self.starts[stage] = vec![None; draft.actions.len()];
            self.ranges[stage] = first..self.nodes.len();
            return;
        }
        for (action, off) in draft.actions.iter().zip(&off) {
            if let Some(why) = off {
                self.starts[stage].push(None);
                let label = &draft.variants[action.variant].label;
                let some = self.off_some.entry(stage).or_default();
                // One that is several actions is off once.
                if some.last().is_none_or(|(last, _)| last != label) {
                    some.push((label.clone(), why.clone()));
                }
                continue;
            }
            self.starts[stage].push(Some(self.nodes.len()));
            self.action(stage, action);
        }
        self.ranges[stage] = first..self.nodes.len();
        self.name(stage);
    }

    fn action(&mut self, stage: StageId, action: &Action) {
        let draft = &self.drafts[stage];
        let mut needs = Vec::new();
        for target in &draft.needs[action.variant] {
            match self.some(target, draft, action.variant, "needs") {
                Some(nodes) => needs.extend(nodes),
                None => continue,
            }
        }
        let ports: Vec<(&Taken, Vec<Source>)> =
            action.ports.iter().map(|taken| (taken, self.sources(taken, draft, action.variant))).collect();
        let Some(count) = self.count(draft, action, &ports) else { return };
        if count > 1 && !action.stage.outs().is_empty() {
            let error = Diagnostic::new(format!("`{}` has `outs` and would run {count} times", draft.name));
            let error = error.at(draft.variants[action.variant].value.nearest("outs").span.clone());
            self.errors.push(error.hint("every run would write the same files: leave `outs` away and use `{out}`"));
            return;
        }
        for shard in 0..count {
            let inputs = ports.iter().map(|(taken, sources)| PortInputs {
                name: taken.port.name.clone(),
                sources: match taken.port.mode {
                    Mode::Each if sources.len() > 1 => vec![sources[shard].clone()],
                    _ => sources.clone(),
                },
                only: taken.port.only,
            });
            self.push(stage, action, inputs.collect(), needs.clone());
        }
    }

    fn push(&mut self, stage: StageId, action: &Action, inputs: Vec<PortInputs>, needs: Vec<NodeId>) {
        let mut dependencies = needs;
        dependencies.extend(inputs.iter().flat_map(|port| port.sources.iter().filter_map(Source::node)));
        dependencies.sort_unstable();
        dependencies.dedup();
        self.nodes.push(Node {
            name: self.drafts[stage].name.clone(),
            stage,
            variant: action.variant,
            action: action.stage.clone(),
            inputs,
            dependencies,
            dependents: Vec::new(),
        });
    }

    /// `tokens[2]`; `train[lr=0.001,seed=1]`, and so what is made of each of these.
    fn name(&mut self, stage: StageId) {
        let draft = &self.drafts[stage];
        let range = self.ranges[stage].clone();
        let mut of_variant = vec![0usize; draft.variants.len()];
        self.nodes[range.clone()].iter().for_each(|node| of_variant[node.variant] += 1);
        let mut nth = vec![0usize; draft.variants.len()];
        let inherited = if draft.variants.len() == 1 { self.inherited(range.clone()) } else { None };
        for id in range.clone() {
            let variant = self.nodes[id].variant;
            let label = draft.variants[variant].label.as_str();
            let index = nth[variant];
            nth[variant] += 1;
            let inside = match (label, of_variant[variant], &inherited) {
                ("", 1, _) => continue,
                ("", _, Some(labels)) => labels[index].clone(),
                ("", ..) => index.to_string(),
                (label, 1, _) => label.to_owned(),
                (label, ..) => format!("{label},{index}"),
            };
            self.nodes[id].name = format!("{}[{inside}]", draft.name);
        }
    }

    /// The labels of the nodes that these are made of, one each, if they come from a matrix.
    fn inherited(&self, range: Range<NodeId>) -> Option<Vec<String>> {
        if range.len() < 2 {
            return None;
        }
        let mut labels = Vec::with_capacity(range.len());
        for node in &self.nodes[range] {
            let sources = node.inputs.iter().filter(|port| port.sources.len() == 1).flat_map(|port| &port.sources);
            let label = sources.filter_map(Source::node).find_map(|from| {
                let name = &self.nodes[from].name;
                bracket(name).map(|(_, inside)| inside).filter(|inside| inside.contains('='))
            });
            labels.push(label?.to_owned());
        }
        let distinct: std::collections::HashSet<_> = labels.iter().collect();
        (distinct.len() == labels.len()).then_some(labels)
    }

    /// `when` does not hold, or a port at which only what is off would enter.
    fn why_off(&self, draft: &Draft, action: &Action) -> Option<String> {
        if !draft.variants[action.variant].common.when {
            return Some(why_not(&draft.variants[action.variant]));
        }
        action.ports.iter().find_map(|taken| {
            let off = |target: &Target| target.stage().filter(|stage| self.is_off(*stage, target));
            let all_off = !taken.targets.is_empty() && taken.targets.iter().all(|target| off(target).is_some());
            let first = taken.targets.first().and_then(off).filter(|_| all_off)?;
            Some(format!("`{}` is off", self.drafts[first].name))
        })
    }

    /// Whether all that a target means is off.
    fn is_off(&self, stage: StageId, target: &Target) -> bool {
        self.off[stage].is_some()
            || match target {
                Target::Some(_, inside) => {
                    let some = self.off_some.get(&stage);
                    among(&self.nodes, self.ranges[stage].clone(), inside).is_empty()
                        && some.is_some_and(|some| some.iter().any(|(label, _)| crate::graph::chooses(inside, label)))
                }
                Target::Part(of, _) => self.is_off(stage, of),
                Target::Out(_, nth, _) => self.starts[stage].get(*nth).is_some_and(Option::is_none),
                _ => false,
            }
    }

    /// The nodes that a target means, if it means nodes.
    fn some(&mut self, target: &Target, of: &Draft, variant: usize, field: &str) -> Option<Vec<NodeId>> {
        let stage = target.stage()?;
        if self.is_off(stage, target) {
            return Some(Vec::new());
        }
        match target {
            Target::Stage(stage) => Some(self.ranges[*stage].clone().collect()),
            Target::Some(stage, inside) => {
                let range = self.ranges[*stage].clone();
                let nodes = among(&self.nodes, range.clone(), inside);
                if nodes.is_empty() && self.sound[*stage] && !range.is_empty() {
                    let name = &self.drafts[*stage].name;
                    let error = Diagnostic::new(format!("there is no `{name}[{inside}]`"));
                    let span = of.variants[variant].place(field);
                    let error = error.at(span).at(of.span.clone());
                    self.errors.push(error.hint(crate::graph::listed(name, &self.nodes[range])));
                }
                Some(nodes)
            }
            _ => None,
        }
    }

    /// What enters at a port, flat.
    fn sources(&mut self, taken: &Taken, of: &Draft, variant: usize) -> Vec<Source> {
        let mut sources = Vec::new();
        for target in &taken.targets {
            let (target, part) = match target {
                Target::Part(whole, part) => (&**whole, Some(part)),
                whole => (whole, None),
            };
            if let Some(nodes) = self.some(target, of, variant, &taken.port.name) {
                sources.extend(nodes.into_iter().map(|node| match part {
                    Some(part) => Source::Part { node, part: part.clone() },
                    None => Source::Node(node),
                }));
                continue;
            }
            match target {
                Target::Out(stage, nth, file) => {
                    if let Some(node) = self.starts[*stage].get(*nth).copied().flatten() {
                        sources.push(Source::Out { node, file: file.clone() });
                    }
                }
                Target::Path(path) => sources.push(Source::Path(path.clone())),
                Target::Prefix(prefix, endings) => {
                    sources.push(Source::Prefix { prefix: prefix.clone(), endings });
                }
                Target::Stage(_) | Target::Some(..) | Target::Part(..) => {}
            }
        }
        sources
    }

    /// How many nodes an action makes; nothing if its ports do not agree, which is said.
    fn count(&mut self, draft: &Draft, action: &Action, ports: &[(&Taken, Vec<Source>)]) -> Option<usize> {
        let known = |taken: &Taken| taken.targets.iter().filter_map(Target::stage).all(|stage| self.sound[stage]);
        let certain = ports.iter().all(|(taken, _)| known(taken));
        let span = |name: &str| draft.variants[action.variant].value.nearest(name).span.clone();
        let mut count: Option<(usize, &str)> = None;
        for (taken, sources) in ports {
            let name = taken.port.name.as_str();
            match (taken.port.mode, sources.len()) {
                (_, 0 | 1) | (Mode::All, _) => {
                    // A single input goes with every shard of another port.
                }
                (Mode::One, have) => {
                    let message = format!("`{name}` takes one input, and {have} enter");
                    let nodes: Vec<&str> =
                        sources.iter().filter_map(Source::node).map(|node| self.nodes[node].name.as_str()).collect();
                    let mut error = Diagnostic::new(message).at(span(name));
                    if let Some(first) = nodes.first() {
                        error = error.hint(format!("name one of them, such as `{first}`"));
                        if let Some((stage, _)) = bracket(first).filter(|(_, inside)| inside.contains('=')) {
                            let hint =
                                format!("or give this stage the same `matrix` and write \"{stage}[${{matrix}}]\"");
                            error = error.hint(hint);
                        }
                    }
                    self.errors.push(error);
                    return None;
                }
                (Mode::Each, have) => match count {
                    Some((before, other)) if before != have => {
                        if certain {
                            let message = format!("`{other}` has {before} inputs and `{name}` has {have}");
                            let error = Diagnostic::new(message).at(span(name));
                            let hint = "one node is made of each, in step: give both the same number, or one";
                            self.errors.push(error.hint(hint));
                        }
                        return None;
                    }
                    _ => count = Some((have, name)),
                },
            }
        }
        Some(count.map_or(1, |(count, _)| count))
    }
}

/// What of a `when` does not hold, as it is written and as it was read.
fn why_not(variant: &Variant) -> String {
    let when = variant.said.nearest("when");
    let written = when.span.as_ref().and_then(|span| span.source.text.get(span.start..span.end));
    let written = written.filter(|text| text.contains("${") && !text.contains('\n'));
    match (&when.kind, written) {
        (ValueKind::String(text), Some(written)) => format!("when = {written} is false: {}", text.trim()),
        (ValueKind::String(text), None) => format!("when = \"{}\" is false", text.trim()),
        (_, Some(written)) => format!("when = {written} is false"),
        (_, None) => "when = false".to_owned(),
    }
}

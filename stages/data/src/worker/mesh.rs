//! How many ranks each machine has: what a check says of it.

use flow_core::{Check, Diagnostic};

/// Says whether `ranks` processes, the product of `sizes`, fit the machines of a stage: each has as many, and where GPUs are
/// asked for, each of them has one process. With several machines, a line for the plan.
pub fn check(
    check: &mut Check<'_>,
    field: &str,
    sizes: &[(&str, usize)],
    ranks: usize,
    on_gpus: bool,
) -> Option<String> {
    let (nodes, gpus) = (check.nodes, if on_gpus { check.gpus } else { 0 });
    let product = sizes.iter().map(|(name, size)| format!("{name} {size}")).collect::<Vec<_>>().join(" × ");
    let product = if sizes.len() > 1 { format!("{product} = {ranks}") } else { product };
    let machines = if nodes == 1 { String::new() } else { format!("{nodes} nodes × ") };
    if gpus > 0 && ranks != nodes * gpus {
        let plural = if gpus == 1 { "GPU" } else { "GPUs" };
        let total = if nodes == 1 { String::new() } else { format!(" = {}", nodes * gpus) };
        let wrong = Diagnostic::new(format!("processes: {product}; resources: {machines}{gpus} {plural}{total}"));
        check.error(field, wrong.hint("one process a GPU: make the two numbers equal"));
        return None;
    }
    if !ranks.is_multiple_of(nodes) {
        let wrong = Diagnostic::new(format!("processes: {product}, which do not divide among {nodes} nodes"));
        check.error(field, wrong.hint("each node has as many processes as any other"));
        return None;
    }
    (nodes > 1).then(|| match gpus {
        0 => format!("{nodes} nodes x {} processes", ranks / nodes),
        gpus => format!("{nodes} nodes x {gpus} GPUs"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn said(nodes: usize, gpus: usize, data: usize, on_gpus: bool) -> String {
        let inputs = BTreeMap::new();
        let mut asked = Check { nodes, gpus, ..Check::new("/".as_ref(), &inputs) };
        let line = check(&mut asked, "parallel", &[("tensor", 2), ("data", data)], 2 * data, on_gpus);
        asked.errors.first().map_or_else(|| line.unwrap_or_default(), |error| error.message.clone())
    }

    #[test]
    fn processes_are_counted_against_machines() {
        assert_eq!(said(2, 4, 4, true), "2 nodes x 4 GPUs");
        assert_eq!(said(2, 0, 3, true), "2 nodes x 3 processes");
        assert_eq!(said(2, 4, 2, false), "2 nodes x 2 processes");
        assert_eq!([said(1, 8, 4, true), said(1, 0, 3, true)], ["", ""]);
        assert_eq!(said(2, 4, 3, true), "processes: tensor 2 × data 3 = 6; resources: 2 nodes × 4 GPUs = 8");
        assert_eq!(said(1, 1, 1, true), "processes: tensor 2 × data 1 = 2; resources: 1 GPU");
        assert_eq!(said(4, 0, 3, true), "processes: tensor 2 × data 3 = 6, which do not divide among 4 nodes");
    }
}

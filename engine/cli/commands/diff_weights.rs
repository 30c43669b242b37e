//! `flow diff-weights`

use flow_core::Diagnostic;
use flow_data::weights::{Comparison, Difference, Outcome, Weights, compare};
use serde_json::{Value as Json, json};

use super::{Done, inspect::unreadable};
use crate::{args, failure::Failure, out, ui::format::tame};

/// Compares the tensors of two models. Ends with 1 if they differ by more than is allowed.
pub fn diff_weights(args: &args::DiffWeights) -> Done {
    let open = |path: &std::path::Path| Weights::open(path).map_err(|error| unreadable(&error));
    let all = compare(open(&args.first)?, open(&args.second)?).map_err(|error| unreadable(&error))?;
    let allowed = |outcome: &Outcome| match outcome {
        Outcome::Both(difference) => difference.equal || difference.max_abs <= args.tolerance,
        _ => false,
    };
    if args.json {
        let lines: String = all.tensors.iter().map(|(name, outcome)| format!("{}\n", json(name, outcome))).collect();
        out::write(&lines)?;
    } else {
        out::write(&text(&all, args.all))?;
    }
    let wrong = all.tensors.iter().filter(|(_, outcome)| !allowed(outcome)).count();
    match wrong {
        0 => Ok(()),
        n => {
            let message = format!("{n} of {} tensors differ", all.tensors.len());
            Err(Failure::Stage(vec![Diagnostic::new(message)]))
        }
    }
}

fn json(name: &str, outcome: &Outcome) -> Json {
    match outcome {
        Outcome::OnlyFirst => json!({ "name": name, "only": "first" }),
        Outcome::OnlySecond => json!({ "name": name, "only": "second" }),
        Outcome::Shapes(a, b) => json!({ "name": name, "shapes": [a, b] }),
        Outcome::Both(it) => json!({ "name": name, "shape": it.shape, "dtypes": it.type_names(),
            "equal": it.equal, "max_abs": finite(it.max_abs), "max_rel": finite(it.max_rel), "cosine": it.cosine }),
    }
}

/// JSON has no infinity.
fn finite(value: f64) -> Json {
    if value.is_finite() { json!(value) } else { json!("inf") }
}

fn text(all: &Comparison, every: bool) -> String {
    let [first, second] = &all.formats;
    let mut rows = vec![["TENSOR", "TYPES", "SHAPE", "MAX ABS", "MAX REL", "COSINE"].map(str::to_owned).to_vec()];
    let (mut equal, mut different) = (0, 0);
    for (name, outcome) in &all.tensors {
        let cells = match outcome {
            Outcome::Both(Difference { equal: true, .. }) => {
                equal += 1;
                if !every {
                    continue;
                }
                vec!["equal".to_owned()]
            }
            Outcome::Both(it) => {
                different += 1;
                let types = match it.type_names() {
                    [a, b] if a == b => a.to_owned(),
                    [a, b] => format!("{a}, {b}"),
                };
                vec![
                    types,
                    format!("{:?}", it.shape),
                    format!("{:.3e}", it.max_abs),
                    format!("{:.3e}", it.max_rel),
                    format!("{:.9}", it.cosine),
                ]
            }
            Outcome::OnlyFirst => vec!["only in the first".to_owned()],
            Outcome::OnlySecond => vec!["only in the second".to_owned()],
            Outcome::Shapes(a, b) => vec![String::new(), format!("{a:?}, {b:?}")],
        };
        rows.push([vec![tame(name)], cells].concat());
    }
    let other = all.tensors.len() - equal - different;
    let table = if rows.len() > 1 { out::table(&rows, &[3, 4, 5]) + "\n" } else { String::new() };
    format!(
        "first:  {first}\nsecond: {second}\n\n{table}{} tensors: {equal} equal, {different} different, {other} missing or of another \
         shape\n",
        all.tensors.len()
    )
}

//! [`inspect`]: what lies at a path, for a person.

use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value as Json, json};

use super::Weights;
use crate::{datasets, models::Model};

/// What was found.
#[derive(Debug)]
pub struct Inspection {
    /// Name and value, in the order to be shown.
    pub facts: Vec<(&'static str, String)>,
    /// The parts, the first row their headings.
    pub rows: Vec<Vec<String>>,
    /// All of it for programs.
    pub json: Json,
}

/// Looks at a Hugging Face model or a Megatron checkpoint, of which it reads tables of contents and no tensor; or at
/// `.bin/.idx` datasets, of which it shows the text if there is a `tokenizer`.
///
/// # Errors
/// It is none of these, or damaged; it has no text.
pub fn inspect(path: &Path, tokenizer: Option<&Path>) -> Result<Inspection> {
    let found = datasets::at(path);
    if !found.is_empty() {
        return datasets::inspect(&found, tokenizer);
    }
    ensure!(tokenizer.is_none(), "{} holds no .bin/.idx, which a tokenizer would be for", path.display());
    let weights = Weights::open(path)?;
    let elements = |shape: &[u64]| shape.iter().product::<u64>();
    let of_model = |name: &str| !name.starts_with("optimizer.");
    let count = |wanted: &dyn Fn(&str) -> bool| -> (u64, u64) {
        let found = weights.tensors.iter().filter(|(name, _)| wanted(name));
        found.fold((0, 0), |(n, bytes), (_, (dtype, shape))| {
            (n + elements(shape), bytes + elements(shape) * dtype.size())
        })
    };
    let (parameters, bytes) = count(&of_model);
    let (state, state_bytes) = count(&|name| !of_model(name));
    let mut types: Vec<&str> = weights.tensors.values().map(|(dtype, _)| dtype.torch()).collect();
    types.sort_unstable();
    types.dedup();

    let mut facts = vec![("format", weights.format.clone())];
    let mut model = Json::Null;
    if let Some(config) = &weights.config {
        model = config["model_type"].clone();
        facts.push((
            "model",
            match Model::of(config) {
                Ok(_) => model.as_str().unwrap_or_default().to_owned(),
                Err(error) => format!("cannot be converted: {error:#}"),
            },
        ));
    }
    facts.push(("tensors", weights.tensors.len().to_string()));
    facts.push(("parameters", format!("{parameters} ({bytes} bytes, {})", types.join(", "))));
    if state > 0 {
        facts.push(("optimizer", format!("{state} elements ({state_bytes} bytes)")));
    }
    if let Some((chunks, files)) = weights.cut() {
        let plural = if files == 1 { "" } else { "s" };
        facts.push(("cut", format!("{chunks} chunks in {files} file{plural}")));
    }
    let mut rows = vec![["TENSOR", "TYPE", "SHAPE"].map(str::to_owned).to_vec()];
    rows.extend(
        weights
            .tensors
            .iter()
            .map(|(name, (dtype, shape))| vec![name.clone(), dtype.torch().to_owned(), format!("{shape:?}")]),
    );
    let tensors: Vec<Json> = weights
        .tensors
        .iter()
        .map(|(name, (dtype, shape))| json!({ "name": name, "dtype": dtype.torch(), "shape": shape }))
        .collect();
    let json = json!({ "format": weights.format, "model_type": model, "parameters": parameters, "bytes": bytes,
        "optimizer_bytes": state_bytes, "tensors": tensors });
    Ok(Inspection { facts, rows, json })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::golden;

    #[test]
    fn both_formats_have_the_same_parameters() {
        let [hf, megatron] = ["hf", "megatron_core0.16"].map(|name| inspect(&golden(name), None).unwrap());
        assert_eq!(hf.json["parameters"], 238_144);
        assert_eq!(
            (&hf.json["parameters"], &hf.json["bytes"]),
            (&megatron.json["parameters"], &megatron.json["bytes"])
        );
        assert_eq!((hf.rows.len(), megatron.rows.len()), (40, 10));
        assert_eq!(hf.facts[1], ("model", "llama".to_owned()));
        assert_eq!(megatron.facts.last().unwrap(), &("cut", "31 chunks in 2 files".to_owned()));
        let legacy = inspect(&golden("../../megatron_legacy/tp2_ep2"), None).unwrap();
        assert_eq!(legacy.facts[0].1, "Megatron (mp_rank), iteration 5");
        let error = format!("{:#}", inspect(Path::new("/usr"), None).unwrap_err());
        assert!(error.contains("neither *.safetensors nor a Megatron checkpoint"), "{error}");
    }
}

//! A model's [`Layout`] in a checkpoint that lies here: under Megatron's keys, or under Hugging Face's names, as
//! `torch.distributed.checkpoint` keeps a model of transformers whatever it was trained with.

use anyhow::{Result, bail, ensure};
use flow_formats::torch_dist::Reader;

use super::{Layout, Model, layout::Rows, layout::Target};

/// Whether a checkpoint has Megatron's keys.
#[must_use]
pub fn has_megatron_keys(reader: &Reader) -> bool {
    reader.tensor("embedding.word_embeddings.weight").is_some()
}

impl Model {
    /// Where this checkpoint has the model's rows. What it does not have is found by who reads or checks.
    ///
    /// # Errors
    /// It holds several models under Hugging Face's names.
    pub fn layout_in(&self, reader: &Reader) -> Result<Layout> {
        let Some(first) = self.layout.hf.first().filter(|_| !has_megatron_keys(reader)) else {
            return Ok(self.layout.clone());
        };
        let prefixes = reader.tensors().keys().filter_map(|key| key.strip_suffix(&first.name));
        // The optimizer's state has the same names below its own.
        let of_model = |prefix: &&str| (prefix.is_empty() || prefix.ends_with('.')) && !prefix.contains("optim");
        match prefixes.filter(of_model).collect::<Vec<_>>()[..] {
            [] => Ok(self.layout.clone()),
            [prefix] => Ok(self.layout.under(prefix)),
            [first, second, ..] => bail!("it holds several models, under `{first}` and under `{second}`"),
        }
    }

    /// The checkpoint holds the layout's tensors in their shapes, and no other of a model.
    ///
    /// # Errors
    /// It does not: with the tensor.
    pub fn check_in(&self, reader: &Reader, layout: &Layout) -> Result<()> {
        let zero_centered = self.run_config.iter().any(|(field, _)| *field == "layernorm_zero_centered_gamma");
        ensure!(
            !(zero_centered && reader.is_archive()),
            "NeMo 1 added 1 to the norms of `{}` models, and its archives do not say whether they are of it: export it there",
            self.family.model_type
        );
        for target in &layout.megatron {
            let Some(tensor) = reader.tensor(&target.key) else {
                let known = layout.megatron.iter().any(|target| reader.tensor(&target.key).is_some());
                match reader.tensors().keys().next().filter(|_| !known) {
                    Some(other) => bail!(
                        "the keys of the checkpoint are neither Megatron's nor Hugging Face's: it has `{other}`, and no `{}`",
                        target.key
                    ),
                    None => bail!("the checkpoint has no tensor `{}`", target.key),
                }
            };
            let fits = match (&tensor.shape[..], &target.shape[..]) {
                ([found, found_rest @ ..], [wanted, wanted_rest @ ..]) if target.vocabulary => {
                    found >= wanted && found_rest == wanted_rest
                }
                (found, wanted) => found == wanted,
            };
            ensure!(
                fits,
                "`{}` has shape {:?} in the checkpoint, and the source's config.json makes it {:?}",
                target.key,
                tensor.shape,
                target.shape
            );
        }
        let known: std::collections::HashSet<&str> = layout.megatron.iter().map(|it| it.key.as_str()).collect();
        for key in reader.tensors().keys().filter(|key| !known.contains(key.as_str())) {
            let of_model = match &layout.prefix {
                None => ["embedding.", "decoder.", "output_layer."].iter().any(|part| key.starts_with(part)),
                Some(prefix) => key.strip_prefix(prefix).is_some_and(|name| {
                    ["model.", "lm_head."].iter().any(|part| name.starts_with(part)) && !self.ignores(name)
                }),
            };
            ensure!(!of_model, "the checkpoint has `{key}`, which a model of the source's config.json does not have");
        }
        Ok(())
    }
}

impl Layout {
    /// The same, of a checkpoint whose keys are Hugging Face's names behind this prefix.
    fn under(&self, prefix: &str) -> Self {
        let mut layout = Self { hf: self.hf.clone(), prefix: Some(prefix.to_owned()), ..Self::default() };
        for (i, named) in layout.hf.iter().enumerate() {
            let (rows, width) = (named.shape[0], named.shape[1..].iter().product());
            layout.rows.push(Rows { hf: i, hf_row: 0, target: i, chunk: 0, row: 0, rows, width });
            layout.megatron.push(Target {
                key: format!("{prefix}{}", named.name),
                shape: named.shape.clone(),
                axis: 0,
                vocabulary: false,
                chunks: vec![(vec![0; named.shape.len()], named.shape.clone())],
            });
        }
        layout
    }
}

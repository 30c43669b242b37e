//! [`Documents`]: what the ends of documents do to a sequence, as Megatron's `reset_position_ids`, `reset_attention_mask`
//! and `eod_mask_loss` have it. A token that ends a document belongs to it.

use crate::{ModelConfig, Training};

/// What is made of ends of documents, one of the options at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Documents {
    /// The token that ends a document.
    pub eod: i64,
    /// Positions are counted from each document's beginning.
    pub positions: bool,
    /// Attention stays within a document.
    pub attention: bool,
    /// What follows an end is not learned.
    pub loss: bool,
}

impl Training {
    /// The first option that looks at ends of documents, if one is on.
    pub(crate) fn document_option(&self) -> Option<&'static str> {
        let options = [
            ("reset_position_ids", self.reset_position_ids),
            ("reset_attention_mask", self.reset_attention_mask),
            ("eod_mask_loss", self.eod_mask_loss),
        ];
        options.into_iter().find_map(|(field, on)| on.then_some(field))
    }

    /// What is made of ends of documents; `None` if nothing is, or nobody knows the token that they are.
    #[must_use]
    pub fn documents(&self, model: &ModelConfig) -> Option<Documents> {
        self.document_option()?;
        Some(Documents {
            eod: self.eod_token_id.or(model.eos_token_id)?,
            positions: self.reset_position_ids,
            attention: self.reset_attention_mask,
            loss: self.eod_mask_loss,
        })
    }
}

impl Documents {
    /// How long the pieces of documents in a row are, in order; together they are the row.
    #[must_use]
    pub fn lengths(&self, row: &[i64]) -> Vec<usize> {
        row.split_inclusive(|token| *token == self.eod).map(<[i64]>::len).collect()
    }

    /// For each token of a row, its place in its document.
    #[must_use]
    pub fn places(&self, row: &[i64]) -> Vec<i64> {
        self.lengths(row).into_iter().flat_map(|length| 0..length as i64).collect()
    }

    /// For each token of a row, the number of its document in the row.
    #[must_use]
    pub fn numbers(&self, row: &[i64]) -> Vec<i64> {
        let lengths = self.lengths(row).into_iter().zip(0..);
        lengths.flat_map(|(length, number)| std::iter::repeat_n(number, length)).collect()
    }

    /// For each token of a row, 1 if what follows it is learned, else 0.
    #[must_use]
    pub fn weights(&self, row: &[i64]) -> Vec<f32> {
        row.iter().map(|token| if *token == self.eod { 0.0 } else { 1.0 }).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;
    use crate::tests::{model, training};

    /// What the real Megatron made of an example.
    #[test]
    fn ends_of_documents_do_what_they_do_in_megatron() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/gpt_dataset/eod_reset_example.json");
        let golden: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let field = |name: &str| -> Vec<i64> { serde_json::from_value(golden[name].clone()).unwrap() };
        let tokens = field("tokens");
        let eod = golden["eod"].as_i64().unwrap();
        let documents = Documents { eod, positions: true, attention: true, loss: true };
        assert_eq!(documents.places(&tokens), field("position_ids"));
        let weights: Vec<f32> = serde_json::from_value(golden["loss_mask"].clone()).unwrap();
        assert_eq!(documents.weights(&tokens), weights);
        let numbers = documents.numbers(&tokens);
        for (i, row) in golden["attention_mask_true_means_masked"].as_array().unwrap().iter().enumerate() {
            for (j, masked) in row.as_array().unwrap().iter().enumerate() {
                let seen = j <= i && numbers[i] == numbers[j];
                assert_eq!(u64::from(!seen), masked.as_u64().unwrap(), "{i} sees {j}");
            }
        }
        assert_eq!(documents.lengths(&[]), [0; 0]);
    }

    #[test]
    fn the_token_is_the_models_if_none_is_given() {
        let (mut training, mut model) = (training(), model());
        assert_eq!(training.documents(&model), None);
        training.reset_attention_mask = true;
        assert_eq!(training.documents(&model), None);
        model.eos_token_id = Some(7);
        let found = training.documents(&model).unwrap();
        assert_eq!((found.eod, found.positions, found.attention, found.loss), (7, false, true, false));
        training.eod_token_id = Some(9);
        assert_eq!(training.documents(&model).unwrap().eod, 9);
    }
}

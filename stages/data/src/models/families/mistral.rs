//! Mistral 7B, Nemo, Small 3 (text): Llama's tensors, with a sliding window in the first of them.

use super::{ATTENTION_NORM, EMBEDDING, FC1, FC2, FINAL_NORM, Family, MLP_NORM, OUTPUT, PLAIN, PROJECTION, QKV, Said};

pub(super) static MISTRAL: Family = Family {
    model_type: "mistral",
    defaults: r#"{ "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096 }"#,
    only: r#"{ "hidden_act": "silu" }"#,
    fields: &["sliding_window"],
    rules: &[EMBEDDING, ATTENTION_NORM, QKV, PROJECTION, MLP_NORM, FC1, FC2, FINAL_NORM, OUTPUT],
    run_config: &[("window_size", Said::Window("sliding_window"))],
    ..PLAIN
};

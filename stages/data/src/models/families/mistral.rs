//! Mistral 7B, Nemo, Small 3 (text): Llama's tensors, with a sliding window in the first of them.

use super::{
    ATTENTION_NORM, DENSE_STATES, EMBEDDING, FC1, FC2, FINAL_NORM, Family, INTERPOLATED, MLP_NORM, OUTPUT, PROJECTION,
    QKV, Said,
};

pub(super) static MISTRAL: Family = Family {
    model_type: "mistral",
    defaults: r#"{ "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096 }"#,
    only: r#"{ "hidden_act": "silu" }"#,
    fields: &["sliding_window"],
    ignored: &[],
    experts: None,
    rules: &[EMBEDDING, ATTENTION_NORM, QKV, PROJECTION, MLP_NORM, FC1, FC2, FINAL_NORM, OUTPUT],
    states: DENSE_STATES,
    run_config: &[("window_size", Said::Window("sliding_window"))],
    full_every: 0,
    linear: INTERPOLATED,
};

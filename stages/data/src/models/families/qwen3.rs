//! Qwen 3, dense: Llama's tensors, and norms of the query and key heads.

use super::{
    ATTENTION_NORM, EMBEDDING, FC1, FC2, FINAL_NORM, Family, KEY_NORM, MLP_NORM, OUTPUT, PLAIN, PROJECTION, QKV,
    QUERY_NORM, Said,
};

pub(super) static QWEN3: Family = Family {
    model_type: "qwen3",
    defaults: r#"{ "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768 }"#,
    only: r#"{ "hidden_act": "silu", "attention_bias": false, "use_sliding_window": false,
        "layer_types": "full_attention" }"#,
    fields: &["max_window_layers", "sliding_window"],
    rules: &[EMBEDDING, ATTENTION_NORM, QKV, QUERY_NORM, KEY_NORM, PROJECTION, MLP_NORM, FC1, FC2, FINAL_NORM, OUTPUT],
    run_config: &[("qk_layernorm", Said::Is("true"))],
    ..PLAIN
};

//! Qwen 2 and 2.5: Llama's tensors, and a bias on query, key and value.

use super::{
    ATTENTION_NORM, EMBEDDING, FC1, FC2, FINAL_NORM, Family, Join, KeyValue, MLP_NORM, OUTPUT, PLAIN, PROJECTION, QKV,
    Query, Said, Source, layered,
};

pub(super) static QWEN2: Family = Family {
    model_type: "qwen2",
    defaults: r#"{ "num_key_value_heads": 32, "max_position_embeddings": 32768 }"#,
    only: r#"{ "hidden_act": "silu", "use_mrope": false, "use_sliding_window": false, "layer_types": "full_attention" }"#,
    fields: &["max_window_layers", "sliding_window"],
    rules: &[
        EMBEDDING,
        ATTENTION_NORM,
        QKV,
        layered(
            "decoder.layers.self_attention.linear_qkv.bias",
            Join::Qkv([
                Source("model.layers.{}.self_attn.q_proj.bias", &[Query]),
                Source("model.layers.{}.self_attn.k_proj.bias", &[KeyValue]),
                Source("model.layers.{}.self_attn.v_proj.bias", &[KeyValue]),
            ]),
        ),
        PROJECTION,
        MLP_NORM,
        FC1,
        FC2,
        FINAL_NORM,
        OUTPUT,
    ],
    run_config: &[("add_qkv_bias", Said::Is("true"))],
    ..PLAIN
};

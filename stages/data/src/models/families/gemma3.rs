//! Gemma 3, its text models: Gemma 2's norms, norms of the query and key heads, a window in five of six layers and another RoPE
//! in these. What Megatron computes is the business of its `Gemma3ModelProvider`.

use super::{
    AFTER_ATTENTION_NORM, AFTER_MLP_NORM, ATTENTION_NORM, BEFORE_MLP_NORM, EMBEDDING, FC1, FC2, FINAL_NORM, Family,
    KEY_NORM, PLAIN, PROJECTION, QKV, QUERY_NORM, Said,
};

pub(super) static GEMMA3: Family = Family {
    model_type: "gemma3_text",
    defaults: r#"{ "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072, "tie_word_embeddings": true,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0 }"#,
    only: r#"{ "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false,
        "attn_logit_softcapping": null, "final_logit_softcapping": null, "tie_word_embeddings": true,
        "use_bidirectional_attention": false }"#,
    fields: &[
        "_sliding_window_pattern",
        "cache_implementation",
        "layer_types",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window",
        "sliding_window_pattern",
    ],
    rules: &[
        EMBEDDING,
        ATTENTION_NORM,
        QKV,
        QUERY_NORM,
        KEY_NORM,
        PROJECTION,
        AFTER_ATTENTION_NORM,
        BEFORE_MLP_NORM,
        FC1,
        FC2,
        AFTER_MLP_NORM,
        FINAL_NORM,
    ],
    run_config: &[
        ("_target_", Said::Is("megatron.bridge.models.gemma.gemma3_provider.Gemma3ModelProvider")),
        ("activation_func", Said::Is("megatron.core.activations.fast_gelu")),
        ("layernorm_zero_centered_gamma", Said::Is("true")),
        ("rotary_base", Said::List(["rope_local_base_freq", "rope_theta"])),
        ("softmax_scale", Said::InverseRoot("query_pre_attn_scalar")),
        ("window_size", Said::Field("sliding_window")),
    ],
    full_every: 6,
    linear: ("rope_scaling_factor", Some("1.0")),
    ..PLAIN
};

//! Gemma 2: norms around attention and feed-forward, GeGLU, capped logits, a window in every other layer. What Megatron
//! computes is the business of its `Gemma2ModelProvider`; norms are kept as they are, since that adds the 1 to them, too.

use super::{
    AFTER_ATTENTION_NORM, AFTER_MLP_NORM, ATTENTION_NORM, BEFORE_MLP_NORM, EMBEDDING, FC1, FC2, FINAL_NORM, Family,
    PLAIN, PROJECTION, QKV, Said,
};

pub(super) static GEMMA2: Family = Family {
    model_type: "gemma2",
    defaults: r#"{ "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192, "tie_word_embeddings": true,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0 }"#,
    only: r#"{ "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "attention_bias": false,
        "tie_word_embeddings": true, "use_bidirectional_attention": false }"#,
    fields: &[
        "_sliding_window_pattern",
        "attn_logit_softcapping",
        "cache_implementation",
        "final_logit_softcapping",
        "layer_types",
        "query_pre_attn_scalar",
        "sliding_window",
        "sliding_window_pattern",
        "sliding_window_size",
    ],
    rules: &[
        EMBEDDING,
        ATTENTION_NORM,
        QKV,
        PROJECTION,
        AFTER_ATTENTION_NORM,
        BEFORE_MLP_NORM,
        FC1,
        FC2,
        AFTER_MLP_NORM,
        FINAL_NORM,
    ],
    run_config: &[
        ("_target_", Said::Is("megatron.bridge.models.gemma.gemma2_provider.Gemma2ModelProvider")),
        ("activation_func", Said::Is("megatron.core.activations.fast_gelu")),
        ("attn_logit_softcapping", Said::Field("attn_logit_softcapping")),
        ("final_logit_softcapping", Said::Field("final_logit_softcapping")),
        ("layernorm_zero_centered_gamma", Said::Is("true")),
        ("query_pre_attn_scalar", Said::Field("query_pre_attn_scalar")),
        ("window_size", Said::Window("sliding_window")),
    ],
    full_every: 2,
    ..PLAIN
};

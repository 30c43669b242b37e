//! Llama 1 to 3.3: RMSNorm, RoPE, grouped-query attention, SwiGLU; tied (3.2 1B and 3B) or not.

use super::{ATTENTION_NORM, EMBEDDING, FC1, FC2, FINAL_NORM, Family, MLP_NORM, OUTPUT, PLAIN, PROJECTION, QKV};

pub(super) static LLAMA: Family = Family {
    model_type: "llama",
    only: r#"{ "hidden_act": "silu", "attention_bias": false, "mlp_bias": false }"#,
    fields: &["pretraining_tp"],
    ignored: &["model.layers.{}.self_attn.rotary_emb.inv_freq"],
    rules: &[EMBEDDING, ATTENTION_NORM, QKV, PROJECTION, MLP_NORM, FC1, FC2, FINAL_NORM, OUTPUT],
    ..PLAIN
};

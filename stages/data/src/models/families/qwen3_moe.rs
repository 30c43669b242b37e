//! Qwen 3 with experts in every layer (30B-A3B, 235B-A22B).

use super::{
    ATTENTION_NORM, EMBEDDING, EXPERTS_NORM, EXPERTS_STATES, ExpertFfn, Experts, FINAL_NORM, Family, Hidden, Join,
    KEY_NORM, OUTPUT, PLAIN, PROJECTION, QKV, QUERY_NORM, Said, Source, layered, of_experts,
};

pub(super) static QWEN3_MOE: Family = Family {
    model_type: "qwen3_moe",
    defaults: r#"{ "num_key_value_heads": 4, "max_position_embeddings": 32768, "num_experts": 128,
        "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": false }"#,
    only: r#"{ "hidden_act": "silu", "attention_bias": false, "use_sliding_window": false, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "norm_topk_prob": true }"#,
    fields: &[
        "max_window_layers",
        "moe_intermediate_size",
        "num_experts",
        "num_experts_per_tok",
        "output_router_logits",
        "router_aux_loss_coef",
        "sliding_window",
    ],
    experts: Some(("num_experts", "moe_intermediate_size")),
    rules: &[
        EMBEDDING,
        ATTENTION_NORM,
        QKV,
        QUERY_NORM,
        KEY_NORM,
        PROJECTION,
        EXPERTS_NORM,
        layered(
            "decoder.layers.mlp.router.weight",
            Join::One(Source("model.layers.{}.mlp.gate.weight", &[Experts, Hidden])),
        ),
        of_experts(
            "decoder.layers.mlp.experts.experts.linear_fc1.weight",
            Join::Stack([
                Source("model.layers.{}.mlp.experts.{e}.gate_proj.weight", &[ExpertFfn, Hidden]),
                Source("model.layers.{}.mlp.experts.{e}.up_proj.weight", &[ExpertFfn, Hidden]),
            ]),
        ),
        of_experts(
            "decoder.layers.mlp.experts.experts.linear_fc2.weight",
            Join::One(Source("model.layers.{}.mlp.experts.{e}.down_proj.weight", &[Hidden, ExpertFfn])),
        ),
        FINAL_NORM,
        OUTPUT,
    ],
    states: EXPERTS_STATES,
    run_config: &[
        ("qk_layernorm", Said::Is("true")),
        ("num_moe_experts", Said::Field("num_experts")),
        ("moe_ffn_hidden_size", Said::Field("moe_intermediate_size")),
        ("moe_router_topk", Said::Field("num_experts_per_tok")),
        ("moe_router_pre_softmax", Said::Is("false")),
        ("moe_grouped_gemm", Said::Is("true")),
        ("moe_router_load_balancing_type", Said::Is("aux_loss")),
    ],
    ..PLAIN
};

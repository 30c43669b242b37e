//! Mixtral: Mistral's attention, and experts in place of the feed-forward layer.

use super::{
    ATTENTION_NORM, EMBEDDING, EXPERTS_NORM, EXPERTS_STATES, ExpertFfn, Experts, FINAL_NORM, Family, Hidden, Join,
    OUTPUT, PLAIN, PROJECTION, QKV, Said, Source, layered, of_experts,
};

pub(super) static MIXTRAL: Family = Family {
    model_type: "mixtral",
    defaults: r#"{ "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0, "num_local_experts": 8, "num_experts_per_tok": 2 }"#,
    only: r#"{ "hidden_act": "silu", "sliding_window": null }"#,
    fields: &[
        "num_local_experts",
        "num_experts_per_tok",
        "output_router_logits",
        "router_aux_loss_coef",
        "router_jitter_noise",
    ],
    experts: Some(("num_local_experts", "intermediate_size")),
    rules: &[
        EMBEDDING,
        ATTENTION_NORM,
        QKV,
        PROJECTION,
        EXPERTS_NORM,
        layered(
            "decoder.layers.mlp.router.weight",
            Join::One(Source("model.layers.{}.block_sparse_moe.gate.weight", &[Experts, Hidden])),
        ),
        of_experts(
            "decoder.layers.mlp.experts.experts.linear_fc1.weight",
            Join::Stack([
                Source("model.layers.{}.block_sparse_moe.experts.{e}.w1.weight", &[ExpertFfn, Hidden]),
                Source("model.layers.{}.block_sparse_moe.experts.{e}.w3.weight", &[ExpertFfn, Hidden]),
            ]),
        ),
        of_experts(
            "decoder.layers.mlp.experts.experts.linear_fc2.weight",
            Join::One(Source("model.layers.{}.block_sparse_moe.experts.{e}.w2.weight", &[Hidden, ExpertFfn])),
        ),
        FINAL_NORM,
        OUTPUT,
    ],
    states: EXPERTS_STATES,
    run_config: &[
        ("num_moe_experts", Said::Field("num_local_experts")),
        ("moe_ffn_hidden_size", Said::Field("intermediate_size")),
        ("moe_router_topk", Said::Field("num_experts_per_tok")),
        ("moe_router_pre_softmax", Said::Is("false")),
        ("moe_grouped_gemm", Said::Is("true")),
    ],
    ..PLAIN
};

//! The tables, and the rules that several of them share.
//!
//! What stands in them is what Megatron-Bridge and Megatron-Core do with a model of the family; see
//! `tests/golden/megatron_families`.

mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod mixtral;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use super::family::{Dim, Family, INTERPOLATED, Join, Per, Rule, Said, Source, State};
use Dim::{ExpertFfn, Experts, Ffn, Head, Hidden, KeyValue, Query, Vocab};

/// The families there are.
pub(super) const FAMILIES: &[&Family] = &[
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mixtral::MIXTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &qwen3_moe::QWEN3_MOE,
];

/// What most of them have in common: a table says what is its own.
const PLAIN: Family = Family {
    model_type: "",
    defaults: "{}",
    only: "{}",
    fields: &[],
    ignored: &[],
    experts: None,
    rules: &[],
    states: DENSE_STATES,
    run_config: &[],
    full_every: 0,
    linear: INTERPOLATED,
};

const fn layered(key: &'static str, join: Join) -> Rule {
    Rule { key, per: Per::Layer, untied_only: false, join }
}

const fn of_experts(key: &'static str, join: Join) -> Rule {
    Rule { key, per: Per::Expert, untied_only: false, join }
}

const EMBEDDING: Rule = Rule {
    key: "embedding.word_embeddings.weight",
    per: Per::Model,
    untied_only: false,
    join: Join::One(Source("model.embed_tokens.weight", &[Vocab, Hidden])),
};
const ATTENTION_NORM: Rule = layered(
    "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    Join::One(Source("model.layers.{}.input_layernorm.weight", &[Hidden])),
);
const QKV: Rule = layered(
    "decoder.layers.self_attention.linear_qkv.weight",
    Join::Qkv([
        Source("model.layers.{}.self_attn.q_proj.weight", &[Query, Hidden]),
        Source("model.layers.{}.self_attn.k_proj.weight", &[KeyValue, Hidden]),
        Source("model.layers.{}.self_attn.v_proj.weight", &[KeyValue, Hidden]),
    ]),
);
/// The norms of query and key heads: one weight for all heads of a layer.
const QUERY_NORM: Rule = layered(
    "decoder.layers.self_attention.q_layernorm.weight",
    Join::One(Source("model.layers.{}.self_attn.q_norm.weight", &[Head])),
);
const KEY_NORM: Rule = layered(
    "decoder.layers.self_attention.k_layernorm.weight",
    Join::One(Source("model.layers.{}.self_attn.k_norm.weight", &[Head])),
);
const PROJECTION: Rule = layered(
    "decoder.layers.self_attention.linear_proj.weight",
    Join::One(Source("model.layers.{}.self_attn.o_proj.weight", &[Hidden, Query])),
);
const MLP_NORM: Rule = layered(
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    Join::One(Source("model.layers.{}.post_attention_layernorm.weight", &[Hidden])),
);
const FC1: Rule = layered(
    "decoder.layers.mlp.linear_fc1.weight",
    Join::Stack([
        Source("model.layers.{}.mlp.gate_proj.weight", &[Ffn, Hidden]),
        Source("model.layers.{}.mlp.up_proj.weight", &[Ffn, Hidden]),
    ]),
);
const FC2: Rule = layered(
    "decoder.layers.mlp.linear_fc2.weight",
    Join::One(Source("model.layers.{}.mlp.down_proj.weight", &[Hidden, Ffn])),
);
/// Gemma has a norm behind attention and behind the feed-forward layer, too; the one before the latter has another name.
const AFTER_ATTENTION_NORM: Rule = layered(
    "decoder.layers.self_attention.linear_proj.post_layernorm.weight",
    Join::One(Source("model.layers.{}.post_attention_layernorm.weight", &[Hidden])),
);
const BEFORE_MLP_NORM: Rule = layered(
    "decoder.layers.mlp.linear_fc1.layer_norm_weight",
    Join::One(Source("model.layers.{}.pre_feedforward_layernorm.weight", &[Hidden])),
);
const AFTER_MLP_NORM: Rule = layered(
    "decoder.layers.mlp.linear_fc2.post_layernorm.weight",
    Join::One(Source("model.layers.{}.post_feedforward_layernorm.weight", &[Hidden])),
);
/// Before experts the norm is a module of its own, where Transformer Engine's layers are used; a model built of
/// Megatron's local layers calls it [`MLP_NORM`], which the reader takes for the same.
const EXPERTS_NORM: Rule = layered(
    "decoder.layers.pre_mlp_layernorm.weight",
    Join::One(Source("model.layers.{}.post_attention_layernorm.weight", &[Hidden])),
);
const FINAL_NORM: Rule = Rule {
    key: "decoder.final_layernorm.weight",
    per: Per::Model,
    untied_only: false,
    join: Join::One(Source("model.norm.weight", &[Hidden])),
};
const OUTPUT: Rule = Rule {
    key: "output_layer.weight",
    per: Per::Model,
    untied_only: true,
    join: Join::One(Source("lm_head.weight", &[Vocab, Hidden])),
};

const ATTENTION_STATES: [State; 2] =
    [State("self_attention.linear_proj", Per::Layer), State("self_attention.linear_qkv", Per::Layer)];
const DENSE_STATES: &[State] = {
    let [projection, qkv] = ATTENTION_STATES;
    &[projection, qkv, State("mlp.linear_fc1", Per::Layer), State("mlp.linear_fc2", Per::Layer)]
};
const EXPERTS_STATES: &[State] = {
    let [projection, qkv] = ATTENTION_STATES;
    &[
        projection,
        qkv,
        State("mlp.experts.experts.linear_fc1", Per::Expert),
        State("mlp.experts.experts.linear_fc2", Per::Expert),
    ]
};

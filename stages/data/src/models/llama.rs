//! Llama 1 to 3.3: RMSNorm, RoPE, grouped-query attention, SwiGLU; tied (3.2 1B and 3B) or not.

use super::{Dim, Family, Join, Rule, Source};
use Dim::{Ffn, Hidden, KeyValue, Query, Vocab};

const fn layered(key: &'static str, join: Join) -> Rule {
    Rule { key, layered: true, untied_only: false, join }
}

pub(super) static LLAMA: Family = Family {
    model_type: "llama",
    fields: &[
        // The geometry, which is checked where it is read.
        "attention_bias",
        "head_dim",
        "hidden_act",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "mlp_bias",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "pretraining_tp",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "vocab_size",
        // Of training, generation and the file itself.
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "initializer_range",
        "max_length",
        "max_sequence_length",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    ],
    ignored: &["model.layers.{}.self_attn.rotary_emb.inv_freq"],
    rules: &[
        Rule {
            key: "embedding.word_embeddings.weight",
            layered: false,
            untied_only: false,
            join: Join::One(Source("model.embed_tokens.weight", &[Vocab, Hidden])),
        },
        layered(
            "decoder.layers.self_attention.linear_qkv.layer_norm_weight",
            Join::One(Source("model.layers.{}.input_layernorm.weight", &[Hidden])),
        ),
        layered(
            "decoder.layers.self_attention.linear_qkv.weight",
            Join::Qkv([
                Source("model.layers.{}.self_attn.q_proj.weight", &[Query, Hidden]),
                Source("model.layers.{}.self_attn.k_proj.weight", &[KeyValue, Hidden]),
                Source("model.layers.{}.self_attn.v_proj.weight", &[KeyValue, Hidden]),
            ]),
        ),
        layered(
            "decoder.layers.self_attention.linear_proj.weight",
            Join::One(Source("model.layers.{}.self_attn.o_proj.weight", &[Hidden, Query])),
        ),
        layered(
            "decoder.layers.mlp.linear_fc1.layer_norm_weight",
            Join::One(Source("model.layers.{}.post_attention_layernorm.weight", &[Hidden])),
        ),
        layered(
            "decoder.layers.mlp.linear_fc1.weight",
            Join::Stack([
                Source("model.layers.{}.mlp.gate_proj.weight", &[Ffn, Hidden]),
                Source("model.layers.{}.mlp.up_proj.weight", &[Ffn, Hidden]),
            ]),
        ),
        layered(
            "decoder.layers.mlp.linear_fc2.weight",
            Join::One(Source("model.layers.{}.mlp.down_proj.weight", &[Hidden, Ffn])),
        ),
        Rule {
            key: "decoder.final_layernorm.weight",
            layered: false,
            untied_only: false,
            join: Join::One(Source("model.norm.weight", &[Hidden])),
        },
        Rule {
            key: "output_layer.weight",
            layered: false,
            untied_only: true,
            join: Join::One(Source("lm_head.weight", &[Vocab, Hidden])),
        },
    ],
};

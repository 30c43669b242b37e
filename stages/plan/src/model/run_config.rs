//! `run_config.yaml`: how Megatron-Bridge describes a model inside of its checkpoint.

use std::{collections::BTreeMap, fmt::Write};

use flow_formats::DType;

use super::ModelConfig;

impl ModelConfig {
    /// The content of `run_config.yaml`: what Megatron-Bridge needs to build the model again and to export it.
    /// Everything that is left out has its default there. `seq_length` is the longest sequence of the training.
    #[must_use]
    pub fn run_config_yaml(&self, dtype: DType, seq_length: usize) -> String {
        self.run_config_with(dtype, seq_length, &[])
    }

    /// The same with the fields that make a model of another family than Llama's; `activation_func` is a function's name.
    #[must_use]
    pub fn run_config_with(&self, dtype: DType, seq_length: usize, more: &[(&str, String)]) -> String {
        let mut fields: BTreeMap<&str, String> = BTreeMap::from([
            ("_target_", "megatron.bridge.models.gpt_provider.GPTModelProvider".into()),
            ("add_bias_linear", "false".into()),
            ("add_qkv_bias", "false".into()),
            ("attention_dropout", "0.0".into()),
            ("bf16", (dtype == DType::Bf16).to_string()),
            ("ffn_hidden_size", self.intermediate_size.to_string()),
            ("fp16", (dtype == DType::F16).to_string()),
            ("gated_linear_unit", "true".into()),
            ("hidden_dropout", "0.0".into()),
            ("hidden_size", self.hidden_size.to_string()),
            ("kv_channels", self.head_dim.to_string()),
            ("layernorm_epsilon", float(self.rms_norm_eps)),
            ("make_vocab_size_divisible_by", "128".into()),
            ("normalization", "RMSNorm".into()),
            ("num_attention_heads", self.num_attention_heads.to_string()),
            ("num_layers", self.num_hidden_layers.to_string()),
            ("num_query_groups", self.num_key_value_heads.to_string()),
            ("position_embedding_type", "rope".into()),
            ("rope_scaling", self.rope_scaling.is_some().to_string()),
            ("rope_scaling_factor", float(self.rope_scaling.as_ref().map_or(8.0, |scaling| scaling.factor))),
            ("rotary_base", float(self.rope_theta)),
            ("rotary_percent", "1.0".into()),
            ("seq_length", seq_length.to_string()),
            ("share_embeddings_and_output_weights", self.tie_word_embeddings.to_string()),
            ("should_pad_vocab", "false".into()),
            ("vocab_size", self.vocab_size.to_string()),
        ]);
        fields.extend(more.iter().map(|(field, value)| (*field, value.clone())));
        let activation = fields.remove("activation_func").unwrap_or_else(|| "torch.nn.functional.silu".to_owned());
        let mut model = String::new();
        for (field, value) in fields {
            // Writing into a String cannot fail.
            let _ = writeln!(model, "  {field}: {value}");
        }
        let torch = dtype.torch();
        format!(
            "_target_: megatron.bridge.training.config.ConfigContainer\nmodel:\n{model}  \
             activation_func:\n    _call_: false\n    _target_: {activation}\n  \
             autocast_dtype:\n    _call_: false\n    _target_: torch.{torch}\n  \
             params_dtype:\n    _call_: false\n    _target_: torch.{torch}\n"
        )
    }
}

/// A float that YAML 1.1 readers take for one: `1e-05` without a point is a string to them.
fn float(value: f64) -> String {
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let digits = if digits.contains('.') { digits.to_owned() } else { format!("{digits}.0") };
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// `a: b` lines of the block under `model:`, two levels deep.
    fn model(yaml: &str) -> BTreeMap<String, String> {
        let block = yaml.split("\nmodel:\n").nth(1).unwrap();
        let mut fields = BTreeMap::new();
        let mut parent = String::new();
        for line in block.lines().take_while(|line| line.starts_with(' ')) {
            if line.trim_start().starts_with('-') {
                continue;
            }
            let (key, value) = line.trim().split_once(':').unwrap();
            match line.len() - line.trim_start().len() {
                2 => {
                    parent = key.to_owned();
                    fields.insert(parent.clone(), value.trim().to_owned());
                }
                _ => {
                    fields.insert(format!("{parent}.{key}"), value.trim().to_owned());
                }
            }
        }
        fields
    }

    #[test]
    fn every_field_is_what_megatron_bridge_writes_for_the_same_model() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/megatron_ckpt/untied_v512");
        let config = ModelConfig::read(&golden.join("hf")).unwrap();
        let theirs = model(&fs::read_to_string(golden.join("megatron_core0.16/iter_0000000/run_config.yaml")).unwrap());
        let ours = model(&config.run_config_yaml(DType::Bf16, config.max_position_embeddings));
        assert!(ours.len() > 26);
        for (field, value) in ours {
            assert_eq!(Some(&value), theirs.get(&field), "{field}");
        }
    }

    #[test]
    fn floats_are_floats_in_yaml() {
        for (value, text) in
            [(1e-5, "1.0e-05"), (500_000.0, "500000.0"), (1e-6, "1.0e-06"), (1e22, "1.0e+22"), (1.5e-7, "1.5e-07")]
        {
            assert_eq!(float(value), text);
        }
    }
}

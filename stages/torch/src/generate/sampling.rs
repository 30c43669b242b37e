//! Which token comes next: the likeliest, or one that is drawn.
//!
//! The penalty and the limits are transformers', in its order. What is drawn hangs on the seed, on how many tokens the row has
//! made, and on nothing else in the batch: to each token that is in comes a noise of its own (Gumbel's: the largest sum is
//! each token as often as it is probable). Logits that another batch or other ranks round otherwise draw another token
//! only where two sums are as near as that.

use anyhow::{Result, ensure};
use flow_plan::Sampling;
use tch::{Kind, Tensor};

/// A row that wants a token.
pub struct Wants<'a> {
    /// How; none is the likeliest.
    pub sampling: Option<&'a Sampling>,
    /// All of it so far.
    pub prompt: &'a [u32],
    /// All that was made so far.
    pub made: &'a [u32],
}

impl Wants<'_> {
    /// How it draws, if it does.
    fn draws(&self) -> Option<&Sampling> {
        self.sampling.filter(|sampling| sampling.temperature > 0.0)
    }

    /// What the noise of this draw is made of.
    fn key(&self, seed: u64) -> i64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&(self.made.len() as u64).to_le_bytes());
        let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
        i64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

/// A token for each row of logits [b, v], fp32, which are used up.
pub fn choose(logits_bv: &Tensor, rows: &[Wants<'_>]) -> Result<Vec<u32>> {
    for (row, wants) in rows.iter().enumerate() {
        penalize(&logits_bv.get(row as i64), wants);
    }
    let (largest_b, ids_b) = logits_bv.max_dim(-1, false);
    let largest = Vec::<f64>::try_from(largest_b.to_kind(Kind::Double))?;
    ensure!(
        largest.iter().all(|logit| logit.is_finite()),
        "the logits are not numbers: the model's weights are damaged, or the precision does not suffice"
    );
    let mut ids = Vec::<i64>::try_from(ids_b)?;
    let drawn: Vec<(i64, &Wants<'_>, &Sampling)> =
        rows.iter().zip(0..).filter_map(|(wants, row)| Some((row, wants, wants.draws()?))).collect();
    if !drawn.is_empty() {
        let device = logits_bv.device();
        let places = Tensor::from_slice(&drawn.iter().map(|(row, ..)| *row).collect::<Vec<_>>()).to_device(device);
        let samplings: Vec<&Sampling> = drawn.iter().map(|(.., sampling)| *sampling).collect();
        let (logits_mk, ids_mk) = limited(&logits_bv.index_select(0, &places), &samplings);
        let keys: Vec<i64> = drawn.iter().map(|(_, wants, sampling)| wants.key(sampling.seed)).collect();
        let keys_m1 = Tensor::from_slice(&keys).to_device(device).unsqueeze(-1);
        let best_m1 = (logits_mk.to_kind(Kind::Double) + gumbel(&keys_m1, &ids_mk)).argmax(-1, true);
        let found = Vec::<i64>::try_from(ids_mk.gather(1, &best_m1, false).squeeze_dim(-1))?;
        drawn.iter().zip(found).for_each(|((row, ..), id)| ids[*row as usize] = id);
    }
    Ok(ids.into_iter().map(|id| id as u32).collect())
}

/// A number for each token of each row, from Gumbel's distribution: the same for the same key and token, wherever it is
/// computed.
fn gumbel(keys_m1: &Tensor, ids_mk: &Tensor) -> Tensor {
    // splitmix64, whose counter is the token: integers wrap.
    let shifted = |x: &Tensor, by: i64| x.bitwise_right_shift_tensor_scalar(by).bitwise_and((1_i64 << (64 - by)) - 1);
    let mut bits = keys_m1 + (ids_mk + 1) * 0x9e37_79b9_7f4a_7c15_u64.cast_signed();
    for (by, times) in [(30, 0xbf58_476d_1ce4_e5b9_u64), (27, 0x94d0_49bb_1331_11eb)] {
        bits = bits.bitwise_xor_tensor(&shifted(&bits, by)) * times.cast_signed();
    }
    let bits = shifted(&bits.bitwise_xor_tensor(&shifted(&bits, 31)), 12);
    // Above 0 and below 1: 52 bits and a half.
    let chance = (bits.to_kind(Kind::Double) + 0.5) / (1_u64 << 52) as f64;
    -(-chance.log()).log()
}

/// Makes what was there already less likely.
fn penalize(logits_v: &Tensor, wants: &Wants<'_>) {
    let Some(penalty) = wants.sampling.map(|sampling| sampling.repetition_penalty).filter(|penalty| *penalty != 1.0)
    else {
        return;
    };
    let seen: Vec<i64> = wants.prompt.iter().chain(wants.made).map(|id| i64::from(*id)).collect();
    let seen = Tensor::from_slice(&seen).to_device(logits_v.device());
    let before = logits_v.index_select(0, &seen);
    let after = (&before * penalty).where_self(&before.lt(0.0), &(&before / penalty));
    let _ = logits_v.shallow_clone().index_copy_(0, &seen, &after);
}

/// Logits after temperature, `top_k` and `top_p`, and the ids that have them, of as many as are in in some row: minus infinity
/// for those that are out.
fn limited(logits_mv: &Tensor, samplings: &[&Sampling]) -> (Tensor, Tensor) {
    let (m, v) = (samplings.len() as i64, logits_mv.size()[1]);
    let device = logits_mv.device();
    let column = |of: &dyn Fn(&Sampling) -> f64| {
        let values: Vec<f64> = samplings.iter().map(|sampling| of(sampling)).collect();
        Tensor::from_slice(&values).to_device(device).view([m, 1])
    };
    let logits_mv = logits_mv / column(&|sampling| sampling.temperature).to_kind(Kind::Float);
    if samplings.iter().all(|sampling| sampling.top_k == 0 && sampling.top_p >= 1.0) {
        return (logits_mv, Tensor::arange(v, (Kind::Int64, device)).expand([m, v], false));
    }
    let (sorted_mv, ids_mv) = logits_mv.sort_stable(true, -1, false);
    // The least likely that is still in; equals of it are in too.
    let k_m1 = column(&|sampling| if sampling.top_k == 0 { v as f64 } else { sampling.top_k.min(v as usize) as f64 });
    let least_m1 = sorted_mv.gather(1, &(-(k_m1 - v as f64)).to_kind(Kind::Int64), false);
    let out = f64::NEG_INFINITY;
    let sorted_mv = sorted_mv.masked_fill(&sorted_mv.lt_tensor(&least_m1), out);
    let tail_mv = sorted_mv.softmax(-1, Kind::Float).cumsum(-1, Kind::Float);
    let rest_m1 = column(&|sampling| 1.0 - sampling.top_p).to_kind(Kind::Float);
    let beyond_mv = tail_mv.le_tensor(&rest_m1).logical_and(&column(&|sampling| sampling.top_p).lt(1.0));
    // The likeliest is always in.
    let _ = beyond_mv.narrow(1, v - 1, 1).fill_(0);
    let sorted_mv = sorted_mv.masked_fill(&beyond_mv, out);
    let k = sorted_mv.gt(out).sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64).max().int64_value(&[]);
    (sorted_mv.narrow(1, v - k, k), ids_mv.narrow(1, v - k, k))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::Value;
    use tch::Device;

    use super::*;
    use crate::opened::Opened;

    /// Probabilities of transformers' processors, one setting a row and all in one batch.
    #[test]
    fn probabilities_are_those_of_transformers() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let reference: Value =
            serde_json::from_slice(&fs::read(golden.join("generate/reference.json")).unwrap()).unwrap();
        for name in ["untied", "tied"] {
            let model = Opened::alone(&golden.join("training").join(name), Kind::Float, Device::Cpu, 64).unwrap().model;
            let cases = reference[name]["distributions"].as_array().unwrap();
            let prompts: Vec<Vec<u32>> =
                cases.iter().map(|case| serde_json::from_value(case["prompt"].clone()).unwrap()).collect();
            let samplings: Vec<Sampling> =
                cases.iter().map(|case| serde_json::from_value(case["sampling"].clone()).unwrap()).collect();
            let mut cache = model.cache(cases.len());
            let logits = model.begin(&mut cache, &prompts.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
            for (row, (prompt, sampling)) in prompts.iter().zip(&samplings).enumerate() {
                penalize(&logits.get(row as i64), &Wants { sampling: Some(sampling), prompt, made: &[] });
            }
            let (limited, ids) = limited(&logits, &samplings.iter().collect::<Vec<_>>());
            let probabilities = limited.softmax(-1, Kind::Float);
            for (row, case) in cases.iter().enumerate() {
                let ids = Vec::<i64>::try_from(ids.get(row as i64)).unwrap();
                let ours = Vec::<f64>::try_from(probabilities.get(row as i64).to_kind(Kind::Double)).unwrap();
                let known = case["probabilities"].as_object().unwrap();
                assert_eq!(ours.iter().filter(|ours| **ours > 0.0).count(), known.len(), "of {}", case["sampling"]);
                for (id, ours) in ids.into_iter().zip(ours) {
                    let theirs = case["probabilities"][id.to_string()].as_f64();
                    assert_eq!(ours > 0.0, theirs.is_some(), "{} of {}", id, case["sampling"]);
                    assert!((ours - theirs.unwrap_or(0.0)).abs() < 1e-5, "{id}: {ours} {theirs:?}");
                }
            }
        }
    }

    /// What is drawn is as often as it is probable, is the same again, and hangs on nothing else in the batch.
    #[test]
    fn tokens_are_drawn_as_they_are_probable() {
        let probabilities = [0.05, 0.5, 0.0, 0.15, 0.3];
        let draws = 20_000;
        let logits = Tensor::from_slice(&probabilities.map(|p: f32| p.ln())).repeat([draws, 1]);
        let samplings: Vec<Sampling> = (0..draws as u64).map(|seed| Sampling { seed, ..Sampling::default() }).collect();
        let rows: Vec<Wants<'_>> =
            samplings.iter().map(|sampling| Wants { sampling: Some(sampling), prompt: &[], made: &[] }).collect();
        let all = choose(&logits, &rows).unwrap();
        for (id, probability) in probabilities.into_iter().enumerate() {
            let share = all.iter().filter(|drawn| **drawn as usize == id).count() as f64 / draws as f64;
            // Four standard deviations of the widest.
            assert!((share - f64::from(probability)).abs() < 4.0 * 0.5 / (draws as f64).sqrt(), "{id}: {share}");
        }
        for at in [0, 77, 19_999] {
            assert_eq!(choose(&logits.narrow(0, at, 1), &rows[at as usize..=at as usize]).unwrap(), [all[at as usize]]);
        }
        let another = Wants { sampling: Some(&samplings[0]), prompt: &[], made: &[0; 3] };
        let later: Vec<u32> = (0..50)
            .map(|n| Wants { made: &[0; 50][..n], ..another })
            .map(|wants| choose(&logits.narrow(0, 0, 1), &[wants]).unwrap()[0])
            .collect();
        assert!(later.iter().any(|id| *id != later[0]), "every token is drawn anew");
        // Half a float's precision makes no other text of it: where two tokens are as near is not seen in so many.
        let rounded = &logits * (1.0 + 1e-7);
        assert_eq!(choose(&rounded, &rows).unwrap(), all);
    }

    /// The noise is the same on every device, so that its bits are written down: of Python's integers and `math.log`.
    #[test]
    fn noise_is_of_the_key_and_the_token_alone() {
        let keys = Tensor::from_slice(&[0_i64, -7]).unsqueeze(-1);
        let ids = Tensor::from_slice(&[0_i64, 5, 151_935, 0, 5, 151_935]).view([2, 3]);
        let noise = Vec::<f64>::try_from(gumbel(&keys, &ids).view([-1])).unwrap();
        let expected = [
            2.0868436769674386,
            -0.11046690067357538,
            3.830487841807854,
            0.14854839262418246,
            1.5449284189736132,
            2.9695986730835893,
        ];
        for (ours, expected) in noise.into_iter().zip(expected) {
            assert!((ours - expected).abs() < 1e-12, "{ours} {expected}");
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        let logits = Tensor::from_slice(&[0.0f32, f32::NAN]).unsqueeze(0);
        let wants = Wants { sampling: None, prompt: &[], made: &[] };
        assert!(choose(&logits, &[wants]).unwrap_err().to_string().contains("not numbers"));
    }
}

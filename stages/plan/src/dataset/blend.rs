//! [`Blend`]: Megatron's `BlendedDataset`, which draws from several sources in proportion to weights.

use anyhow::{Context as _, Result, ensure};

use super::{index::GptDataset, splits::normalize};

/// Samples drawn from several sources.
pub struct Blend {
    pub(super) members: Vec<GptDataset>,
    /// Which member sample `i` comes from.
    pub(super) dataset_index: Vec<u16>,
    /// Which of that member's samples it is.
    pub(super) dataset_sample_index: Vec<u32>,
}

impl Blend {
    /// `size` samples: each from the member that lags furthest behind its weight, the first of several that lag the
    /// same.
    ///
    /// # Errors
    /// A member has fewer samples than are drawn from it.
    pub fn build(members: Vec<GptDataset>, weights: &[f64], size: u64) -> Result<Self> {
        assert_eq!(members.len(), weights.len(), "a weight for each member");
        let weights = normalize(weights);
        let (dataset_index, dataset_sample_index, drawn) = draw(&weights, size)?;
        for (i, (member, drawn)) in members.iter().zip(drawn).enumerate() {
            let len = member.len();
            ensure!(drawn <= len, "source {i} of the blend has {len} samples and {drawn} would be drawn from it");
        }
        Ok(Self { members, dataset_index, dataset_sample_index })
    }

    /// How many samples there are.
    pub fn len(&self) -> u64 {
        self.dataset_index.len() as u64
    }

    /// Appends the `seq_length + 1` tokens of sample `i` to `out`.
    pub fn read(&self, i: u64, out: &mut Vec<i64>) -> Result<()> {
        let at = usize::try_from(i).ok().filter(|i| *i < self.dataset_index.len());
        let at = at.with_context(|| format!("there is no sample {i}: there are {}", self.len()))?;
        self.members[usize::from(self.dataset_index[at])].read(self.dataset_sample_index[at].into(), out)
    }
}

/// Member of each sample, number within the member, samples drawn from each.
fn draw(weights: &[f64], size: u64) -> Result<(Vec<u16>, Vec<u32>, Vec<u64>)> {
    ensure!(weights.len() < 32_767, "a blend of {} sources: at most 32766 are possible", weights.len());
    ensure!(size < u64::from(u32::MAX), "{size} samples are more than can be numbered");
    let mut drawn = vec![0_u64; weights.len()];
    let (mut members, mut numbers) = (Vec::with_capacity(size as usize), Vec::with_capacity(size as usize));
    for i in 0..size {
        let target = (i as f64).max(1.0);
        let lag = |member: usize| weights[member] * target - drawn[member] as f64;
        let furthest = (1..weights.len()).fold(0, |best, member| if lag(member) > lag(best) { member } else { best });
        members.push(furthest as u16);
        numbers.push(drawn[furthest] as u32);
        drawn[furthest] += 1;
    }
    Ok((members, numbers, drawn))
}

/// How many samples of a member are planned, of `size` in all: the part of each member is rounded up.
pub fn planned(size: u64, weight: f64) -> u64 {
    (size as f64 * weight).ceil() as u64
}

/// How many samples of a member are made ready: half a percent more than planned, since drawing is not that even.
pub fn ready(size: u64, weight: f64) -> u64 {
    (planned(size, weight) as f64 * (1.0 + 0.005)).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_of_a_blend_keeps_to_the_weights() {
        let weights = normalize(&[3.0, 1.0, 0.5, 2.0]);
        let (members, numbers, drawn) = draw(&weights, 1000).unwrap();
        let mut seen = [0_u64; 4];
        for (i, (member, number)) in members.iter().zip(&numbers).enumerate() {
            let member = usize::from(*member);
            assert_eq!(u64::from(*number), seen[member], "each member is read in order");
            seen[member] += 1;
            for (count, weight) in seen.iter().zip(&weights) {
                assert!((*count as f64 - weight * (i + 1) as f64).abs() < 2.0, "sample {i}");
            }
        }
        assert_eq!(drawn, seen);
        assert_eq!(&members[..4], [0, 3, 1, 0]);
    }
}

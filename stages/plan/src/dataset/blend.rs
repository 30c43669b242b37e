//! [`Blend`]: Megatron's `BlendedDataset`, which draws from several sources in proportion to weights.

use anyhow::{Context as _, Result, ensure};

use super::{
    index::GptDataset,
    numbers::{Numbers, Store},
    splits::normalize,
};

/// Samples drawn from several sources.
pub struct Blend {
    pub(super) members: Vec<GptDataset>,
    /// Of each sample the member that it comes from, and which of that member's samples it is.
    pub(super) index: Numbers,
}

impl Blend {
    /// `size` samples: each from the member that lags furthest behind its weight, the first of several that lag the
    /// same.
    ///
    /// # Errors
    /// A member has fewer samples than are drawn from it.
    pub fn build(members: Vec<GptDataset>, weights: &[f64], size: u64, store: &Store) -> Result<Self> {
        assert_eq!(members.len(), weights.len(), "a weight for each member");
        let weights = normalize(weights);
        ensure!(weights.len() < 32_767, "a blend of {} sources: at most 32766 are possible", weights.len());
        ensure!(size < u64::from(u32::MAX), "{size} samples are more than can be numbered");
        // What is drawn follows from the weights alone; whether there is as much, from the members.
        let mut digest = blake3::Hasher::new();
        weights.iter().zip(&members).for_each(|(weight, member)| {
            digest.update(&weight.to_bits().to_le_bytes()).update(&member.len().to_le_bytes());
        });
        let name = format!("blend-{}-{size}", &digest.finalize().to_hex()[..32]);
        let index = store.numbers(&name, 2 * size as usize, |numbers| {
            let drawn = draw(&weights, numbers.as_chunks_mut().0);
            for (i, (member, drawn)) in members.iter().zip(drawn).enumerate() {
                let len = member.len();
                ensure!(drawn <= len, "source {i} of the blend has {len} samples and {drawn} would be drawn from it");
            }
            Ok(())
        })?;
        Ok(Self { members, index })
    }

    /// How many samples there are.
    pub fn len(&self) -> u64 {
        self.index.len() as u64 / 2
    }

    /// Appends the `seq_length + 1` tokens of sample `i` to `out`.
    pub fn read(&self, i: u64, out: &mut Vec<i64>) -> Result<()> {
        let at = usize::try_from(i).ok().and_then(|i| self.index.as_chunks().0.get(i));
        let [member, sample] = *at.with_context(|| format!("there is no sample {i}: there are {}", self.len()))?;
        self.members[member as usize].read(sample.into(), out)
    }
}

/// Fills in the member of each sample and the number within the member; gives how many are drawn from each.
fn draw(weights: &[f64], samples: &mut [[u32; 2]]) -> Vec<u64> {
    let mut drawn = vec![0_u64; weights.len()];
    for (i, sample) in samples.iter_mut().enumerate() {
        let target = (i as f64).max(1.0);
        let lag = |member: usize| weights[member] * target - drawn[member] as f64;
        let furthest = (1..weights.len()).fold(0, |best, member| if lag(member) > lag(best) { member } else { best });
        *sample = [furthest as u32, drawn[furthest] as u32];
        drawn[furthest] += 1;
    }
    drawn
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
        let mut samples = vec![[0; 2]; 1000];
        let drawn = draw(&weights, &mut samples);
        let mut seen = [0_u64; 4];
        for (i, [member, number]) in samples.iter().enumerate() {
            let member = *member as usize;
            assert_eq!(u64::from(*number), seen[member], "each member is read in order");
            seen[member] += 1;
            for (count, weight) in seen.iter().zip(&weights) {
                assert!((*count as f64 - weight * (i + 1) as f64).abs() < 2.0, "sample {i}");
            }
        }
        assert_eq!(drawn, seen);
        assert_eq!([0, 1, 2, 3].map(|i: usize| samples[i][0]), [0, 3, 1, 0]);
    }
}

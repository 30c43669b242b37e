//! [`GptDataset`]: Megatron's class of that name, the samples of one source: documents shuffled, joined end to end,
//! cut in pieces of `seq_length` tokens and one more, the pieces shuffled.

use std::{ops::Range, path::Path, sync::Arc};

use anyhow::{Context as _, Result, ensure};

use flow_formats::indexed::IndexedDataset;

use super::{
    numbers::{Numbers, Store},
    random::RandomState,
};

/// The samples of one source.
pub struct GptDataset {
    tokens: Arc<IndexedDataset>,
    seq_length: usize,
    epochs: u64,
    /// The three indices, behind each other.
    numbers: Numbers,
    /// How long the first of them is.
    documents: usize,
    /// How many samples there are.
    samples: usize,
}

impl GptDataset {
    /// The samples of the sequences `range`: as many epochs as `samples` need, or one.
    ///
    /// # Errors
    /// There are no tokens, or more than can be numbered. The caller knows the file and adds its name.
    pub fn build(
        tokens: Arc<IndexedDataset>,
        prefix: &Path,
        store: &Store,
        range: Range<usize>,
        samples: Option<u64>,
        seq_length: usize,
        seed: u32,
    ) -> Result<Self> {
        let length = seq_length as u64;
        let per_epoch = range.clone().try_fold(0, |sum, i| anyhow::Ok(sum + tokens.length(i)? as u64))?;
        // A sample is `length` tokens to read and one more to predict: the last token of one is the first of the next.
        let few = || format!("{per_epoch} tokens in {} sequences are not one sample of {length} + 1", range.len());
        ensure!(per_epoch > 1, few());
        let epochs = samples.map_or(1, |samples| (samples * length + 1).div_ceil(per_epoch).max(1));
        let separate = separate_final_epoch(epochs, per_epoch, samples.unwrap_or(0), length);
        let total = (epochs * per_epoch - 1) / length;
        ensure!(total > 0, few());
        let documents = range.len() as u64 * epochs;
        ensure!(
            documents < u64::from(u32::MAX) && total < u64::from(u32::MAX) - 1,
            "{documents} documents or {total} samples over {epochs} epochs are more than can be numbered"
        );

        let (documents, samples) = (documents as usize, total as usize);
        let first = if separate { ((epochs - 1) * per_epoch - 1) / length } else { total } as usize;
        let make = |numbers: &mut [u32]| {
            let (document_index, rest) = numbers.split_at_mut(documents);
            let (sample_index, shuffle_index) = rest.split_at_mut(2 * (samples + 1));
            let mut random = RandomState::new(seed);
            for epoch in document_index.chunks_mut(range.len()) {
                epoch.iter_mut().zip(range.clone()).for_each(|(document, i)| *document = i as u32);
            }
            // The last epoch by itself, if it is separate.
            let together = if separate { documents - range.len() } else { documents };
            random.shuffle(&mut document_index[..together]);
            random.shuffle(&mut document_index[together..]);
            cut(&tokens, document_index, sample_index.as_chunks_mut().0, seq_length)?;
            shuffle_index.iter_mut().zip(0..).for_each(|(sample, i)| *sample = i);
            random.shuffle(&mut shuffle_index[..first]);
            random.shuffle(&mut shuffle_index[first..]);
            Ok(())
        };
        let content = store.digest([prefix])?.map_or_else(String::new, |digest| digest.to_hex()[..32].to_owned());
        let name = format!("gpt-{content}-{}-{}-{epochs}-{separate}-{length}-{seed}", range.start, range.end);
        let numbers = store.numbers(&name, documents + 2 * (samples + 1) + samples, make)?;
        Ok(Self { tokens, seq_length, epochs, numbers, documents, samples })
    }

    /// Sequence numbers in the order in which they are joined.
    pub fn document_index(&self) -> &[u32] {
        &self.numbers[..self.documents]
    }

    /// Where each sample begins: position in the document index, offset in that sequence. One more than samples.
    pub fn sample_index(&self) -> &[[u32; 2]] {
        self.numbers[self.documents..][..2 * (self.samples + 1)].as_chunks().0
    }

    /// The order of the samples.
    pub fn shuffle_index(&self) -> &[u32] {
        &self.numbers[self.documents + 2 * (self.samples + 1)..]
    }

    /// All samples of all epochs: at least as many as were asked for.
    pub fn len(&self) -> u64 {
        self.samples as u64
    }

    /// How often each document is read.
    pub fn epochs(&self) -> u64 {
        self.epochs
    }

    /// Appends the `seq_length + 1` tokens of sample `i` to `out`.
    pub fn read(&self, i: u64, out: &mut Vec<i64>) -> Result<()> {
        let at = usize::try_from(i).ok().and_then(|i| self.shuffle_index().get(i)).copied();
        let at = at.with_context(|| format!("there is no sample {i}: there are {}", self.len()))? as usize;
        let [[first, from], [last, to]] =
            [self.sample_index()[at], self.sample_index()[at + 1]].map(|p| p.map(|x| x as usize));
        let before = out.len();
        for position in first..=last {
            let document = self.document_index()[position] as usize;
            let begin = if position == first { from } else { 0 };
            let end = if position == last { to + 1 } else { usize::MAX };
            self.tokens.sequence(document)?.read(begin..end, out);
        }
        ensure!(out.len() - before == self.seq_length + 1, "sample {i}: the data changed since it was indexed");
        Ok(())
    }
}

/// Whether the last epoch is shuffled by itself: when less than 80% of it is needed, so that the documents that are
/// read once more than the others come last.
fn separate_final_epoch(epochs: u64, per_epoch: u64, samples: u64, length: u64) -> bool {
    if epochs == 1 {
        return false;
    }
    let sans = ((epochs - 1) * per_epoch - 1) / length;
    let whole = (per_epoch - 1) / length;
    samples.saturating_sub(sans) < (0.80 * whole as f64) as u64
}

/// The beginnings of samples, and the end of the last.
fn cut(tokens: &IndexedDataset, document_index: &[u32], starts: &mut [[u32; 2]], seq_length: usize) -> Result<()> {
    let (mut position, mut offset) = (0_usize, 0_usize);
    for start in starts.iter_mut().skip(1) {
        // How many tokens further the next sample begins; the one on which this one ends is read again there.
        let mut ahead = seq_length;
        loop {
            let document = *document_index.get(position).context("the lengths of the sequences changed")?;
            let left = tokens.length(document as usize)? - offset;
            if ahead < left {
                offset += ahead;
                break;
            }
            ahead -= left;
            position += 1;
            offset = 0;
        }
        *start = [position as u32, offset as u32];
    }
    Ok(())
}

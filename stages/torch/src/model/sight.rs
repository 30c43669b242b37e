//! What ends of documents change in a micro batch: where positions count from, who sees whom, and what is learned.

use flow_plan::Documents;
use tch::{Device, Kind, Tensor};

use super::{context::ContextParallel, rope::Rope};

/// A micro batch through the layers, where that is not the same for all: by default, positions count from the beginning of
/// the sequence, and every token sees all before it.
#[derive(Debug, Default)]
pub struct Sight {
    /// The rotations of this rank's positions of each sequence.
    pub(super) rope: Option<Rope>,
    pub(super) spans: Option<Spans>,
    /// 1 where what follows a token of this rank is learned, else 0: [b, s], fp32.
    pub learned: Option<Tensor>,
}

/// Who sees whom.
#[derive(Debug)]
pub enum Spans {
    /// For a kernel that takes pieces of sequences: where each begins in the tokens of the batch, and the end, int32; and
    /// the length of the longest.
    Pieces(Tensor, i64),
    /// For each of this rank's chunks of queries, which keys up to the chunk's end it sees: [b, 1, queries, keys], bool.
    Masks(Vec<Tensor>),
}

impl Sight {
    /// That of `rows`, whole sequences. `table` are the rotations of all positions of a sequence, for a model of the type
    /// `kind`.
    pub(super) fn new(
        documents: &Documents,
        rows: &[&[i64]],
        table: &Rope,
        cp: &ContextParallel,
        kind: Kind,
        device: Device,
    ) -> Self {
        let (b, length) = (rows.len() as i64, rows.first().map_or(0, |row| row.len() as i64));
        let part = |x_bs: Tensor| cp.part(&x_bs.view([b, length]), 1).to_device(device);
        let all = |of: fn(&Documents, &[i64]) -> Vec<i64>| -> Tensor {
            Tensor::from_slice(&rows.iter().flat_map(|row| of(documents, row)).collect::<Vec<_>>())
        };
        let weights = || rows.iter().flat_map(|row| documents.weights(row)).collect::<Vec<_>>();
        let spans = || {
            if cp.group.size() == 1 && device.is_cuda() && kind == Kind::BFloat16 {
                return pieces(rows.iter().flat_map(|row| documents.lengths(row)), device);
            }
            let numbers_bs = all(Documents::numbers).view([b, length]).to_device(device);
            Spans::Masks(cp.seen().into_iter().map(|at| mask(&numbers_bs, cp.chunk(length), at)).collect())
        };
        Self {
            rope: documents.positions.then(|| table.at(&part(all(Documents::places)))),
            spans: documents.attention.then(spans),
            learned: documents.loss.then(|| part(Tensor::from_slice(&weights()))),
        }
    }
}

fn pieces(lengths: impl Iterator<Item = usize>, device: Device) -> Spans {
    let (mut begins, mut end, mut longest) = (vec![0], 0, 0);
    for length in lengths {
        end += length as i32;
        begins.push(end);
        longest = longest.max(length as i64);
    }
    Spans::Pieces(Tensor::from_slice(&begins).to_device(device), longest)
}

/// What the queries of the chunk `at` see of the keys up to its end.
fn mask(numbers_bs: &Tensor, chunk: i64, at: i64) -> Tensor {
    let keys = (at + 1) * chunk;
    let queries_bq1 = numbers_bs.narrow(1, at * chunk, chunk).unsqueeze(-1);
    let keys_b1k = numbers_bs.narrow(1, 0, keys).unsqueeze(1);
    queries_bq1.eq_tensor(&keys_b1k).tril(keys - chunk).unsqueeze(1)
}

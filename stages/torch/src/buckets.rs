//! How the ranks that share the batch sum their gradients: bucket by bucket while the backward pass goes on, each rank
//! answering for an equal part of every bucket.

use std::ops::Range;

use anyhow::Result;
use flow_dist::{Group, Pending};
use tch::{Kind, Tensor, no_grad};

use crate::model::params::Layout;

/// Elements of a bucket at most: large enough to fill the wires.
const LARGEST: usize = 1 << 25;

/// A model that is smaller has so many buckets.
const FEWEST: usize = 8;

/// Elements that a norm looks at in one go: bounds its fp64 copy.
const NORM_CHUNK: i64 = 1 << 24;

/// The flat buffers, cut in buckets.
#[derive(Debug)]
pub struct Buckets {
    /// In order; none has matrices and norms.
    ranges: Vec<Range<usize>>,
    matrices: usize,
    total: usize,
    /// Elements that other ranks of the pipeline answer for.
    copy: Option<Range<usize>>,
    /// The first rank of the tensor axis counts what all of it have.
    first_of_tensor: bool,
    /// The ranks that share the batch, and each sequence.
    group: Group,
}

impl Buckets {
    /// Those of a layout that is aligned to the size of `group`.
    pub fn new(layout: &Layout, group: &Group) -> Self {
        let size = (layout.matrices / FEWEST).clamp(1, LARGEST).next_multiple_of(group.size());
        let cut = |whole: Range<usize>| {
            let end = whole.end;
            whole.step_by(size).map(move |at| at..end.min(at + size))
        };
        Self {
            ranges: cut(0..layout.matrices).chain(cut(layout.matrices..layout.total)).collect(),
            matrices: layout.matrices,
            total: layout.total,
            copy: layout.copy.clone(),
            first_of_tensor: layout.share.tensor.0 == 0,
            group: group.clone(),
        }
    }

    /// All there is: matrices, norms.
    pub fn whole(&self) -> Vec<Range<usize>> {
        vec![0..self.matrices, self.matrices..self.total]
    }

    /// This rank's part of every bucket.
    pub fn mine(&self) -> Vec<Range<usize>> {
        let part = |bucket: &Range<usize>| {
            let length = bucket.len() / self.group.size();
            let at = bucket.start + self.group.rank() * length;
            at..at + length
        };
        self.ranges.iter().map(part).collect()
    }

    /// Begins a sum. With `scatter` each rank gets its own parts alone.
    pub fn sum(&self, scatter: bool) -> Sum<'_> {
        let matrices = self.ranges.partition_point(|range| range.start < self.matrices);
        Sum { buckets: self, scatter, left: matrices, pending: Vec::new() }
    }

    /// Gives every rank the others' parts.
    pub fn gather(&self, flat: &Tensor) -> Result<()> {
        let started: Vec<Pending> =
            self.ranges.iter().map(|range| self.group.start_gather(&window(flat, range))).collect::<Result<_>>()?;
        started.into_iter().try_for_each(Pending::wait)
    }

    /// The sum of the squares of this rank's parts of a gradient, fp64. Over all ranks of a run, every element of the
    /// model is counted once.
    pub fn squares(&self, gradient: &Tensor) -> f64 {
        let mut sum = Tensor::zeros([], (Kind::Double, gradient.device()));
        no_grad(|| {
            for range in self.mine().into_iter().flat_map(|range| self.counted(range)) {
                for at in range.clone().step_by(NORM_CHUNK as usize) {
                    let chunk = window(gradient, &(at..range.end.min(at + NORM_CHUNK as usize)));
                    sum += chunk.to_kind(Kind::Double).square().sum(Kind::Double);
                }
            }
        });
        sum.double_value(&[])
    }

    /// What this rank counts of a range: not norms that others count, not the copy of an embedding.
    fn counted(&self, range: Range<usize>) -> Vec<Range<usize>> {
        if range.start >= self.matrices && !self.first_of_tensor {
            return Vec::new();
        }
        let Some(copy) = &self.copy else { return vec![range] };
        let parts = [range.start..range.end.min(copy.start), range.start.max(copy.end)..range.end];
        parts.into_iter().filter(|part| !part.is_empty()).collect()
    }
}

fn window(flat: &Tensor, range: &Range<usize>) -> Tensor {
    flat.narrow(0, range.start as i64, range.len() as i64)
}

/// A sum over the ranks that is under way.
pub struct Sum<'a> {
    buckets: &'a Buckets,
    scatter: bool,
    /// Buckets of matrices that are not begun: the first ones, as backward goes from the last layer to the first.
    left: usize,
    pending: Vec<Pending>,
}

impl Sum<'_> {
    /// The matrices' gradients are complete from element `from` on.
    pub fn ready(&mut self, flat: &Tensor, from: usize) -> Result<()> {
        while let Some(range) = self.left.checked_sub(1).map(|last| &self.buckets.ranges[last])
            && range.start >= from
        {
            self.pending.push(self.buckets.group.start_reduce(&window(flat, range), self.scatter)?);
            self.left -= 1;
        }
        Ok(())
    }

    /// All gradients are complete: sums what is left, and waits.
    pub fn finish(mut self, flat: &Tensor) -> Result<()> {
        self.ready(flat, 0)?;
        for range in self.buckets.ranges.iter().filter(|range| range.start >= self.buckets.matrices) {
            self.pending.push(self.buckets.group.start_reduce(&window(flat, range), self.scatter)?);
        }
        self.pending.into_iter().try_for_each(Pending::wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_embedding_is_not_counted() {
        let buckets = Buckets {
            ranges: vec![0..4, 4..8, 8..10],
            matrices: 8,
            total: 10,
            copy: Some(3..5),
            first_of_tensor: true,
            group: Group::solo(),
        };
        let counted: Vec<_> = buckets.mine().into_iter().flat_map(|range| buckets.counted(range)).collect();
        assert_eq!(counted, [0..3, 5..8, 8..10]);
        assert!(buckets.squares(&Tensor::ones([10], (Kind::Float, tch::Device::Cpu))) == 8.0);
        let second = Buckets { first_of_tensor: false, ..buckets };
        assert!(second.counted(8..10).is_empty());
    }
}

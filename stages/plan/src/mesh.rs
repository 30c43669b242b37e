//! [`Mesh`]: which rank sits where, and who talks to whom. Megatron's order `tp-cp-ep-dp-pp`: ranks that differ in the
//! tensor coordinate are next to each other, then context, data, pipeline.

use std::ops::Range;

use crate::Parallel;

/// An axis of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Ranks that share each layer.
    Tensor,
    /// Ranks that share each sequence.
    Context,
    /// Ranks that share the batch.
    Data,
    /// Ranks that share the layers.
    Pipeline,
}

impl Axis {
    /// All of them, fastest first.
    pub const ALL: [Self; 4] = [Self::Tensor, Self::Context, Self::Data, Self::Pipeline];
}

/// Where a rank sits: its coordinate on each axis, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coords {
    /// On the tensor axis.
    pub tensor: usize,
    /// On the context axis.
    pub context: usize,
    /// On the data axis.
    pub data: usize,
    /// On the pipeline axis.
    pub pipeline: usize,
}

impl Coords {
    fn on(&self, axis: Axis) -> usize {
        match axis {
            Axis::Tensor => self.tensor,
            Axis::Context => self.context,
            Axis::Data => self.data,
            Axis::Pipeline => self.pipeline,
        }
    }
}

/// The ranks of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    parallel: Parallel,
}

impl Mesh {
    /// The mesh of these sizes, all of them at least 1.
    #[must_use]
    pub fn new(parallel: &Parallel) -> Self {
        Self { parallel: parallel.clone() }
    }

    /// The number of ranks.
    #[must_use]
    pub fn world_size(&self) -> usize {
        self.parallel.world_size()
    }

    /// The number of ranks along an axis.
    #[must_use]
    pub fn size(&self, axis: Axis) -> usize {
        match axis {
            Axis::Tensor => self.parallel.tensor,
            Axis::Context => self.parallel.context,
            Axis::Data => self.parallel.data,
            Axis::Pipeline => self.parallel.pipeline,
        }
    }

    /// Where `rank` sits.
    #[must_use]
    pub fn coords(&self, rank: usize) -> Coords {
        let mut rest = rank;
        let [tensor, context, data, pipeline] = Axis::ALL.map(|axis| {
            let size = self.size(axis);
            let coordinate = rest % size;
            rest /= size;
            coordinate
        });
        Coords { tensor, context, data, pipeline }
    }

    /// Who sits there.
    #[must_use]
    pub fn rank(&self, coords: Coords) -> usize {
        Axis::ALL.iter().rev().fold(0, |rank, axis| rank * self.size(*axis) + coords.on(*axis))
    }

    /// Every group over these axes: ranks that differ in them alone. Each is sorted, and they are in the order of
    /// their first ranks. `[Data, Context]` is where gradients are reduced.
    #[must_use]
    pub fn groups(&self, axes: &[Axis]) -> Vec<Vec<usize>> {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for rank in 0..self.world_size() {
            match groups.iter_mut().find(|group| self.same_group(axes, group[0], rank)) {
                Some(group) => group.push(rank),
                None => groups.push(vec![rank]),
            }
        }
        groups
    }

    /// The group over these axes that `rank` is in, sorted.
    #[must_use]
    pub fn group_of(&self, axes: &[Axis], rank: usize) -> Vec<usize> {
        (0..self.world_size()).filter(|other| self.same_group(axes, rank, *other)).collect()
    }

    fn same_group(&self, axes: &[Axis], a: usize, b: usize) -> bool {
        let (a, b) = (self.coords(a), self.coords(b));
        Axis::ALL.iter().all(|axis| axes.contains(axis) || a.on(*axis) == b.on(*axis))
    }

    /// First and last rank of each pipeline group: they hold the two ends of a tied embedding. One rank where there
    /// is no pipeline.
    #[must_use]
    pub fn embedding_groups(&self) -> Vec<Vec<usize>> {
        let ends = |group: Vec<usize>| match group[..] {
            [first, .., last] => vec![first, last],
            _ => group,
        };
        self.groups(&[Axis::Pipeline]).into_iter().map(ends).collect()
    }

    /// The layers, of `layers` in all, that a pipeline rank holds.
    #[must_use]
    pub fn layers(&self, layers: usize, pipeline_rank: usize) -> Range<usize> {
        let each = layers / self.parallel.pipeline;
        pipeline_rank * each..(pipeline_rank + 1) * each
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(tensor: usize, context: usize, data: usize, pipeline: usize) -> Mesh {
        Mesh::new(&Parallel { tensor, context, data, pipeline, sequence: false })
    }

    /// The 16 ranks that the documentation of Megatron's `initialize_model_parallel` takes as its example.
    #[test]
    fn groups_are_megatrons() {
        let mesh = mesh(2, 1, 2, 4);
        let pairs = |step: usize, starts: &[usize]| starts.iter().map(|s| vec![*s, s + step]).collect::<Vec<_>>();
        assert_eq!(mesh.groups(&[Axis::Data]), pairs(2, &[0, 1, 4, 5, 8, 9, 12, 13]));
        assert_eq!(mesh.groups(&[Axis::Tensor]), pairs(1, &[0, 2, 4, 6, 8, 10, 12, 14]));
        let pipeline = mesh.groups(&[Axis::Pipeline]);
        assert_eq!(pipeline, [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]);
        assert_eq!(mesh.embedding_groups(), [[0, 12], [1, 13], [2, 14], [3, 15]]);
        assert_eq!(mesh.groups(&[Axis::Tensor, Axis::Pipeline])[0], [0, 1, 4, 5, 8, 9, 12, 13]);
    }

    #[test]
    fn every_rank_has_one_place_and_one_group_an_axis() {
        for sizes in [(1, 1, 1, 1), (2, 1, 2, 1), (2, 2, 2, 2), (1, 3, 2, 4), (4, 1, 3, 2)] {
            let mesh = mesh(sizes.0, sizes.1, sizes.2, sizes.3);
            for rank in 0..mesh.world_size() {
                assert_eq!(mesh.rank(mesh.coords(rank)), rank);
            }
            for axes in [&[Axis::Tensor][..], &[Axis::Data, Axis::Context], &[Axis::Context], &[], &Axis::ALL] {
                let groups = mesh.groups(axes);
                let mut seen: Vec<usize> = groups.concat();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..mesh.world_size()));
                let size: usize = axes.iter().map(|axis| mesh.size(*axis)).product();
                for group in groups {
                    assert_eq!(group.len(), size);
                    assert!(group.is_sorted());
                    assert!(group.iter().all(|rank| mesh.group_of(axes, *rank) == group));
                }
            }
        }
        assert_eq!(mesh(1, 1, 1, 4).layers(32, 3), 24..32);
    }
}

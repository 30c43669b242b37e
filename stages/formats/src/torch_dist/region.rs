//! Boxes of a tensor: where two overlap, and which runs of bytes that is in each.

/// A box: first index and length on each axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub start: Vec<u64>,
    pub size: Vec<u64>,
}

/// The same elements, seen from two boxes that both hold them: `rows` runs of `run` elements each.
#[derive(Debug)]
pub(super) struct Overlap {
    /// How many elements lie in a row in both boxes.
    pub run: u64,
    /// The outer axes that a run does not span: (length, stride in the first box, stride in the second), in elements.
    outer: Vec<(u64, u64, u64)>,
    /// The first element, in each box.
    first: (u64, u64),
}

/// What two boxes of the same tensor have in common.
pub(super) fn overlap(a: &Region, b: &Region) -> Option<Overlap> {
    let axes = a.start.len();
    let mut low = Vec::with_capacity(axes);
    let mut size = Vec::with_capacity(axes);
    for i in 0..axes {
        let from = a.start[i].max(b.start[i]);
        let to = (a.start[i] + a.size[i]).min(b.start[i] + b.size[i]);
        if from >= to {
            return None;
        }
        low.push(from);
        size.push(to - from);
    }
    let (mut run, mut stride_a, mut stride_b) = (1, 1, 1);
    let (mut first_a, mut first_b) = (0, 0);
    let mut outer = Vec::new();
    let mut whole = true;
    for i in (0..axes).rev() {
        if whole {
            run *= size[i];
        } else if size[i] > 1 {
            outer.push((size[i], stride_a, stride_b));
        }
        // Once an axis is cut in one of the boxes, the axes outside of it no longer continue a run.
        whole = whole && size[i] == a.size[i] && size[i] == b.size[i];
        first_a += (low[i] - a.start[i]) * stride_a;
        first_b += (low[i] - b.start[i]) * stride_b;
        stride_a *= a.size[i];
        stride_b *= b.size[i];
    }
    outer.reverse();
    Some(Overlap { run, outer, first: (first_a, first_b) })
}

impl Overlap {
    /// How many elements there are.
    pub fn elements(&self) -> u64 {
        self.run * self.outer.iter().map(|axis| axis.0).product::<u64>()
    }

    /// The runs: first element in each box.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        let count: u64 = self.outer.iter().map(|axis| axis.0).product();
        (0..count).map(|mut i| {
            let (mut a, mut b) = self.first;
            for &(len, stride_a, stride_b) in self.outer.iter().rev() {
                a += i % len * stride_a;
                b += i % len * stride_b;
                i /= len;
            }
            (a, b)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn indices(region: &Region) -> Vec<Vec<u64>> {
        let mut all = vec![vec![]];
        for (&start, &size) in region.start.iter().zip(&region.size) {
            all = all.iter().flat_map(|at| (start..start + size).map(|i| [&at[..], &[i]].concat())).collect();
        }
        all
    }

    fn any_box(axes: usize) -> impl Strategy<Value = Region> {
        (prop::collection::vec(0u64..4, axes), prop::collection::vec(1u64..5, axes))
            .prop_map(|(start, size)| Region { start, size })
    }

    proptest! {
        #[test]
        fn runs_are_the_common_elements((a, b) in (0usize..4).prop_flat_map(|axes| (any_box(axes), any_box(axes)))) {
            let (in_a, in_b) = (indices(&a), indices(&b));
            let mut want: Vec<_> = in_a
                .iter()
                .enumerate()
                .filter_map(|(i, index)| Some((i as u64, in_b.iter().position(|other| other == index)? as u64)))
                .collect();
            let mut got = Vec::new();
            if let Some(overlap) = overlap(&a, &b) {
                for (from, to) in overlap.runs() {
                    got.extend((0..overlap.run).map(|i| (from + i, to + i)));
                }
                prop_assert_eq!(overlap.elements(), got.len() as u64);
            }
            want.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn a_box_of_whole_rows_is_one_run() {
        let region = |start: &[u64], size: &[u64]| Region { start: start.into(), size: size.into() };
        let whole = overlap(&region(&[2, 0, 0], &[1, 320, 64]), &region(&[2, 16, 0], &[1, 32, 64])).unwrap();
        assert_eq!((whole.run, whole.runs().collect::<Vec<_>>()), (32 * 64, vec![(16 * 64, 0)]));
        let split = overlap(&region(&[0, 0], &[8, 32]), &region(&[0, 16], &[8, 16])).unwrap();
        assert_eq!((split.run, split.runs().count()), (16, 8));
    }
}

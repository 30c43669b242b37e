//! [`Sum`]: the checksum of a stored member, put together from pieces that are read in any order and by any thread.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};
use crc32fast::Hasher;

use crate::zip::Member;

/// The pieces of a member that were read so far.
#[derive(Debug)]
pub(super) struct Sum {
    member: Member,
    /// By first byte; none touches another.
    pieces: Mutex<BTreeMap<u64, Piece>>,
}

#[derive(Debug)]
struct Piece {
    end: u64,
    crc: Hasher,
}

impl Sum {
    pub fn new(member: Member) -> Self {
        Self { member, pieces: Mutex::default() }
    }

    /// Takes what was read from byte `at` of the file on. Bytes that were seen before do not count again.
    ///
    /// # Errors
    /// With these the member is complete, and its checksum is another than the archive gives.
    pub fn saw(&self, at: u64, bytes: &[u8]) -> Result<()> {
        if !self.member.has_checksum() {
            return Ok(());
        }
        let mut unseen = gaps(&self.pieces(), at..at + bytes.len() as u64);
        while let Some(gap) = unseen.pop() {
            // Not under the lock: others read meanwhile, perhaps some of the same.
            let mut crc = Hasher::new();
            crc.update(&bytes[(gap.start - at) as usize..(gap.end - at) as usize]);
            let mut pieces = self.pieces();
            let left = gaps(&pieces, gap.clone());
            if left.len() == 1 && left[0] == gap {
                self.put(&mut pieces, gap, crc)?;
            } else {
                unseen.extend(left);
            }
        }
        Ok(())
    }

    /// What was not read yet.
    pub fn unseen(&self) -> Vec<Range<u64>> {
        let Member { data, len, .. } = self.member;
        if self.member.has_checksum() { gaps(&self.pieces(), data..data + len) } else { Vec::new() }
    }

    /// Puts a piece between its neighbours, and joins those that touch.
    fn put(&self, pieces: &mut BTreeMap<u64, Piece>, range: Range<u64>, crc: Hasher) -> Result<()> {
        let (mut start, mut piece) = (range.start, Piece { end: range.end, crc });
        if let Some(after) = pieces.remove(&piece.end) {
            piece.end = after.end;
            piece.crc.combine(&after.crc);
        }
        if let Some(before) = pieces.range_mut(..start).next_back().filter(|(_, before)| before.end == start) {
            start = *before.0;
            before.1.crc.combine(&piece.crc);
            before.1.end = piece.end;
        } else {
            pieces.insert(start, piece);
        }
        let Member { data, len, crc } = self.member;
        let whole = &pieces[&start];
        ensure!(
            (start, whole.end) != (data, data + len) || whole.crc.clone().finalize() == crc,
            "bytes {data}..{} do not have the checksum that the checkpoint gives: they changed since they were written, on a \
             disk or on the way; take the checkpoint again from where it is whole",
            data + len
        );
        Ok(())
    }

    fn pieces(&self) -> MutexGuard<'_, BTreeMap<u64, Piece>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a range that no piece has.
fn gaps(pieces: &BTreeMap<u64, Piece>, range: Range<u64>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let before = pieces.range(..=range.start).next_back().map_or(0, |(_, piece)| piece.end);
    let mut at = range.start.max(before);
    for (&start, piece) in pieces.range(range.start + 1..range.end.max(range.start + 1)) {
        if start > at {
            gaps.push(at..start);
        }
        at = at.max(piece.end);
    }
    if at < range.end {
        gaps.push(at..range.end);
    }
    gaps
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However it is read, what is complete is compared, and what is not is known.
        #[test]
        fn a_flipped_byte_is_found_when_the_last_piece_comes(
            bytes in prop::collection::vec(any::<u8>(), 1..200),
            reads in prop::collection::vec((0usize..200, 0usize..200), 0..20),
            (data, flip) in (0u64..9, prop::option::of(0usize..200)),
        ) {
            let member = Member { data, len: bytes.len() as u64, crc: crc32fast::hash(&bytes) };
            prop_assume!(member.has_checksum());
            let sum = Sum::new(member);
            let mut found = bytes.clone();
            let flip = flip.map(|at| at % bytes.len());
            if let Some(at) = flip {
                found[at] ^= 1;
            }
            let (mut seen, mut wrong) = (vec![false; bytes.len()], 0);
            for (from, to) in reads.into_iter().map(|(a, b)| (a % bytes.len(), b % bytes.len())) {
                let (from, to) = (from.min(to), from.max(to));
                seen[from..to].fill(true);
                wrong += u32::from(sum.saw(data + from as u64, &found[from..to]).is_err());
            }
            let unseen: Vec<_> = sum.unseen();
            let told: Vec<bool> =
                (data..data + member.len).map(|at| !unseen.iter().any(|gap| gap.contains(&at))).collect();
            prop_assert_eq!(&told, &seen);
            for gap in unseen {
                let inside = (gap.start - data) as usize..(gap.end - data) as usize;
                wrong += u32::from(sum.saw(gap.start, &found[inside]).is_err());
            }
            prop_assert_eq!(wrong, u32::from(flip.is_some()));
            prop_assert!(sum.unseen().is_empty());
        }
    }

    #[test]
    fn who_gives_no_checksum_is_asked_for_none() {
        let sum = Sum::new(Member { data: 0, len: 4, crc: 0 });
        assert!(sum.saw(0, b"abcd").is_ok() && sum.unseen().is_empty());
    }
}

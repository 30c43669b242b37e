//! Which two symbols become one, and how soon.

use ahash::AHashMap;

use super::Merge;

/// No rule. Higher than every rank.
pub const NONE: u32 = u32::MAX;

/// A symbol that is in no rule.
pub const EDGE: u32 = (1 << SYMBOL_BITS) - 1;

const SYMBOL_BITS: u32 = 21;
const RANK_BITS: u32 = 22;
const EMPTY: u64 = u64::MAX;

/// Pairs of symbols → rank.
///
/// Merging waits for these answers most of its time, one behind the other, and guesses of branches fail: whether there is a
/// rule is a coin's throw. So the table is small and has no branches: a perfect hash, in which every pair has one place
/// to look at (its group's shift behind its hash), and a place is one word that holds the pair and its rank.
pub struct Rules {
    /// For each group of pairs: how far it was shifted until all of them met empty places.
    shifts: Vec<u16>,
    group_bits: u32,
    places: Vec<u64>,
    /// Hashes are below.
    width: u64,
    seed: u64,
    /// By rank.
    merged: Vec<u32>,
    /// What [`Self::merged`] begins with if it only counts up, as with most vocabularies: then it need not be asked.
    first: Option<u32>,
}

impl Rules {
    /// None if there are more symbols or rules than fit.
    pub fn new(merges: &[Merge]) -> Option<Self> {
        let fits = |symbol: u32| symbol < EDGE;
        let all_fit = merges.iter().all(|merge| fits(merge.left) && fits(merge.right) && fits(merge.merged));
        if merges.len() >= 1 << RANK_BITS || !all_fit {
            return None;
        }
        // Of rules for the same pair the last one holds.
        let ranks: AHashMap<u64, u64> =
            merges.iter().zip(0..).map(|(merge, rank)| (pair(merge.left, merge.right), rank)).collect();
        let merged: Vec<u32> = merges.iter().map(|merge| merge.merged).collect();
        let counts_up = merged.is_sorted_by(|before, after| before + 1 == *after);
        let mut rules = Self {
            shifts: Vec::new(),
            group_bits: (ranks.len() / 4 + 2).next_power_of_two().trailing_zeros(),
            places: Vec::new(),
            width: ranks.len() as u64 * 5 / 4 + 16,
            seed: 1,
            first: merged.first().copied().filter(|_| counts_up),
            merged,
        };
        // One seed in five or so has no group with two pairs of the same hash, which no shift would part.
        (0..1000).any(|_| rules.fill(&ranks)).then_some(rules)
    }

    /// Tries the next seed.
    fn fill(&mut self, ranks: &AHashMap<u64, u64>) -> bool {
        self.seed = self.seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(2);
        let mut groups = vec![Vec::new(); 1 << self.group_bits];
        for (pair, rank) in ranks {
            let (group, hash) = self.hashes(*pair);
            groups[group].push((hash, pair << RANK_BITS | rank));
        }
        let mut order: Vec<usize> = (0..groups.len()).collect();
        order.sort_by_key(|group| std::cmp::Reverse(groups[*group].len()));
        for group in &mut groups {
            group.sort_unstable();
            if group.windows(2).any(|two| two[0].0 == two[1].0) {
                return false;
            }
        }
        self.shifts = vec![0; groups.len()];
        self.places = vec![EMPTY; self.width as usize + usize::from(u16::MAX)];
        for number in order {
            let group = &groups[number];
            let is_free = |shift: &u16| group.iter().all(|(hash, _)| self.places[hash + usize::from(*shift)] == EMPTY);
            let Some(shift) = (0..u16::MAX).find(is_free) else { return false };
            self.shifts[number] = shift;
            for (hash, entry) in group {
                self.places[hash + usize::from(shift)] = *entry;
            }
        }
        let furthest = self.shifts.iter().max().copied().unwrap_or(0);
        self.places.truncate(self.width as usize + usize::from(furthest));
        self.places.shrink_to_fit();
        true
    }

    /// A pair's group and hash.
    #[inline(always)]
    fn hashes(&self, pair: u64) -> (usize, usize) {
        let group = pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - self.group_bits);
        let hash = ((pair.wrapping_mul(self.seed) >> 32) * self.width) >> 32;
        (group as usize, hash as usize)
    }

    /// The rank of the rule for two symbols, or [`NONE`].
    #[inline(always)]
    pub fn rank(&self, left: u32, right: u32) -> u32 {
        let pair = pair(left, right);
        let (group, hash) = self.hashes(pair);
        let entry = self.places[hash + usize::from(self.shifts[group])];
        let rank = entry as u32 & ((1 << RANK_BITS) - 1);
        if entry >> RANK_BITS == pair { rank } else { NONE }
    }

    /// What the rule of a rank makes.
    #[inline(always)]
    pub fn merged(&self, rank: u32) -> u32 {
        match self.first {
            Some(first) => first + rank,
            None => self.merged[rank as usize],
        }
    }
}

#[inline(always)]
fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << SYMBOL_BITS | u64::from(right)
}

//! Which characters of a text may be taken as made, and where it falls apart.
//!
//! # Why the ids are those of merging from bytes
//!
//! Let c be a character whose bytes, merged alone, become one symbol. Let R be the highest rank of these merges, let F be all
//! symbols that were first in c on the way, its own included, and L those that were last. c is *safe* in its place if
//!
//! - no symbol x that the text before c can end with has a rule (x, f), f in F, of a rank up to R, and
//! - no symbol y that the text behind c can begin with has a rule (l, y), l in L, of a rank up to R.
//!
//! Take the run B from bytes, and the run C that starts with some of the safe characters made. C is B without the
//! merges inside of these. For, as long as such a character is unmade in B, its part of B's state is one of the states it has
//! alone, and the next merge there has a rank up to R. While that is so, B cannot join any of it with a neighbour: this
//! would take a rule of a rank above R, and B takes the lowest. So all are made as they are alone, and untouched until then.
//! Any other merge m of B is C's next one too. The states differ in unmade characters only; there C has a whole symbol
//! for which all rules with its neighbours have ranks above R, and m's rank is at most that of the merge that waits in
//! the unmade character, so at most R. Hence m is the lowest in C as well, and alone in that: leftmost is the same in both.
//! When B ends nothing waits, all are made, and C's state is B's.
//!
//! A character that is not safe, or not known to be, starts as bytes; whatever is started as bytes, the above holds.
//! Whether a symbol is one that the text can end with is asked of the one character before: the symbol ends with the
//! character, or the character with the symbol. A mask of bits stands for the symbols, and when there are more of them than bits
//! some share one. Then a character may be taken for unsafe, which costs time and no ids.
//!
//! Between two characters that start made, merging never joins anything if there is no rule of a symbol that ends with
//! the one and a symbol that begins with the other: what lies on both sides is merged apart. Pairs that a rule joins are
//! bits as well, and again one too many costs time alone.

use std::cmp::Reverse;

use ahash::AHashMap;

use super::{
    Merge, Model,
    rules::{NONE, Rules},
};

/// Characters whose `Info` lies together.
const PAGE: usize = 256;

/// What is known of a character.
#[derive(Clone, Copy)]
struct Info {
    /// What its bytes become alone, if that is one symbol; else [`NONE`].
    symbol: u32,
    /// It is unsafe behind a character that may end with one of these symbols,
    unsafe_behind: u64,
    /// and before a character that may begin with one of these.
    unsafe_before: u64,
    /// The symbols, of those that any character is unsafe behind, that a text up to this one may end with.
    ends: u64,
    /// The symbols, of those that any character is unsafe before, that a text from this one on may begin with.
    begins: u64,
}

/// For the edges of a piece.
const NOTHING: Info = Info { symbol: NONE, unsafe_behind: 0, unsafe_before: 0, ends: 0, begins: 0 };

/// For characters on pages without any that is made of several bytes.
const UNKNOWN: Info = Info { ends: u64::MAX, begins: u64::MAX, ..NOTHING };

/// What is known of all characters.
pub struct Chars {
    bytes: [u32; 256],
    /// By character / [`PAGE`]: which page of `infos`. The first is of unknown ones.
    pages: Vec<u16>,
    infos: Vec<Info>,
    joined: Joined,
}

impl Chars {
    /// None if there is a byte that is no token.
    pub fn new(model: &Model, rules: &Rules) -> Option<Self> {
        let mut bytes = [0; 256];
        for (byte, symbol) in (0..=u8::MAX).zip(&mut bytes) {
            *symbol = *model.tokens.get([byte].as_slice())?;
        }
        let texts: AHashMap<u32, &[u8]> = model.tokens.iter().map(|(text, id)| (*id, text.as_slice())).collect();
        let sides = Sides::new(&model.merges);
        let mut known = Vec::new();
        for token in model.tokens.keys() {
            if let Some(char) = only_char(token)
                && let Some(alone) = Alone::new(token, rules, &bytes)
            {
                let dangers = |symbols: &[u32], sides: &[(u32, u32, u32)]| -> Vec<&[u8]> {
                    symbols
                        .iter()
                        .flat_map(|symbol| Sides::up_to(sides, *symbol, alone.highest))
                        .map(|id| texts[&id])
                        .collect()
                };
                let (behind, before) = (dangers(&alone.firsts, &sides.lefts), dangers(&alone.lasts, &sides.rights));
                known.push((char, alone.symbol, behind, before));
            }
        }
        let end_bits = bits(known.iter().flat_map(|known| &known.2).copied());
        let begin_bits = bits(known.iter().flat_map(|known| &known.3).copied());
        let joined = Joined::new(model, &texts, &known.iter().map(|known| (known.0, known.1)).collect());

        let mut chars = Self { bytes, pages: vec![0; 0x11_0000 / PAGE], infos: vec![UNKNOWN; PAGE], joined };
        for (char, symbol, behind, before) in known {
            let mask = |symbols: Vec<&[u8]>, bits: &AHashMap<&[u8], u64>| {
                symbols.iter().fold(0, |mask, text| mask | bits[text])
            };
            let info = chars.info_mut(char);
            info.symbol = symbol;
            info.unsafe_behind = mask(behind, &end_bits);
            info.unsafe_before = mask(before, &begin_bits);
        }
        chars.set_ends_and_begins(&end_bits, &begin_bits);
        Some(chars)
    }

    fn set_ends_and_begins(&mut self, end_bits: &AHashMap<&[u8], u64>, begin_bits: &AHashMap<&[u8], u64>) {
        let pages = self.pages.clone();
        let is_known = |char: &char| pages[*char as usize / PAGE] != 0;
        for char in ('\0'..=char::MAX).filter(is_known) {
            let mut room = [0; 4];
            let text = char.encode_utf8(&mut room).as_bytes();
            let bit = |part: &[u8], bits: &AHashMap<&[u8], u64>| bits.get(part).copied().unwrap_or(0);
            let (mut ends, mut begins) = (0, 0);
            for at in 1..text.len() {
                ends |= bit(&text[at..], end_bits);
                begins |= bit(&text[..at], begin_bits);
            }
            let info = self.info_mut(char);
            (info.ends, info.begins) = (ends, begins);
        }
        for (text, bit) in end_bits {
            if let Some(char) = last_char(text).filter(is_known) {
                self.info_mut(char).ends |= bit;
            }
        }
        for (text, bit) in begin_bits {
            if let Some(char) = first_char(text).filter(is_known) {
                self.info_mut(char).begins |= bit;
            }
        }
    }

    /// The info of a character, on a page of its own if there is none yet.
    fn info_mut(&mut self, char: char) -> &mut Info {
        let page = &mut self.pages[char as usize / PAGE];
        if *page == 0 {
            *page = (self.infos.len() / PAGE) as u16;
            self.infos.resize(self.infos.len() + PAGE, NOTHING);
        }
        &mut self.infos[usize::from(*page) * PAGE + char as usize % PAGE]
    }

    #[inline(always)]
    fn info(&self, char: char) -> &Info {
        &self.infos[usize::from(self.pages[char as usize / PAGE]) * PAGE + char as usize % PAGE]
    }

    /// Gives the symbols that merging starts with, in parts that are merged apart. `symbols` is room for them.
    #[inline(always)]
    pub fn parts(&self, text: &str, symbols: &mut Vec<u32>, mut part: impl FnMut(&mut [u32])) {
        symbols.clear();
        let mut chars = text.chars();
        let Some(mut char) = chars.next() else { return };
        let (mut before, mut info) = (&NOTHING, self.info(char));
        let mut before_is_made = false;
        loop {
            let next = chars.next();
            let behind = next.map_or(&NOTHING, |next| self.info(next));
            let dangers = info.unsafe_behind & before.ends | info.unsafe_before & behind.begins;
            let is_made = info.symbol != NONE && dangers == 0;
            if is_made {
                if before_is_made && !self.joined.has(before.symbol, info.symbol) {
                    part(symbols);
                    symbols.clear();
                }
                symbols.push(info.symbol);
            } else {
                let mut room = [0; 4];
                symbols.extend(char.encode_utf8(&mut room).bytes().map(|byte| self.bytes[usize::from(byte)]));
            }
            (before, info, before_is_made) = (info, behind, is_made);
            let Some(next) = next else { break };
            char = next;
        }
        part(symbols);
    }
}

/// How a character's bytes merge when there is nothing else.
struct Alone {
    symbol: u32,
    /// The highest rank; none if there is nothing to merge.
    highest: Option<u32>,
    firsts: Vec<u32>,
    lasts: Vec<u32>,
}

impl Alone {
    /// None if more than one symbol is left.
    fn new(text: &[u8], rules: &Rules, bytes: &[u32; 256]) -> Option<Self> {
        let mut symbols: Vec<u32> = text.iter().map(|byte| bytes[usize::from(*byte)]).collect();
        let (mut highest, mut firsts, mut lasts) = (None, Vec::new(), Vec::new());
        loop {
            firsts.push(symbols[0]);
            lasts.push(symbols[symbols.len() - 1]);
            if let [symbol] = *symbols {
                firsts.dedup();
                lasts.dedup();
                return Some(Self { symbol, highest, firsts, lasts });
            }
            let ranks = symbols.windows(2).map(|two| rules.rank(two[0], two[1]));
            let (rank, at) = ranks.zip(0..).min().filter(|(rank, _)| *rank != NONE)?;
            highest = highest.max(Some(rank));
            symbols[at] = rules.merged(rank);
            symbols.remove(at + 1);
        }
    }
}

/// Rules by their right and by their left side: (side, rank, other side), sorted.
struct Sides {
    lefts: Vec<(u32, u32, u32)>,
    rights: Vec<(u32, u32, u32)>,
}

impl Sides {
    fn new(merges: &[Merge]) -> Self {
        let mut lefts: Vec<_> = merges.iter().zip(0..).map(|(merge, rank)| (merge.right, rank, merge.left)).collect();
        let mut rights: Vec<_> = merges.iter().zip(0..).map(|(merge, rank)| (merge.left, rank, merge.right)).collect();
        lefts.sort_unstable();
        rights.sort_unstable();
        Self { lefts, rights }
    }

    /// The other sides of a symbol's rules of ranks up to one.
    fn up_to(sides: &[(u32, u32, u32)], symbol: u32, highest: Option<u32>) -> impl Iterator<Item = u32> {
        let from = sides.partition_point(|side| side.0 < symbol);
        let known = sides[from..].iter().take_while(move |side| side.0 == symbol && Some(side.1) <= highest);
        known.map(|side| side.2)
    }
}

/// Pairs of made characters that a rule may join, as bits: never too few, and few too many.
struct Joined {
    bits: Vec<u64>,
    shift: u32,
}

impl Joined {
    fn new(model: &Model, texts: &AHashMap<u32, &[u8]>, symbols: &AHashMap<char, u32>) -> Self {
        let pair = |merge: &Merge| {
            let (left, right) = (last_char(texts[&merge.left])?, first_char(texts[&merge.right])?);
            Some((*symbols.get(&left)?, *symbols.get(&right)?))
        };
        let mut pairs: Vec<_> = model.merges.iter().filter_map(pair).collect();
        pairs.sort_unstable();
        pairs.dedup();
        // One bit in ten is set, or fewer.
        let size = (pairs.len() * 10).next_power_of_two().max(64);
        let mut joined = Self { bits: vec![0; size / 64], shift: 64 - size.trailing_zeros() };
        for (left, right) in pairs {
            let bit = joined.bit(left, right);
            joined.bits[bit / 64] |= 1 << (bit % 64);
        }
        joined
    }

    #[inline(always)]
    fn bit(&self, left: u32, right: u32) -> usize {
        ((u64::from(left) << 32 | u64::from(right)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift) as usize
    }

    #[inline(always)]
    fn has(&self, left: u32, right: u32) -> bool {
        let bit = self.bit(left, right);
        self.bits[bit / 64] >> (bit % 64) & 1 != 0
    }
}

/// A bit for each text, of its own for those that stand there most often.
fn bits<'t>(texts: impl Iterator<Item = &'t [u8]>) -> AHashMap<&'t [u8], u64> {
    let mut counts = AHashMap::<&[u8], u32>::new();
    for text in texts {
        *counts.entry(text).or_default() += 1;
    }
    let mut order: Vec<_> = counts.into_iter().map(|(text, count)| (Reverse(count), text)).collect();
    order.sort_unstable();
    let bit = |at: usize| 1 << if at < 48 { at } else { 48 + at % 16 };
    order.into_iter().enumerate().map(|(at, (_, text))| (text, bit(at))).collect()
}

/// The character that a token is, if it is one.
fn only_char(token: &[u8]) -> Option<char> {
    first_char(token).filter(|char| char.len_utf8() == token.len())
}

fn first_char(token: &[u8]) -> Option<char> {
    (1..=token.len().min(4)).find_map(|end| std::str::from_utf8(&token[..end]).ok()?.chars().next())
}

fn last_char(token: &[u8]) -> Option<char> {
    (1..=token.len().min(4)).find_map(|end| std::str::from_utf8(&token[token.len() - end..]).ok()?.chars().next())
}

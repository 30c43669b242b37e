//! [`Cache`]: keys and values of rows of tokens, so that one more token costs one token.
//!
//! A row's tokens stand at its beginning whatever the lengths of the others: positions are those that it has alone, and what
//! lies behind its end is not looked at until it is written over.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// Room is made for so many tokens more at a time.
const BLOCK: i64 = 256;

/// Keys and values, layer by layer: each [rows, room, g, d], where g are this rank's key-value heads.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<[Tensor; 2]>,
    rows: i64,
    room: i64,
    /// Tokens of each row that is there.
    lengths: Vec<i64>,
}

/// Where one more token of each row goes, and what it sees.
pub struct Step {
    /// Among all rows' places: [b]
    at_b: Tensor,
    /// Behind the longest row's new token.
    end: i64,
    /// None where all are of one length: [b, 1, 1, end], bool.
    seen: Option<Tensor>,
}

impl Cache {
    /// For up to `rows` rows through so many layers.
    pub fn new(layers: usize, rows: usize, heads: i64, head_dim: i64, kind: Kind, device: Device) -> Self {
        let rows = rows as i64;
        let empty = || Tensor::empty([rows, 0, heads, head_dim], (kind, device));
        Self { layers: (0..layers).map(|_| [empty(), empty()]).collect(), rows, room: 0, lengths: Vec::new() }
    }

    /// Tokens of each row.
    pub fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// Lets go of a row; the last one takes its place.
    pub fn remove(&mut self, row: usize) {
        let last = self.lengths.len() - 1;
        if row < last {
            let length = self.lengths[last];
            let part = |x: &Tensor, row: usize| x.get(row as i64).narrow(0, 0, length);
            for x in self.layers.iter().flatten() {
                part(x, row).copy_(&part(x, last));
            }
        }
        self.lengths.swap_remove(row);
    }

    /// Adds rows of these lengths: the first of them. Their keys and values are [written](Self::begin) next.
    pub fn add(&mut self, lengths: &[i64]) -> i64 {
        self.reserve(lengths.iter().copied().max().unwrap_or(0));
        self.lengths.extend(lengths);
        (self.lengths.len() - lengths.len()) as i64
    }

    /// Writes keys and values of whole rows from the row `first` on: [b, s, g, d]. What is beyond a row's end is of no
    /// matter.
    pub fn begin(&self, layer: usize, first: i64, k_bsgd: &Tensor, v_bsgd: &Tensor) {
        let (b, s) = (k_bsgd.size()[0], k_bsgd.size()[1]);
        for (x, new) in self.layers[layer].iter().zip([k_bsgd, v_bsgd]) {
            x.narrow(0, first, b).narrow(1, 0, s).copy_(new);
        }
    }

    /// One more token for every row.
    pub fn step(&mut self) -> Step {
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        self.reserve(longest + 1);
        let device = self.layers[0][0].device();
        let on_device = |values: &[i64]| Tensor::from_slice(values).to_device(device);
        let at: Vec<i64> = self.lengths.iter().zip(0..).map(|(length, row)| row * self.room + length).collect();
        let even = self.lengths.iter().all(|length| *length == longest);
        let seen = (!even).then(|| {
            let places = Tensor::arange(longest + 1, (Kind::Int64, device));
            places.unsqueeze(0).le_tensor(&on_device(&self.lengths).unsqueeze(-1)).unsqueeze(1).unsqueeze(1)
        });
        self.lengths.iter_mut().for_each(|length| *length += 1);
        Step { at_b: on_device(&at), end: longest + 1, seen }
    }

    /// Writes the keys and values of a step, and attends to all of each row: queries [b, 1, g, n, d], keys and values
    /// [b, 1, g, d] → [b, 1, g n d].
    pub fn extend(
        &self,
        layer: usize,
        step: &Step,
        q_bsgnd: &Tensor,
        k_bsgd: &Tensor,
        v_bsgd: &Tensor,
    ) -> Result<Tensor> {
        let b = q_bsgnd.size()[0];
        let [k_bgsd, v_bgsd] = [(0, k_bsgd), (1, v_bsgd)].map(|(which, new)| {
            let all = &self.layers[layer][which];
            let _ = all.flatten(0, 1).index_copy_(0, &step.at_b, &new.squeeze_dim(1));
            all.narrow(0, 0, b).narrow(1, 0, step.end).transpose(1, 2)
        });
        // The queries of a key-value head take the place of positions: no head is copied, and all see the same.
        let q_bgnd = q_bsgnd.squeeze_dim(1);
        let o_bgnd = Tensor::scaled_dot_product_attention(
            &q_bgnd,
            &k_bgsd,
            &v_bgsd,
            step.seen.as_ref(),
            0.0,
            false,
            None,
            false,
        );
        Ok(o_bgnd.reshape([b, 1, -1]))
    }

    /// Makes room for rows of this length, layer by layer, so that one of them alone is there twice.
    fn reserve(&mut self, length: i64) {
        if length <= self.room {
            return;
        }
        let room = (length - 1) / BLOCK * BLOCK + BLOCK;
        let (rows, old) = (self.lengths.len() as i64, self.room);
        for x in self.layers.iter_mut().flatten() {
            let (size, place) = (x.size(), (x.kind(), x.device()));
            // Zeros: what nobody sees is still multiplied by nothing, and must be a number for that.
            let larger = Tensor::zeros([self.rows, room, size[2], size[3]], place);
            let part = |x: &Tensor| x.narrow(0, 0, rows).narrow(1, 0, old);
            part(&larger).copy_(&part(x));
            *x = larger;
        }
        self.room = room;
    }
}

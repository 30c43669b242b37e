//! [`compare`]: how far two models' tensors are apart.

use anyhow::{Result, bail};
use flow_formats::DType;
use rayon::prelude::*;

use super::{Weights, rows, width};
use crate::models;

/// Elements that are turned into numbers at a time.
const BLOCK: usize = 4096;

/// Two models, tensor by tensor.
#[derive(Debug)]
pub struct Comparison {
    /// What each of the two is.
    pub formats: [String; 2],
    /// By name.
    pub tensors: Vec<(String, Outcome)>,
}

/// What became of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is in the first alone.
    OnlyFirst,
    /// It is in the second alone.
    OnlySecond,
    /// The shapes differ.
    Shapes(Vec<u64>, Vec<u64>),
    /// Both have it.
    Both(Difference),
}

/// How far two tensors of one shape are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The types of their elements.
    pub types: [DType; 2],
    /// Their shape.
    pub shape: Vec<u64>,
    /// They are the same numbers, bit for bit if their types are the same.
    pub equal: bool,
    /// The largest difference of two elements; infinite where one is no number.
    pub max_abs: f64,
    /// The largest difference of two elements, as a part of the larger one.
    pub max_rel: f64,
    /// The cosine of the angle between them.
    pub cosine: f64,
}

impl Difference {
    /// The types' names in torch.
    #[must_use]
    pub fn type_names(&self) -> [&'static str; 2] {
        self.types.map(DType::torch)
    }
}

impl Comparison {
    /// Whether every tensor is in both, and the same.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.tensors.iter().all(|(_, outcome)| matches!(outcome, Outcome::Both(difference) if difference.equal))
    }
}

/// Compares all tensors. If one is Megatron's and the other Hugging Face's, both are seen under Hugging Face's names.
///
/// # Errors
/// A file cannot be read, or no `config.json` lies with either and their names cannot be compared.
pub fn compare(first: Weights, second: Weights) -> Result<Comparison> {
    let (first, second) = same_names(first, second)?;
    let formats = [first.format.clone(), second.format.clone()];
    let mut names: Vec<&String> = first.tensors.keys().chain(second.tensors.keys()).collect();
    names.sort_unstable();
    names.dedup();

    let mut tensors: Vec<(String, Outcome)> = Vec::with_capacity(names.len());
    let mut tiles = Vec::new();
    for name in names {
        let outcome = match (first.tensors.get(name), second.tensors.get(name)) {
            (Some(_), None) => Outcome::OnlyFirst,
            (None, _) => Outcome::OnlySecond,
            (Some((_, a)), Some((_, b))) if a != b => Outcome::Shapes(a.clone(), b.clone()),
            (Some((a, shape)), Some((b, _))) => {
                let step = (models::TILE / (width(shape).max(1) * a.size().max(b.size()))).max(1);
                let all = rows(shape);
                let starts = (0..all).step_by(step as usize);
                tiles.extend(starts.map(|from| (tensors.len(), name, from, step.min(all - from))));
                let (types, shape) = ([*a, *b], shape.clone());
                Outcome::Both(Difference { types, shape, equal: true, max_abs: 0.0, max_rel: 0.0, cosine: 1.0 })
            }
        };
        tensors.push((name.clone(), outcome));
    }
    let sums = tiles
        .par_iter()
        .map_init(<(Vec<u8>, Vec<u8>)>::default, |(a, b), &(_, name, from, count)| {
            let (types, shape) = ([first.tensors[name].0, second.tensors[name].0], &first.tensors[name].1);
            let elements = count * width(shape);
            a.resize((elements * types[0].size()) as usize, 0);
            b.resize((elements * types[1].size()) as usize, 0);
            first.read(name, from, count, a)?;
            second.read(name, from, count, b)?;
            Sums::of(types, a, b)
        })
        .collect::<Result<Vec<Sums>>>()?;
    for model in [&first, &second] {
        model.check_rest()?;
    }
    let mut whole: Vec<Option<Sums>> = vec![None; tensors.len()];
    for (&(tensor, ..), sums) in tiles.iter().zip(sums) {
        whole[tensor] = Some(whole[tensor].take().unwrap_or_default().with(&sums));
    }
    for ((_, outcome), sums) in tensors.iter_mut().zip(whole) {
        if let (Outcome::Both(difference), Some(sums)) = (outcome, sums) {
            sums.tell(difference);
        }
    }
    Ok(Comparison { formats, tensors })
}

fn same_names(first: Weights, second: Weights) -> Result<(Weights, Weights)> {
    if first.is_named_as(&second) {
        return Ok((first, second));
    }
    let Some(config) = first.config.clone().or_else(|| second.config.clone()) else {
        bail!("one is Megatron's and one Hugging Face's, and neither has a config.json, which says what is what");
    };
    Ok((first.under_hf_names(&config)?, second.under_hf_names(&config)?))
}

/// What is summed up over elements.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    different: bool,
    max_abs: f64,
    max_rel: f64,
    dot: f64,
    squares: [f64; 2],
}

impl Sums {
    fn of(types: [DType; 2], a: &[u8], b: &[u8]) -> Result<Self> {
        let mut sums = Self { different: types[0] == types[1] && a != b, ..Self::default() };
        let (mut xs, mut ys) = (Vec::with_capacity(BLOCK), Vec::with_capacity(BLOCK));
        let sizes = types.map(|dtype| dtype.size() as usize * BLOCK);
        for (a, b) in a.chunks(sizes[0]).zip(b.chunks(sizes[1])) {
            numbers(types[0], a, &mut xs)?;
            numbers(types[1], b, &mut ys)?;
            for (&x, &y) in xs.iter().zip(&ys) {
                sums.dot += x * y;
                sums.squares[0] += x * x;
                sums.squares[1] += y * y;
                if x != y && !(x.is_nan() && y.is_nan()) {
                    sums.different = true;
                    let apart = (x - y).abs();
                    let apart = if apart.is_nan() { f64::INFINITY } else { apart };
                    sums.max_abs = sums.max_abs.max(apart);
                    sums.max_rel = sums.max_rel.max(apart / x.abs().max(y.abs()));
                }
            }
        }
        Ok(sums)
    }

    fn with(self, other: &Self) -> Self {
        Self {
            different: self.different || other.different,
            max_abs: self.max_abs.max(other.max_abs),
            max_rel: self.max_rel.max(other.max_rel),
            dot: self.dot + other.dot,
            squares: [self.squares[0] + other.squares[0], self.squares[1] + other.squares[1]],
        }
    }

    fn tell(&self, difference: &mut Difference) {
        difference.equal = !self.different;
        (difference.max_abs, difference.max_rel) = (self.max_abs, self.max_rel);
        let [a, b] = self.squares.map(f64::sqrt);
        difference.cosine = match (self.different, a * b) {
            (false, _) => 1.0,
            (true, 0.0) => 0.0,
            (true, lengths) => (self.dot / lengths).clamp(-1.0, 1.0),
        };
    }
}

/// Elements as numbers.
fn numbers(dtype: DType, bytes: &[u8], out: &mut Vec<f64>) -> Result<()> {
    out.clear();
    match dtype {
        DType::F32 => out.extend(bytes.as_chunks().0.iter().map(|&x| f64::from(f32::from_le_bytes(x)))),
        DType::Bf16 | DType::F16 => {
            let mut wide = [0; 4 * BLOCK];
            let wide = &mut wide[..2 * bytes.len()];
            models::cast(bytes, dtype, wide, DType::F32)?;
            out.extend(wide.as_chunks().0.iter().map(|&x| f64::from(f32::from_le_bytes(x))));
        }
        DType::F64 => out.extend(bytes.as_chunks().0.iter().map(|&x| f64::from_le_bytes(x))),
        DType::I64 => out.extend(bytes.as_chunks().0.iter().map(|&x| i64::from_le_bytes(x) as f64)),
        DType::I32 => out.extend(bytes.as_chunks().0.iter().map(|&x| f64::from(i32::from_le_bytes(x)))),
        DType::I16 => out.extend(bytes.as_chunks().0.iter().map(|&x| f64::from(i16::from_le_bytes(x)))),
        DType::I8 => out.extend(bytes.iter().map(|&x| f64::from(x.cast_signed()))),
        DType::U8 | DType::Bool => out.extend(bytes.iter().map(|&x| f64::from(x))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use flow_formats::safetensors;

    use super::*;
    use crate::testing::golden;

    fn write(dir: &Path, tensors: &[(&str, DType, Vec<u64>, Vec<u8>)]) -> Weights {
        let named: Vec<_> =
            tensors.iter().map(|(name, dtype, shape, _)| ((*name).to_owned(), *dtype, shape.clone())).collect();
        let shard = safetensors::plan(&named, 1 << 30).unwrap().shards.remove(0);
        let mut file = shard.header;
        for (name, ..) in &shard.tensors {
            file.extend(&tensors.iter().find(|tensor| tensor.0 == name).unwrap().3);
        }
        fs::write(dir.join(shard.name), file).unwrap();
        Weights::open(dir).unwrap()
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn what_differs_is_told_by_tensor() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let a = write(
            dirs[0].path(),
            &[
                ("equal", DType::F32, vec![2, 1], floats(&[1.0, f32::NAN])),
                ("far", DType::F32, vec![3], floats(&[3.0, 0.0, 4.0])),
                ("gone", DType::U8, vec![1], vec![1]),
                ("shape", DType::U8, vec![2], vec![1, 2]),
                ("zero", DType::F32, vec![1], floats(&[0.0])),
            ],
        );
        let b = write(
            dirs[1].path(),
            &[
                ("equal", DType::F32, vec![2, 1], floats(&[1.0, f32::NAN])),
                ("far", DType::F16, vec![3], vec![0x00, 0x42, 0, 0, 0x00, 0x40]), // 3, 0, 2
                ("new", DType::U8, vec![1], vec![1]),
                ("shape", DType::U8, vec![1, 2], vec![1, 2]),
                ("zero", DType::F32, vec![1], floats(&[f32::NAN])),
            ],
        );
        let all = compare(a, b).unwrap();
        assert!(!all.is_equal());
        let outcomes: Vec<_> = all.tensors.iter().map(|(name, outcome)| (name.as_str(), outcome)).collect();
        let both = |i: usize| match outcomes[i].1 {
            Outcome::Both(difference) => difference,
            other => panic!("{other:?}"),
        };
        assert!(both(0).equal && both(0).cosine == 1.0);
        let far = both(1);
        assert_eq!((far.equal, far.max_abs, far.max_rel), (false, 2.0, 0.5));
        assert!((far.cosine - 17.0 / (5.0 * 13f64.sqrt())).abs() < 1e-12, "{far:?}");
        assert_eq!(outcomes[2], ("gone", &Outcome::OnlyFirst));
        assert_eq!(outcomes[3], ("new", &Outcome::OnlySecond));
        assert_eq!(outcomes[4], ("shape", &Outcome::Shapes(vec![2], vec![1, 2])));
        assert!(both(5).max_abs.is_infinite());
    }

    #[test]
    fn formats_and_versions_are_compared_with_each_other() {
        let open = |name: &str| Weights::open(&golden(name)).unwrap();
        let (hf, old, new) = ("hf", "megatron_core0.16", "megatron_core0.20dev");
        let dcp = "../../torch_dcp/hf_named";
        for (a, b, count) in [(hf, hf, 39), (hf, old, 39), (new, hf, 39), (old, new, 9), (hf, dcp, 39), (dcp, hf, 39)] {
            let all = compare(open(a), open(b)).unwrap();
            assert!(all.is_equal(), "{a} {b}: {all:?}");
            assert_eq!(all.tensors.len(), count, "{a} {b}");
        }
    }
}

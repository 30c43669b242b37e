//! safetensors: eight bytes of header length, a JSON header, the tensors' bytes.
//!
//! [`Index`] reads a directory's tables of contents (one file, or several with `model.safetensors.index.json`);
//! [`plan`] lays out what will be written, before the first byte is.
//! Format: <https://github.com/huggingface/safetensors>.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value as Json, json};

use crate::{DType, dtype::byte_len, zip::ReadAt};

/// The limit that the format's own library sets for a header, in bytes.
const LONGEST_HEADER: u64 = 100_000_000;

/// The only file of a model that fits into one.
pub const SINGLE: &str = "model.safetensors";
/// The table of tensors over several files.
pub const INDEX: &str = "model.safetensors.index.json";

/// A tensor in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The file it lies in.
    pub file: PathBuf,
    /// Its first byte in that file.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
}

/// The table of contents of one file, by name.
///
/// # Errors
/// It is no safetensors file: the header is longer than the file, not what the format says, or the tensors do not
/// fill the rest of the file exactly.
pub fn read_header(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let len = file.metadata()?.len();
    parse(&file, len, path).with_context(|| format!("{} is not a safetensors file", path.display()))
}

fn parse<R: ReadAt + ?Sized>(file: &R, len: u64, path: &Path) -> Result<BTreeMap<String, Tensor>> {
    ensure!(len >= 8, "it has {len} bytes");
    let mut word = [0; 8];
    file.read_at(0, &mut word)?;
    let header = u64::from_le_bytes(word);
    ensure!(header <= LONGEST_HEADER && header <= len - 8, "a header of {header} bytes in a file of {len}");
    let mut text = vec![0; header as usize];
    file.read_at(8, &mut text)?;
    let table: Map<String, Json> = serde_json::from_slice(&text).context("the header is not a JSON object")?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in table {
        if name == "__metadata__" {
            continue;
        }
        let tensor = entry_of(&entry, 8 + header, len, path).with_context(|| format!("tensor `{name}`"))?;
        tensors.insert(name, tensor);
    }
    // Without holes and overlaps, as the format demands: otherwise a file could hide bytes or share them.
    let mut spans: Vec<_> = tensors.values().map(|tensor| (tensor.at, tensor.len)).collect();
    spans.sort_unstable();
    let mut at = 8 + header;
    for (start, n) in spans {
        ensure!(start == at, "the tensors leave a hole or overlap at byte {}", at.min(start));
        at += n;
    }
    ensure!(at == len, "the tensors end at byte {at}, the file at {len}: it was cut off, or written over");
    Ok(tensors)
}

fn entry_of(entry: &Json, data: u64, len: u64, path: &Path) -> Result<Tensor> {
    let name = entry["dtype"].as_str().context("it has no dtype")?;
    let dtype = DType::from_safetensors(name).with_context(|| format!("dtype {name} is not supported"))?;
    let numbers = |field: &str| -> Option<Vec<u64>> { entry[field].as_array()?.iter().map(Json::as_u64).collect() };
    let shape = numbers("shape").context("it has no shape")?;
    let offsets = numbers("data_offsets").context("it has no data_offsets")?;
    let [begin, end] = offsets[..] else { bail!("data_offsets are not two numbers") };
    ensure!(begin <= end && data.checked_add(end).is_some_and(|end| end <= len), "bytes {begin}..{end} lie outside");
    ensure!(
        byte_len(dtype, &shape) == Some(end - begin),
        "shape {shape:?} of {name} does not have {} bytes",
        end - begin
    );
    Ok(Tensor { file: path.to_owned(), at: data + begin, len: end - begin, dtype, shape })
}

/// The tensors of a model, over all its files.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// By name.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Index {
    /// Reads the tables of contents among a model's files: file name → where it lies. Uses the index if there is
    /// one, else the single file, else every `*.safetensors`.
    ///
    /// # Errors
    /// There is no such file, one that the index names is missing, a tensor is twice or not where the index says.
    pub fn read(files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        if let Some(path) = files.get(INDEX) {
            return Self::read_index(path, files).with_context(|| format!("cannot follow {}", path.display()));
        }
        let mut names: Vec<&String> = match files.get_key_value(SINGLE) {
            Some((single, _)) => vec![single],
            None => files.keys().filter(|name| name.ends_with(".safetensors")).collect(),
        };
        names.sort();
        ensure!(!names.is_empty(), "there is no {SINGLE}, no {INDEX} and no other *.safetensors");
        let mut tensors = BTreeMap::new();
        for name in names {
            for (tensor, place) in read_header(&files[name])? {
                ensure!(tensors.insert(tensor.clone(), place).is_none(), "tensor `{tensor}` is in two files");
            }
        }
        Ok(Self { tensors })
    }

    fn read_index(path: &Path, files: &BTreeMap<String, PathBuf>) -> Result<Self> {
        let index: Json = serde_json::from_slice(&std::fs::read(path)?).context("it is not JSON")?;
        let map = index["weight_map"].as_object().context("it has no weight_map")?;
        let mut headers: HashMap<&str, BTreeMap<String, Tensor>> = HashMap::new();
        let mut tensors = BTreeMap::new();
        for (tensor, file) in map {
            let file = file.as_str().with_context(|| format!("`{tensor}` is not in a file"))?;
            if !headers.contains_key(file) {
                let place = files.get(file).with_context(|| format!("file {file} is missing"))?;
                headers.insert(file, read_header(place)?);
            }
            let place = headers.get_mut(file).and_then(|header| header.remove(tensor));
            tensors.insert(tensor.clone(), place.with_context(|| format!("`{tensor}` is not in {file}"))?);
        }
        for (file, left) in headers {
            if let Some(tensor) = left.keys().next() {
                bail!("`{tensor}` is in {file}, and the index does not know it");
            }
        }
        Ok(Self { tensors })
    }
}

/// A file that will be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its name.
    pub name: String,
    /// Its first bytes: the length of the header, and the header.
    pub header: Vec<u8>,
    /// What lies behind the header: tensor's name, place in the file, length in bytes.
    pub tensors: Vec<(String, u64, u64)>,
    /// Its whole length.
    pub len: u64,
}

/// What will be written: files, and the index if they are several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The files.
    pub shards: Vec<Shard>,
    /// The content of [`INDEX`].
    pub index: Option<String>,
}

/// Lays out tensors over files of at most `max_shard_size` bytes of tensors (a bigger tensor has a file of its own),
/// filled in the order given. Names, header and order inside a file are those of the Python library's
/// `save_pretrained`: files are byte-identical with its own.
///
/// # Errors
/// A shape has more bytes than there are, or a header becomes too long.
pub fn plan(tensors: &[(String, DType, Vec<u64>)], max_shard_size: u64) -> Result<Plan> {
    type Row<'a> = (&'a str, DType, &'a [u64], u64);
    let mut groups: Vec<Vec<Row<'_>>> = vec![Vec::new()];
    let (mut size, mut total) = (0u64, 0u64);
    for (name, dtype, shape) in tensors {
        let len = byte_len(*dtype, shape).with_context(|| format!("`{name}` of shape {shape:?} is too large"))?;
        if size > 0 && size.checked_add(len).is_none_or(|sum| sum > max_shard_size) {
            groups.push(Vec::new());
            size = 0;
        }
        size += len;
        total = total.checked_add(len).context("the tensors together are too large")?;
        groups.last_mut().expect("there is one").push((name, *dtype, shape, len));
    }
    let count = groups.len();
    let mut shards = Vec::with_capacity(count);
    let mut map = BTreeMap::new();
    for (i, mut group) in groups.into_iter().enumerate() {
        let name = match count {
            1 => SINGLE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        // Wide types first, so that every tensor is aligned; then by name.
        group.sort_by(|a, b| b.1.size().cmp(&a.1.size()).then(b.1.cmp(&a.1)).then(a.0.cmp(b.0)));
        let mut text = String::from(r#"{"__metadata__":{"format":"pt"}"#);
        let mut at = 0;
        for &(tensor, dtype, shape, len) in &group {
            let entry = format!(
                r#",{}:{{"dtype":"{}","shape":{},"data_offsets":[{at},{}]}}"#,
                Json::from(tensor),
                dtype.safetensors(),
                Json::from(shape),
                at + len
            );
            text.push_str(&entry);
            at += len;
            map.insert(tensor.to_owned(), name.clone());
        }
        text.push('}');
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        ensure!(text.len() as u64 <= LONGEST_HEADER, "the header of {name} would have {} bytes", text.len());
        let mut header = (text.len() as u64).to_le_bytes().to_vec();
        header.extend(text.as_bytes());
        let mut place = header.len() as u64;
        let tensors = group
            .iter()
            .map(|&(tensor, _, _, len)| {
                place += len;
                (tensor.to_owned(), place - len, len)
            })
            .collect();
        shards.push(Shard { name, header, tensors, len: place });
    }
    let index = (count > 1).then(|| {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        format!("{}\n", serde_json::to_string_pretty(&index).expect("JSON of strings and numbers"))
    });
    Ok(Plan { shards, index })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 1);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
        super::parse(bytes, bytes.len() as u64, Path::new("x"))
    }

    #[test]
    fn hostile_headers_are_errors() {
        let entry = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert_eq!(parse(&file(&entry("BF16", "[2,3]", "[0,12]"), 12)).unwrap()["a"].shape, [2, 3]);
        for (bytes, word) in [
            (vec![], "0 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "header of"),
            (file("[]", 0), "JSON object"),
            (file(&entry("BF17", "[2,3]", "[0,12]"), 12), "BF17"),
            (file(&entry("BF16", "[2,-3]", "[0,12]"), 12), "shape"),
            (file(&entry("BF16", "[2,3]", "[0,14]"), 14), "12 bytes"),
            (file(&entry("BF16", "[2,3]", "[12,0]"), 12), "outside"),
            (file(&entry("BF16", "[2,3]", "[0,12]"), 11), "outside"),
            (file(&entry("BF16", "[2,3]", "[0,12]"), 13), "end at byte"),
            (file(&entry("BF16", "[2,3]", "[2,14]"), 14), "hole"),
            (file(&entry("F64", "[4294967296,4294967296,4294967296]", "[0,0]"), 0), "does not have"),
            (file(&entry("U8", "[1]", "[18446744073709551615,18446744073709551615]"), 0), "outside"),
        ] {
            let error = format!("{:#}", parse(&bytes).map(|_| ()).unwrap_err());
            let word = if word == "12 bytes" { "does not have 14 bytes" } else { word };
            assert!(error.contains(word), "{error} should say {word}");
        }
    }

    proptest! {
        #[test]
        fn what_is_planned_is_read(
            shapes in prop::collection::vec((prop::collection::vec(0u64..5, 0..3), any::<bool>()), 1..12),
            max in 1u64..200,
        ) {
            let tensors: Vec<_> = shapes
                .iter()
                .enumerate()
                .map(|(i, (shape, wide))| {
                    (format!("t.{i}"), if *wide { DType::F32 } else { DType::Bf16 }, shape.clone())
                })
                .collect();
            let plan = plan(&tensors, max).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let mut files = BTreeMap::new();
            for shard in &plan.shards {
                let mut bytes = shard.header.clone();
                bytes.resize(shard.len as usize, 0);
                let path = dir.path().join(&shard.name);
                std::fs::write(&path, bytes).unwrap();
                files.insert(shard.name.clone(), path);
                let data = shard.len - shard.header.len() as u64;
                prop_assert!(data <= max || shard.tensors.iter().filter(|tensor| tensor.2 > 0).count() == 1);
                prop_assert_eq!(shard.header.len() % 8, 0);
            }
            if let Some(index) = &plan.index {
                let path = dir.path().join(INDEX);
                std::fs::write(&path, index).unwrap();
                files.insert(INDEX.to_owned(), path);
            }
            let index = Index::read(&files).unwrap();
            prop_assert_eq!(index.tensors.len(), tensors.len());
            for (name, dtype, shape) in &tensors {
                let tensor = &index.tensors[name];
                prop_assert_eq!((&tensor.dtype, &tensor.shape), (dtype, shape));
            }
            if plan.index.is_some() {
                files.remove(&plan.shards[0].name);
                let error = format!("{:#}", Index::read(&files).unwrap_err());
                prop_assert!(error.contains("missing"), "{}", error);
            }
        }

        #[test]
        fn a_damaged_header_is_an_error_or_tensors_inside(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let tensors = [("a".to_owned(), DType::F32, vec![2, 2]), ("b".to_owned(), DType::Bf16, vec![3])];
            let shard = plan(&tensors, 1 << 20).unwrap().shards.remove(0);
            let mut bytes = shard.header.clone();
            bytes.resize(shard.len as usize, 0);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(tensors) = parse(&bytes) {
                for tensor in tensors.values() {
                    prop_assert!(tensor.at + tensor.len <= bytes.len() as u64);
                }
            }
        }
    }
}

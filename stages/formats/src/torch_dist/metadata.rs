//! `.metadata`: which tensor's which chunk is which record. A pickle of `torch.distributed.checkpoint`'s classes.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use flow_core::is_safe_name;

use super::{region::Region, writer::ChunkEntry};
use crate::{
    DType,
    dtype::byte_len,
    pickle::{Encoder, Pickle, View},
    zip::Member,
};

const MODULE: &str = "torch.distributed.checkpoint.metadata";

/// Where a record lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file, relative to the iteration's directory.
    pub file: String,
    /// Its first byte.
    pub at: u64,
    /// Its length in bytes.
    pub len: u64,
    /// It is bytes of a tensor, without a record around them: inside of this member of an archive.
    pub inside: Option<Member>,
}

/// A tensor under the name that the writer gave it.
#[derive(Debug)]
pub(super) struct RawTensor {
    pub dtype: DType,
    pub shape: Vec<u64>,
    pub chunks: Vec<(Region, Place)>,
}

/// The table.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub tensors: BTreeMap<String, RawTensor>,
    pub objects: BTreeMap<String, Place>,
    /// Tensors of a type that is not understood here, and which type: an error for who asks for them, no one else.
    pub foreign: BTreeMap<String, String>,
}

/// Reads the table.
///
/// # Errors
/// It is not DCP's, or contradicts itself: the error names the key.
pub(super) fn decode(bytes: &[u8]) -> Result<Table> {
    let pickle = Pickle::parse(bytes)?;
    let root = pickle.root();
    ensure!(
        root.class() == Some((MODULE, "Metadata")),
        "it holds {}, not torch.distributed.checkpoint's Metadata",
        root.describe()
    );
    let state = root.state().context("Metadata has no state")?;
    let storage = state.get("storage_data").context("Metadata has no storage_data")?;
    let mut places = HashMap::new();
    for (index, info) in storage.entries().context("storage_data is no dictionary")? {
        let (key, offset, place) = place_of(index, info).context("an entry of storage_data")?;
        places.insert((key, offset), place);
    }
    let mut table = Table::default();
    let keys = state.get("state_dict_metadata").and_then(View::entries).context("there is no state_dict_metadata")?;
    for (key, value) in keys {
        let key = key.as_str().context("a key that is no string")?;
        let mut read = || match value.class() {
            Some((MODULE, "TensorStorageMetadata")) => tensor_of(key, value, &mut places, &mut table),
            Some((MODULE, "BytesStorageMetadata")) => {
                let place = places.remove(&(key, None)).context("it has no record")?;
                table.objects.insert(key.to_owned(), place);
                Ok(())
            }
            _ => bail!("it is {}", value.describe()),
        };
        read().with_context(|| format!("`{key}`"))?;
    }
    Ok(table)
}

type Places<'a> = HashMap<(&'a str, Option<Vec<u64>>), Place>;

fn numbers(view: View<'_>) -> Option<Vec<u64>> {
    view.items()?.into_iter().map(View::as_u64).collect()
}

fn place_of<'a>(index: View<'a>, info: View<'a>) -> Result<(&'a str, Option<Vec<u64>>, Place)> {
    let index = index.state().context("an index without a state")?;
    let key = index.get("fqn").and_then(View::as_str).context("an index without a name")?;
    let offset = match index.get("offset") {
        None => None,
        Some(offset) if offset.is_none() => None,
        Some(offset) => Some(numbers(offset).with_context(|| format!("`{key}` has an offset that is no torch.Size"))?),
    };
    let info = info.state().with_context(|| format!("`{key}` has no place"))?;
    let number = |field: &str| info.get(field).and_then(View::as_u64);
    let file = info.get("relative_path").and_then(View::as_str).with_context(|| format!("`{key}` has no file"))?;
    ensure!(is_safe_name(file), "`{key}` lies in `{file}`, outside of the checkpoint");
    if info
        .get("transform_descriptors")
        .is_some_and(|list| !list.is_none() && list.items().is_none_or(|l| !l.is_empty()))
    {
        bail!("`{key}` is stored compressed or encrypted, which is not supported");
    }
    let (at, len) = (number("offset"), number("length"));
    let (at, len) = at.zip(len).with_context(|| format!("`{key}` has no offset and length"))?;
    Ok((key, offset, Place { file: file.to_owned(), at, len, inside: None }))
}

fn tensor_of<'a>(key: &'a str, value: View<'a>, places: &mut Places<'a>, table: &mut Table) -> Result<()> {
    let state = value.state().context("it has no state")?;
    let properties = state.get("properties").and_then(View::state).context("it has no properties")?;
    // The state of TensorProperties is a tuple; its first element is the type.
    let dtype = properties.items().and_then(|items| items.first().copied()).or_else(|| properties.get("dtype"));
    let (module, name) = dtype.and_then(View::global).context("it has no type")?;
    let Some(dtype) = DType::from_torch(name).filter(|_| module == "torch") else {
        table.foreign.insert(key.to_owned(), format!("{module}.{name}"));
        return Ok(());
    };
    let shape = state.get("size").and_then(numbers).context("it has no size")?;
    byte_len(dtype, &shape).with_context(|| format!("a tensor of shape {shape:?}"))?;
    let mut chunks = Vec::new();
    for chunk in state.get("chunks").and_then(View::items).context("it has no chunks")? {
        let state = chunk.state().context("a chunk without a state")?;
        let field = |name: &str| state.get(name).and_then(numbers).with_context(|| format!("a chunk without {name}"));
        let region = Region { start: field("offsets")?, size: field("sizes")? };
        check(&region, &shape)?;
        let place = places
            .remove(&(key, Some(region.start.clone())))
            .with_context(|| format!("the chunk at {:?} has no record, or two chunks are there", region.start))?;
        chunks.push((region, place));
    }
    table.tensors.insert(key.to_owned(), RawTensor { dtype, shape, chunks });
    Ok(())
}

/// A chunk lies inside of its tensor.
pub(super) fn check(region: &Region, shape: &[u64]) -> Result<()> {
    let fits = region.start.len() == shape.len()
        && region.size.len() == shape.len()
        && (0..shape.len()).all(|i| region.start[i].checked_add(region.size[i]).is_some_and(|end| end <= shape[i]));
    ensure!(fits, "the chunk {:?} at {:?} lies outside of shape {shape:?}", region.size, region.start);
    Ok(())
}

/// Writes the table. `entries` are sorted by key and offset; `name` and `id` are what DCP calls the checkpoint.
pub(super) fn encode(entries: &[ChunkEntry], name: &str, id: &str) -> Vec<u8> {
    let mut e = Encoder::new();
    e.new_object(MODULE, "Metadata").dict().mark();
    e.str("state_dict_metadata").dict().mark();
    for group in entries.chunk_by(|a, b| a.key == b.key) {
        e.str(&group[0].key);
        match group[0].dtype {
            Some(dtype) => tensor(&mut e, dtype, group),
            None => {
                e.new_object(MODULE, "BytesStorageMetadata").dict().build();
            }
        }
    }
    e.pairs();
    e.str("planner_data").none();
    e.str("storage_data").dict().mark();
    for entry in entries {
        e.new_object(MODULE, "MetadataIndex").dict().mark().str("fqn").str(&entry.key);
        if entry.dtype.is_some() {
            e.str("offset");
            size(&mut e, &entry.offset);
        }
        e.str("index").none().pairs().build();
        e.new_object("torch.distributed.checkpoint.filesystem", "_StorageInfo").dict().mark();
        e.str("relative_path").str(&entry.file);
        e.str("offset").int(entry.at as i64).str("length").int(entry.len as i64);
        e.str("transform_descriptors").none().pairs().build();
    }
    e.pairs();
    e.str("storage_meta").new_object(MODULE, "StorageMeta").dict().mark();
    e.str("checkpoint_id").str(name).str("save_id").str(id).str("load_id").none().str("modules").list();
    e.pairs().build();
    e.str("version").str("1.0.0").pairs().build();
    e.finish()
}

fn tensor(e: &mut Encoder, dtype: DType, chunks: &[ChunkEntry]) {
    e.new_object(MODULE, "TensorStorageMetadata").dict().mark();
    e.str("properties").new_object(MODULE, "TensorProperties").mark();
    e.global("torch", dtype.torch());
    e.global("torch.serialization", "_get_layout").mark().str("torch.strided").tuple().reduce();
    e.bool(false);
    e.global(MODULE, "_MEM_FORMAT_ENCODING").mark().int(0).tuple().reduce();
    e.bool(false).tuple().build();
    e.str("size");
    size(e, &chunks[0].shape);
    e.str("chunks").list().mark();
    for chunk in chunks {
        e.new_object(MODULE, "ChunkStorageMetadata").dict().mark().str("offsets");
        size(e, &chunk.offset);
        e.str("sizes");
        size(e, &chunk.size);
        e.pairs().build();
    }
    e.items().pairs().build();
}

fn size(e: &mut Encoder, numbers: &[u64]) {
    e.global("torch", "Size").mark().mark();
    for &number in numbers {
        e.int(number as i64);
    }
    e.tuple().tuple().reduce();
}

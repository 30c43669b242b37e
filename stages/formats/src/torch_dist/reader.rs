//! [`Reader`]: any box of any tensor of an iteration.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use anyhow::{Context, Result, ensure};

use super::{
    METADATA,
    canonical::canonical,
    home::Home,
    legacy,
    metadata::{Place, RawTensor, Table, decode},
    payload::{locate_tensor, read_object},
    region::{Region, overlap},
};
use crate::{DType, pickle::Pickle};

/// Bytes of one read when a box is put together from short runs.
const BLOCK: u64 = 1 << 20;
/// Files kept open: well below the usual limit of 1024.
const OPEN_FILES: usize = 256;

/// A tensor: its global shape, and how it is cut.
#[derive(Debug)]
pub struct TensorInfo {
    /// The type of its elements.
    pub dtype: DType,
    /// Its shape; layers are stacked on axis 0.
    pub shape: Vec<u64>,
    /// Its chunks, sorted by offset.
    pub chunks: Vec<Chunk>,
    /// The longest chunk on axis 0.
    longest: u64,
}

/// A chunk of a tensor.
#[derive(Debug)]
pub struct Chunk {
    region: Region,
    place: Place,
    /// Where its elements begin in the file, once someone has looked.
    data: OnceLock<u64>,
}

impl Chunk {
    /// Its first index on each axis.
    #[must_use]
    pub fn offset(&self) -> &[u64] {
        &self.region.start
    }

    /// Its length on each axis.
    #[must_use]
    pub fn size(&self) -> &[u64] {
        &self.region.size
    }

    /// The file it lies in, relative to the iteration's directory.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.place.file
    }
}

/// An iteration, open for reading. Nothing is mapped and no tensor is held; any number of threads may read.
#[derive(Debug)]
pub struct Reader {
    home: Home,
    tensors: BTreeMap<String, TensorInfo>,
    objects: BTreeMap<String, Place>,
    foreign: BTreeMap<String, String>,
    files: Mutex<HashMap<String, Arc<File>>>,
}

impl Reader {
    /// Reads the table of the iteration in a directory or a `.nemo`, or the tables of the ranks in Megatron-LM's older
    /// format. Keys are given in their canonical spelling: without `module.` and `model.`, layers stacked, fc1 in one.
    ///
    /// # Errors
    /// There is no DCP checkpoint, or its table is damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let home = Home::open(path)?;
        let table = if home.is_legacy() { legacy::read(path) } else { table(&home) };
        let mut table = table.with_context(|| format!("cannot use {}", path.display()))?;
        let chunks = table.tensors.values_mut().flat_map(|tensor| tensor.chunks.iter_mut().map(|(_, place)| place));
        chunks.chain(table.objects.values_mut()).try_for_each(|place| home.settle(place))?;
        let tensors = canonical(table.tensors).with_context(|| format!("cannot use {}", path.display()))?;
        let tensors = tensors.into_iter().map(|(key, raw)| (key, info(raw))).collect();
        Ok(Self { home, tensors, objects: table.objects, foreign: table.foreign, files: Mutex::default() })
    }

    /// The tensors, by key.
    #[must_use]
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The tensor of this key.
    #[must_use]
    pub fn tensor(&self, key: &str) -> Option<&TensorInfo> {
        self.tensors.get(key)
    }

    /// The keys of the objects, as they were written.
    pub fn objects(&self) -> impl Iterator<Item = &str> {
        self.objects.keys().map(String::as_str)
    }

    /// An object, as data: nothing in it is executed.
    ///
    /// # Errors
    /// It is not there or damaged.
    pub fn object(&self, key: &str) -> Result<Pickle> {
        let place = self.objects.get(key).with_context(|| self.absent(key))?;
        let file = self.file(&place.file)?;
        read_object(&*file, place.at, place.len).with_context(|| self.where_is(key, place))
    }

    /// Whether it lies in a `.nemo`, as NeMo 1 wrote it.
    #[must_use]
    pub fn is_archive(&self) -> bool {
        matches!(self.home, Home::Archive(..))
    }

    /// What it is kept as.
    #[must_use]
    pub fn container(&self) -> &'static str {
        match &self.home {
            Home::Archive(..) => ".nemo",
            Home::Dir(_) if self.home.is_legacy() => "mp_rank",
            Home::Dir(_) => "torch_dist",
        }
    }

    /// What is common to all ranks (`iteration`, `args`, …): `common.pt`, or the object `common_state/shard_0_1` that
    /// newer versions write in its place (inside of a list).
    ///
    /// # Errors
    /// It is damaged.
    pub fn common(&self) -> Result<Option<Pickle>> {
        if let Some((path, at, len)) = self.home.find("common.pt")? {
            let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            return read_object(&file, at, len).with_context(|| format!("cannot read {}", path.display())).map(Some);
        }
        match self.objects.contains_key("common_state/shard_0_1") {
            true => self.object("common_state/shard_0_1").map(Some),
            false => Ok(None),
        }
    }

    /// Reads a box of a tensor, `start..start + size` on each axis, into `out`: row-major, `size` elements.
    /// However the tensor is cut, each element is read once.
    ///
    /// # Errors
    /// There is no such tensor or box, `out` has another length, chunks are missing or overlap, or a record is
    /// damaged. With the key and the file.
    pub fn read(&self, key: &str, start: &[u64], size: &[u64], out: &mut [u8]) -> Result<()> {
        let tensor = self.tensors.get(key).with_context(|| self.absent(key))?;
        let want = Region { start: start.to_vec(), size: size.to_vec() };
        super::metadata::check(&want, &tensor.shape).with_context(|| format!("`{key}`"))?;
        let width = tensor.dtype.size();
        let elements: u64 = size.iter().product();
        ensure!(
            out.len() as u64 == elements * width,
            "`{key}`: a buffer of {} bytes for {elements} elements",
            out.len()
        );
        let mut found = 0;
        for chunk in tensor.near(&want) {
            let Some(common) = overlap(&chunk.region, &want) else { continue };
            found += common.elements();
            // More than there are is an overlap of chunks: said below, before anyone uses the bytes.
            if found > elements {
                break;
            }
            let file = self.file(&chunk.place.file)?;
            let data = self.locate(key, tensor.dtype, chunk, &file)?;
            gather(&file, data, width, &common, out).with_context(|| self.where_is(key, &chunk.place))?;
        }
        ensure!(
            found == elements,
            "`{key}`: its chunks {} at {start:?} (size {size:?})",
            if found < elements { "leave a hole" } else { "overlap" }
        );
        Ok(())
    }

    fn locate(&self, key: &str, dtype: DType, chunk: &Chunk, file: &File) -> Result<u64> {
        if let Some(&data) = chunk.data.get() {
            return Ok(data);
        }
        let place = &chunk.place;
        if place.bare {
            return Ok(place.at);
        }
        let data = locate_tensor(file, place.at, place.len, dtype, &chunk.region.size)
            .with_context(|| self.where_is(key, place))?;
        Ok(*chunk.data.get_or_init(|| data))
    }

    fn file(&self, name: &str) -> Result<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = files.get(name) {
            return Ok(Arc::clone(file));
        }
        if files.len() >= OPEN_FILES {
            files.clear();
        }
        let (path, ..) =
            self.home.find(name)?.with_context(|| format!("{} has no {name}", self.home.path().display()))?;
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let file = Arc::new(file);
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn absent(&self, key: &str) -> String {
        match self.foreign.get(key) {
            Some(dtype) => format!("`{key}` is of type {dtype}, which is not supported"),
            None => format!("{} has no `{key}`", self.home.path().display()),
        }
    }

    fn where_is(&self, key: &str, place: &Place) -> String {
        let path = self.home.path().join(&place.file);
        format!("cannot read `{key}` from {}, bytes {}..{}", path.display(), place.at, place.at + place.len)
    }
}

fn table(home: &Home) -> Result<Table> {
    let (path, at, len) = home.find(METADATA)?.with_context(|| format!("it has no {METADATA}"))?;
    let mut bytes = vec![0; usize::try_from(len)?];
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    file.read_exact_at(&mut bytes, at).with_context(|| format!("cannot read {}", path.display()))?;
    decode(&bytes).with_context(|| format!("{METADATA} is not what it should be"))
}

fn info(raw: RawTensor) -> TensorInfo {
    let mut chunks: Vec<_> =
        raw.chunks.into_iter().map(|(region, place)| Chunk { region, place, data: OnceLock::new() }).collect();
    chunks.sort_by(|a, b| a.region.start.cmp(&b.region.start));
    let longest = chunks.iter().filter_map(|chunk| chunk.region.size.first().copied()).max().unwrap_or(0);
    TensorInfo { dtype: raw.dtype, shape: raw.shape, chunks, longest }
}

impl TensorInfo {
    /// The chunks that may touch a box: those whose reach on axis 0 does.
    fn near(&self, want: &Region) -> &[Chunk] {
        let (Some(&start), Some(&size)) = (want.start.first(), want.size.first()) else { return &self.chunks };
        let from = self.chunks.partition_point(|chunk| chunk.region.start[0].saturating_add(self.longest) <= start);
        let to = self.chunks.partition_point(|chunk| chunk.region.start[0] < start + size);
        &self.chunks[from..to.max(from)]
    }
}

/// Copies what a chunk (whose elements begin at `data`) and the wanted box have in common. Long runs are read where
/// they belong; short ones (a matrix cut along its columns) through a block that holds many of them.
fn gather(file: &File, data: u64, width: u64, common: &super::region::Overlap, out: &mut [u8]) -> Result<()> {
    let run = common.run * width;
    let place = |at: u64| usize::try_from(at).map(|at| at..at + run as usize);
    let read = |at: u64, out: &mut [u8]| {
        file.read_exact_at(out, at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => anyhow::anyhow!("the file ends before byte {}", at + out.len() as u64),
            _ => error.into(),
        })
    };
    if run >= BLOCK / 16 {
        for (from, to) in common.runs() {
            read(data + from * width, &mut out[place(to * width)?])?;
        }
        return Ok(());
    }
    let mut block = Vec::new();
    let mut runs = common.runs().peekable();
    while let Some(&(first, _)) = runs.peek() {
        // Runs come in the order of the chunk, so a block begins with the first that is not yet copied. What lies
        // between two runs is read too, as long as it is not much more than what is wanted.
        let mut inside = Vec::new();
        let (mut end, mut wanted) = (first * width, 0);
        while let Some(&(from, to)) = runs.peek() {
            let next = from * width + run;
            let span = next - first * width;
            if !inside.is_empty() && (span > BLOCK || span > 4 * (wanted + run)) {
                break;
            }
            (end, wanted) = (next, wanted + run);
            inside.push((from * width - first * width, to * width));
            runs.next();
        }
        block.resize((end - first * width) as usize, 0);
        read(data + first * width, &mut block)?;
        for (from, to) in inside {
            out[place(to)?].copy_from_slice(&block[place(from)?]);
        }
    }
    Ok(())
}

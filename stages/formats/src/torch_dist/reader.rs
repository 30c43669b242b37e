//! [`Reader`]: any box of any tensor of an iteration.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::{Context, Result, ensure};

use super::{
    METADATA,
    canonical::canonical,
    home::Home,
    legacy,
    metadata::{Place, RawTensor, Table, decode},
    payload::{locate_tensor, read_object},
    region::{Overlap, Region, overlap},
    sums::Sum,
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
    /// Where its elements begin in the file, and the checksum of what they lie in, once someone has looked.
    data: OnceLock<(u64, Arc<Sum>)>,
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
    /// Of the members that were read from, by file and first byte.
    sums: Mutex<BTreeMap<(String, u64), Arc<Sum>>>,
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
        Ok(Self {
            home,
            tensors,
            objects: table.objects,
            foreign: table.foreign,
            files: Mutex::default(),
            sums: Mutex::default(),
        })
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
    /// However the tensor is cut, each element is read once. The checksum of a record is compared when the last of its bytes
    /// was asked for, and what nobody asks for by [`Reader::check_rest`].
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
            let (data, sum) = self.locate(key, tensor.dtype, chunk, &file)?;
            gather(&file, (*data, sum), width, &common, out).with_context(|| self.where_is(key, &chunk.place))?;
        }
        ensure!(
            found == elements,
            "`{key}`: its chunks {} at {start:?} (size {size:?})",
            if found < elements { "leave a hole" } else { "overlap" }
        );
        Ok(())
    }

    /// Reads what nobody asked for of the records that were read from (rows that pad a vocabulary), so that each one's checksum
    /// is compared.
    ///
    /// # Errors
    /// One is damaged: with the file.
    pub fn check_rest(&self) -> Result<()> {
        let sums: Vec<_> = lock(&self.sums).iter().map(|((name, _), sum)| (name.clone(), Arc::clone(sum))).collect();
        let mut block = Vec::new();
        for (name, sum) in sums {
            let check = |block: &mut Vec<u8>| -> Result<()> {
                for mut gap in sum.unseen() {
                    let file = self.file(&name)?;
                    while gap.start < gap.end {
                        block.resize((gap.end - gap.start).min(BLOCK) as usize, 0);
                        read_exactly(&file, gap.start, block)?;
                        sum.saw(gap.start, block)?;
                        gap.start += block.len() as u64;
                    }
                }
                Ok(())
            };
            check(&mut block).with_context(|| format!("cannot use {}", self.home.path().join(&name).display()))?;
        }
        Ok(())
    }

    fn locate<'a>(&self, key: &str, dtype: DType, chunk: &'a Chunk, file: &File) -> Result<&'a (u64, Arc<Sum>)> {
        if let Some(data) = chunk.data.get() {
            return Ok(data);
        }
        let place = &chunk.place;
        let (data, member) = match place.inside {
            Some(member) => (place.at, member),
            None => locate_tensor(file, place.at, place.len, dtype, &chunk.region.size)
                .with_context(|| self.where_is(key, place))?,
        };
        // Chunks may share one.
        let at = (place.file.clone(), member.data);
        let sum = Arc::clone(lock(&self.sums).entry(at).or_insert_with(|| Arc::new(Sum::new(member))));
        Ok(chunk.data.get_or_init(|| (data, sum)))
    }

    fn file(&self, name: &str) -> Result<Arc<File>> {
        let mut files = lock(&self.files);
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

fn lock<T>(it: &Mutex<T>) -> MutexGuard<'_, T> {
    it.lock().unwrap_or_else(PoisonError::into_inner)
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

fn read_exactly(file: &File, at: u64, out: &mut [u8]) -> Result<()> {
    file.read_exact_at(out, at).map_err(|error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => anyhow::anyhow!("the file ends before byte {}", at + out.len() as u64),
        _ => error.into(),
    })
}

/// Copies what a chunk (whose elements begin at `data`) and the wanted box have in common. Long runs are read where
/// they belong; short ones (a matrix cut along its columns) through a block that holds many of them.
fn gather(file: &File, (data, sum): (u64, &Sum), width: u64, common: &Overlap, out: &mut [u8]) -> Result<()> {
    let run = common.run * width;
    let place = |at: u64| usize::try_from(at).map(|at| at..at + run as usize);
    let read = |at: u64, out: &mut [u8]| {
        read_exactly(file, at, out)?;
        sum.saw(at, out)
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

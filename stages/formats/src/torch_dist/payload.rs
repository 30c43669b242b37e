//! What a record holds: a torch archive of one tensor or one object.

use anyhow::{Context, Result, ensure};

use crate::{
    DType,
    dtype::byte_len,
    pickle::{Pickle, Value, View},
    zip::{Archive, Data, Frame, Member, ReadAt, frame},
};

/// A pickle inside of a record is small: it describes one tensor, or holds an object.
const LONGEST_PICKLE: u64 = 256 << 20;

/// The archive around a tensor's bytes, as `torch.save` of it.
pub(super) fn tensor_frame(dtype: DType, shape: &[u64], len: u64, crc: u32) -> Frame {
    let pickle = tensor(dtype, shape, 0).pickle();
    frame(
        "archive",
        &[
            ("data.pkl", Data::Bytes(&pickle)),
            (".format_version", Data::Bytes(b"1")),
            (".storage_alignment", Data::Bytes(b"64")),
            ("byteorder", Data::Bytes(b"little")),
            ("data/0", Data::Elsewhere { len, crc }),
            ("version", Data::Bytes(b"3\n")),
        ],
    )
}

/// The value of a contiguous tensor over the whole of storage number `storage`.
pub(super) fn tensor(dtype: DType, shape: &[u64], storage: usize) -> Value {
    // Shapes come from files and buffers that exist: they fit into 63 bits.
    let int = |n: u64| Value::Int(n as i64);
    let mut strides = vec![1u64; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    let id = Value::Tuple(vec![
        Value::str("storage"),
        Value::Global("torch", dtype.storage()),
        Value::str(storage.to_string()),
        Value::str("cpu"),
        int(shape.iter().product()),
    ]);
    let ordered_dict = Value::Call(Box::new(Value::Global("collections", "OrderedDict".into())), vec![]);
    Value::Call(
        Box::new(Value::Global("torch._utils", "_rebuild_tensor_v2".into())),
        vec![
            Value::Persistent(Box::new(id)),
            Value::Int(0),
            Value::Tuple(shape.iter().map(|&n| int(n)).collect()),
            Value::Tuple(strides.into_iter().map(int).collect()),
            Value::Bool(false),
            ordered_dict,
        ],
    )
}

/// `torch.save` of a value whose tensors lie over `storages`, as a file with this root directory.
#[must_use]
pub fn torch_save(root: &str, value: &Value, storages: &[Vec<u8>]) -> Vec<u8> {
    let pickle = value.pickle();
    let names: Vec<_> = (0..storages.len()).map(|i| format!("data/{i}")).collect();
    let mut members = vec![
        ("data.pkl", Data::Bytes(&pickle)),
        (".format_version", Data::Bytes(b"1")),
        (".storage_alignment", Data::Bytes(b"64")),
        ("byteorder", Data::Bytes(b"little")),
    ];
    members.extend(names.iter().zip(storages).map(|(name, bytes)| (name.as_str(), Data::Bytes(bytes))));
    members.push(("version", Data::Bytes(b"3\n")));
    frame(root, &members).before
}

/// Reads the object in the archive at `start..start + len`: a pickle, whose tensors are left as they are.
pub(super) fn read_object<R: ReadAt + ?Sized>(file: &R, start: u64, len: u64) -> Result<Pickle> {
    let archive = Archive::open(file, start, len)?;
    Pickle::parse(&archive.read(file, "data.pkl", LONGEST_PICKLE)?)
}

/// The pickle of an archive whose tensors are to be read too.
pub(super) fn read_pickle<R: ReadAt + ?Sized>(archive: &Archive, file: &R) -> Result<Pickle> {
    if archive.member("byteorder").is_some() {
        let order = archive.read(file, "byteorder", 16)?;
        ensure!(order == b"little", "its bytes are in {} order", String::from_utf8_lossy(&order));
    }
    Pickle::parse(&archive.read(file, "data.pkl", LONGEST_PICKLE)?)
}

/// Where the bytes of the tensor in the archive at `start..start + len` begin, and in which member: it must be what the table
/// says.
pub(super) fn locate_tensor<R: ReadAt + ?Sized>(
    file: &R,
    start: u64,
    len: u64,
    dtype: DType,
    shape: &[u64],
) -> Result<(u64, Member)> {
    let archive = Archive::open(file, start, len)?;
    let pickle = read_pickle(&archive, file)?;
    let found = Found::read(pickle.root()).context("its pickle is not a tensor")?;
    ensure!(found.dtype == dtype, "it is {}, and the table says {}", found.dtype.torch(), dtype.torch());
    let elements = |shape: &[u64]| shape.iter().product::<u64>();
    ensure!(elements(&found.shape) == elements(shape), "it has shape {:?}, and the table says {shape:?}", found.shape);
    ensure!(found.is_contiguous(), "its elements do not lie in a row (strides {:?})", found.strides);
    let (at, _, member) = found.place(&archive)?;
    Ok((at, member))
}

/// A tensor as its pickle describes it.
pub(super) struct Found {
    pub dtype: DType,
    storage: String,
    offset: u64,
    pub shape: Vec<u64>,
    strides: Vec<u64>,
}

impl Found {
    /// None for what is no tensor, or one that is not understood.
    pub fn read(view: View<'_>) -> Option<Self> {
        let view = match view.class()? {
            // A parameter: its first argument is the tensor.
            ("torch._utils", "_rebuild_parameter") => *view.args()?.first()?,
            _ => view,
        };
        if view.class()? != ("torch._utils", "_rebuild_tensor_v2") {
            return None;
        }
        let args = view.args()?;
        let id = args.first()?.persistent()?.items()?;
        let (module, class) = id.get(1)?.global()?;
        let numbers = |view: &View<'_>| view.items()?.iter().map(|n| n.as_u64()).collect::<Option<Vec<u64>>>();
        let (shape, strides) = (numbers(args.get(2)?)?, numbers(args.get(3)?)?);
        shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
        Some(Self {
            dtype: DType::from_storage(class).filter(|_| module == "torch")?,
            storage: id.get(2)?.as_str()?.to_owned(),
            offset: args.get(1)?.as_u64()?,
            strides: (shape.len() == strides.len()).then_some(strides)?,
            shape,
        })
    }

    /// Where its bytes are in the file that the archive lies in: the first, how many, and in which member.
    pub fn place(&self, archive: &Archive) -> Result<(u64, u64, Member)> {
        let storage = *archive
            .member(&format!("data/{}", self.storage))
            .with_context(|| format!("storage `{}` is missing", self.storage))?;
        let bytes = byte_len(self.dtype, &self.shape).context("too large")?;
        let skip = self.offset.checked_mul(self.dtype.size()).context("too large")?;
        ensure!(
            skip.checked_add(bytes).is_some_and(|end| end <= storage.len),
            "it needs {bytes} bytes of a storage that has {}",
            storage.len
        );
        Ok((storage.data + skip, bytes, storage))
    }

    /// Whether its elements lie in a row.
    pub fn is_contiguous(&self) -> bool {
        let mut stride = 1;
        self.shape.contains(&0)
            || self.shape.iter().zip(&self.strides).rev().all(|(&size, &found)| {
                let fits = size == 1 || found == stride;
                stride *= size;
                fits
            })
    }
}

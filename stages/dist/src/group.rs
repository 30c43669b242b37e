//! [`Group`]: some ranks that move tensors between them.

use std::{
    env,
    ffi::c_int,
    fmt,
    ptr::{self, NonNull},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use tch::Tensor;

use crate::{
    Store,
    ffi::{self, CGroup, c_string, call},
    store::millis,
};

/// How tensors of several ranks become one. The numbers are c10d's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum.
    Sum = 0,
    /// Their mean.
    Avg = 1,
    /// The largest element by element.
    Max = 4,
}

/// What a collective does to a tensor, as the shim numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Identity = 0,
    AllReduce = 1,
    AllGather = 2,
    ReduceScatter = 3,
}

/// Ranks that work together (c10d's `ProcessGroupGloo`), or one rank alone, for which every collective is the identity:
/// whoever uses a group need not ask. Cheap to clone.
///
/// All ranks of a group call the same collectives in the same order. A rank that does not come makes the others' call
/// fail after the timeout, one that dies at once. After an error the group is of no use.
#[derive(Clone)]
pub struct Group {
    inner: Option<Arc<Handle>>,
    rank: usize,
    size: usize,
    name: Arc<str>,
}

struct Handle(NonNull<CGroup>);

// SAFETY: ProcessGroupGloo may be used from several threads (autograd's threads do); calls are ordered by their caller.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by flow_group_open, freed here alone.
        unsafe { ffi::flow_group_close(self.0.as_ptr()) }
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({}: {} of {})", self.name, self.rank, self.size)
    }
}

impl Group {
    /// A rank alone.
    #[must_use]
    pub fn solo() -> Self {
        Self { inner: None, rank: 0, size: 1, name: "solo".into() }
    }

    /// Meets the others under `name`, which is unique to this group among all that use the store. `host` is where the
    /// store is: on this machine, the ranks talk over its loopback; else over the interface `GLOO_SOCKET_IFNAME`, or
    /// what the host's name resolves to. With `size` 1 it is [`Group::solo`] and nobody is met.
    ///
    /// # Errors
    /// The others did not come in time, or cannot be connected to.
    pub fn open(store: &Store, host: &str, name: &str, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        ensure!(rank < size, "rank {rank} of a group of {size}");
        if size == 1 {
            return Ok(Self { name: name.into(), ..Self::solo() });
        }
        let address = c_string(if matches!(host, "localhost" | "127.0.0.1" | "::1") { "127.0.0.1" } else { "" })?;
        let interface = c_string(&env::var("GLOO_SOCKET_IFNAME").unwrap_or_default())?;
        let c_name = c_string(name)?;
        let mut group = ptr::null_mut();
        call(|error| {
            // SAFETY: all pointers are valid for the call.
            unsafe {
                ffi::flow_group_open(
                    store.as_ptr(),
                    c_name.as_ptr(),
                    c_int(rank),
                    c_int(size),
                    millis(timeout),
                    address.as_ptr(),
                    interface.as_ptr(),
                    &mut group,
                    error,
                )
            }
        })
        .with_context(|| format!("the {size} ranks of `{name}` did not find each other"))?;
        let handle = Handle(NonNull::new(group).context("libtorch returned no group")?);
        Ok(Self { inner: Some(Arc::new(handle)), rank, size, name: name.into() })
    }

    /// This rank within the group.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks it has.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Reduces `x` in place over the ranks.
    ///
    /// # Errors
    /// A rank is gone or late; libtorch's text.
    pub fn all_reduce(&self, x: &Tensor, how: Reduce) -> Result<()> {
        self.each("all-reduce", |group, error| {
            // SAFETY: both pointers are valid for the call.
            unsafe { ffi::flow_all_reduce(group, x.as_ptr(), how as c_int, error) }
        })
    }

    /// Overwrites `x` with that of rank `root`.
    ///
    /// # Errors
    /// A rank is gone or late.
    pub fn broadcast(&self, x: &Tensor, root: usize) -> Result<()> {
        self.each("broadcast", |group, error| {
            // SAFETY: both pointers are valid for the call.
            unsafe { ffi::flow_broadcast(group, x.as_ptr(), c_int(root), error) }
        })
    }

    /// Waits until every rank is here.
    ///
    /// # Errors
    /// A rank is gone or late.
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: the pointer is valid for the call.
        self.each("barrier", |group, error| unsafe { ffi::flow_barrier(group, error) })
    }

    /// The tensors of all ranks, one after the other along `dim`.
    ///
    /// # Errors
    /// A rank is gone or late.
    pub fn all_gather(&self, x: &Tensor, dim: i64) -> Result<Tensor> {
        self.collective("all-gather", x, Op::AllGather, dim)
    }

    /// This rank's part along `dim` of the sum over the ranks.
    ///
    /// # Errors
    /// `dim` does not split evenly; a rank is gone or late.
    pub fn reduce_scatter(&self, x: &Tensor, dim: i64) -> Result<Tensor> {
        self.collective("reduce-scatter", x, Op::ReduceScatter, dim)
    }

    fn collective(&self, what: &str, x: &Tensor, op: Op, dim: i64) -> Result<Tensor> {
        let mut out = ptr::null_mut();
        self.each(what, |group, error| {
            // SAFETY: all pointers are valid for the call.
            unsafe { ffi::flow_collective(group, x.as_ptr(), op as i64, dim, &mut out, error) }
        })?;
        // SAFETY: the shim gave us a tensor of our own.
        Ok(if out.is_null() { x.shallow_clone() } else { unsafe { Tensor::from_ptr(out) } })
    }

    /// As [`Group::collective`], and part of the autograd graph: `backward` is done to the gradient.
    pub(crate) fn differentiable(&self, what: &str, x: &Tensor, ops: (Op, Op), dim: i64) -> Result<Tensor> {
        let mut out = ptr::null_mut();
        self.each(what, |group, error| {
            // SAFETY: all pointers are valid for the call.
            unsafe {
                ffi::flow_autograd_collective(group, x.as_ptr(), ops.0 as i64, ops.1 as i64, dim, &mut out, error)
            }
        })?;
        // SAFETY: the shim gave us a tensor of our own.
        Ok(if out.is_null() { x.shallow_clone() } else { unsafe { Tensor::from_ptr(out) } })
    }

    /// Calls the shim, unless the rank is alone.
    fn each(&self, what: &str, function: impl FnOnce(*mut CGroup, *mut *mut std::ffi::c_char) -> c_int) -> Result<()> {
        let Some(handle) = &self.inner else { return Ok(()) };
        call(|error| function(handle.0.as_ptr(), error))
            .with_context(|| format!("{what} over the {} ranks of `{}` failed", self.size, self.name))
    }
}

fn c_int(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

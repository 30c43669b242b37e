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
    Nccl, Store,
    ffi::{self, CGroup, CPending, c_string, call},
    route,
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

/// Ranks that work together (c10d's `ProcessGroupGloo` or `ProcessGroupNCCL`), or one rank alone, for which every collective is the identity:
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

// SAFETY: c10d's groups may be used from several threads (autograd's threads do); calls are ordered by their caller.
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
    /// store is: the ranks talk over the interface from which it is reached, or that of `GLOO_SOCKET_IFNAME`. With `size` 1 it is [`Group::solo`] and nobody is met.
    ///
    /// # Errors
    /// The others did not come in time, or cannot be connected to.
    pub fn open(store: &Store, host: &str, name: &str, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        ensure!(rank < size, "rank {rank} of a group of {size}");
        if size == 1 {
            return Ok(Self { name: name.into(), ..Self::solo() });
        }
        let interface = env::var("GLOO_SOCKET_IFNAME").unwrap_or_default();
        let address = if interface.is_empty() { route::to(host)?.to_string() } else { String::new() };
        let (address, interface) = (c_string(&address)?, c_string(&interface)?);
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
        Self::of(group, rank, size, name)
    }

    /// As [`Group::open`], for ranks that have a GPU of this host each: their tensors move by `nccl`.
    ///
    /// # Errors
    /// NCCL's.
    pub fn open_nccl(
        store: &Store,
        nccl: &Nccl,
        name: &str,
        rank: usize,
        size: usize,
        timeout: Duration,
    ) -> Result<Self> {
        ensure!(rank < size, "rank {rank} of a group of {size}");
        if size == 1 {
            return Ok(Self { name: name.into(), ..Self::solo() });
        }
        let c_name = c_string(name)?;
        let mut group = ptr::null_mut();
        call(|error| {
            // SAFETY: all pointers are valid for the call; `nccl` holds the function that the shim calls.
            unsafe {
                ffi::flow_group_open_nccl(
                    store.as_ptr(),
                    c_name.as_ptr(),
                    c_int(rank),
                    c_int(size),
                    millis(timeout),
                    nccl.0,
                    &mut group,
                    error,
                )
            }
        })
        .with_context(|| format!("NCCL does not join the {size} ranks of `{name}`"))?;
        Self::of(group, rank, size, name)
    }

    fn of(group: *mut CGroup, rank: usize, size: usize, name: &str) -> Result<Self> {
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

    /// Begins to sum a flat buffer over the ranks, in place. With `scatter`, in the end only this rank's part of it (they
    /// are equal, in the order of ranks) holds the sum, and the rest nothing of use.
    ///
    /// # Errors
    /// The buffer does not split evenly; a rank is gone.
    pub fn start_reduce(&self, bucket: &Tensor, scatter: bool) -> Result<Pending> {
        self.start("reduce", |group, out, error| {
            // SAFETY: all pointers are valid for the call.
            unsafe { ffi::flow_reduce_start(group, bucket.as_ptr(), c_int::from(scatter), out, error) }
        })
    }

    /// Begins to give every rank the others' parts of a flat buffer, in place.
    ///
    /// # Errors
    /// The buffer does not split evenly; a rank is gone.
    pub fn start_gather(&self, bucket: &Tensor) -> Result<Pending> {
        self.start("gather", |group, out, error| {
            // SAFETY: all pointers are valid for the call.
            unsafe { ffi::flow_gather_start(group, bucket.as_ptr(), out, error) }
        })
    }

    /// Begins to send a tensor to rank `to` of the group.
    ///
    /// # Errors
    /// The rank is gone.
    pub fn start_send(&self, x: &Tensor, to: usize) -> Result<Pending> {
        self.start("send", |group, out, error| {
            // SAFETY: all pointers are valid for the call.
            unsafe { ffi::flow_send_start(group, x.as_ptr(), c_int(to), out, error) }
        })
    }

    /// Overwrites `x` with what rank `from` sends. What a rank sends comes in order.
    ///
    /// # Errors
    /// The rank is gone or late.
    pub fn receive(&self, x: &Tensor, from: usize) -> Result<()> {
        self.each("receive", |group, error| {
            // SAFETY: both pointers are valid for the call.
            unsafe { ffi::flow_receive(group, x.as_ptr(), c_int(from), error) }
        })
    }

    fn start(
        &self,
        what: &str,
        function: impl FnOnce(*mut CGroup, *mut *mut CPending, *mut *mut std::ffi::c_char) -> c_int,
    ) -> Result<Pending> {
        let mut pending = ptr::null_mut();
        self.each(what, |group, error| function(group, &mut pending, error))?;
        Ok(Pending { inner: NonNull::new(pending), group: self.clone(), what: what.to_owned() })
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
        call(|error| function(handle.0.as_ptr(), error)).with_context(|| self.failed(what))
    }

    fn failed(&self, what: &str) -> String {
        format!("{what} over the {} ranks of `{}` failed", self.size, self.name)
    }
}

/// A transfer that goes on by itself. What it reads or writes must be left alone until [`Pending::wait`].
#[must_use = "its result is there after `wait`"]
pub struct Pending {
    inner: Option<NonNull<CPending>>,
    group: Group,
    what: String,
}

impl Pending {
    /// Waits until it is done.
    ///
    /// # Errors
    /// A rank is gone or late.
    pub fn wait(mut self) -> Result<()> {
        let Some(pending) = self.inner.take() else { return Ok(()) };
        // SAFETY: made by the shim, and given back to it once: `inner` is empty now.
        call(|error| unsafe { ffi::flow_pending_wait(pending.as_ptr(), error) })
            .with_context(|| self.group.failed(&self.what))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(pending) = self.inner {
            // SAFETY: made by the shim, freed here alone. c10d keeps its own hold on the memory until it is done.
            unsafe { ffi::flow_pending_drop(pending.as_ptr()) }
        }
    }
}

fn c_int(number: usize) -> c_int {
    c_int::try_from(number).unwrap_or(c_int::MAX)
}

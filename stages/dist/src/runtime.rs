//! The libtorch in this process: its version, determinism, and the GPU half that is loaded only where there is one.

use std::{
    ffi::{CStr, CString, OsStr, c_int, c_void},
    mem::MaybeUninit,
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    ptr,
};

use anyhow::{Result, bail};
use tch::Tensor;

use crate::ffi::{self, c_string, call};

/// The version of libtorch that the shim was compiled against: `2.11.0`.
#[must_use]
pub fn libtorch_version() -> &'static str {
    // SAFETY: a string literal of the shim.
    unsafe { CStr::from_ptr(ffi::flow_libtorch_version()) }.to_str().unwrap_or("unknown")
}

/// From now on the same input gives the same bits, or an error for what cannot promise that.
///
/// # Errors
/// libtorch refuses.
pub fn be_deterministic() -> Result<()> {
    // SAFETY: the pointer is valid for the call.
    call(|error| unsafe { ffi::flow_be_deterministic(error) })
}

/// The most bytes that tensors took at one time on GPU `device`.
///
/// # Errors
/// There is no such GPU, or no GPU libraries.
pub fn peak_device_bytes(device: usize) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: both pointers are valid for the call.
    call(|error| unsafe {
        ffi::flow_peak_device_bytes(c_int::try_from(device).unwrap_or(c_int::MAX), &mut bytes, error)
    })?;
    Ok(bytes.max(0).unsigned_abs())
}

/// The memory of GPU `device`, all of it.
///
/// # Errors
/// There is no such GPU, or no GPU libraries.
pub fn device_bytes(device: usize) -> Result<u64> {
    let mut bytes = 0;
    // SAFETY: both pointers are valid for the call.
    call(|error| unsafe { ffi::flow_device_bytes(c_int::try_from(device).unwrap_or(c_int::MAX), &mut bytes, error) })?;
    Ok(bytes.max(0).unsigned_abs())
}

/// A copy of a tensor of the host's in memory that a GPU reads and writes at full speed.
///
/// # Errors
/// There is no GPU, or no such memory left.
pub fn pinned(x: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    // SAFETY: all pointers are valid for the call.
    call(|error| unsafe { ffi::flow_pinned(x.as_ptr(), &mut out, error) })?;
    // SAFETY: the shim gave us a tensor of our own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The numbers of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled.
    pub weight_decay: f64,
}

/// Step `step` (from 1) of AdamW, in place, by libtorch's fused kernel: weight, gradient, first and second moment, all
/// fp32 and of one shape.
///
/// # Errors
/// The tensors do not fit each other.
pub fn adamw(tensors: [&Tensor; 4], step: u64, numbers: &AdamW) -> Result<()> {
    let [weight, gradient, exp_avg, exp_avg_sq] = tensors.map(Tensor::as_ptr);
    let AdamW { lr, betas, eps, weight_decay } = *numbers;
    // SAFETY: all pointers are valid for the call.
    call(|error| unsafe {
        ffi::flow_adamw(
            weight,
            gradient,
            exp_avg,
            exp_avg_sq,
            step as f64,
            lr,
            betas[0],
            betas[1],
            weight_decay,
            eps,
            error,
        )
    })
}

/// Loads libtorch's GPU half, `libtorch_cuda.so`, so that CUDA is there for whoever asks afterwards. To be called
/// before anything asks: libtorch remembers a "no". Looked for beside the `libtorch_cpu.so` of this process, then
/// where the loader looks. Without an NVIDIA driver nothing is loaded.
///
/// # Errors
/// Why there is no CUDA.
pub fn load_cuda() -> Result<()> {
    if let Err(why) = open_library("libcuda.so.1") {
        bail!("no NVIDIA driver: {why}");
    }
    if let Some(beside) =
        libtorch_cpu().and_then(|path| Some(path.canonicalize().ok()?.with_file_name("libtorch_cuda.so")))
        && beside.exists()
    {
        return open_library(&beside.to_string_lossy()).map(drop);
    }
    open_library("libtorch_cuda.so").map(drop)
}

/// Where the `libtorch_cpu.so` of this process was loaded from.
fn libtorch_cpu() -> Option<PathBuf> {
    let mut found = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the address is of a function of libtorch_cpu.so, `found` is ours to fill, and is read only on success.
    unsafe {
        let symbol = libc::dlsym(libc::RTLD_DEFAULT, c"_ZN2at13globalContextEv".as_ptr());
        if symbol.is_null() || libc::dladdr(symbol.cast_const(), found.as_mut_ptr()) == 0 {
            return None;
        }
        let name = found.assume_init().dli_fname;
        (!name.is_null()).then(|| PathBuf::from(OsStr::from_bytes(CStr::from_ptr(name).to_bytes())))
    }
}

/// Loads a shared library for the life of the process, its symbols visible to all.
pub(crate) fn open_library(name: &str) -> Result<*mut c_void> {
    let c_name: CString = c_string(name)?;
    // SAFETY: loading runs the library's constructors; these are NVIDIA's and libtorch's own.
    let handle: *mut c_void = unsafe { libc::dlopen(c_name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        // SAFETY: dlerror returns null or a string that is valid until the next call of its kind on this thread.
        let why = unsafe {
            let text = libc::dlerror();
            if text.is_null() { name.to_owned() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        bail!("{why}");
    }
    Ok(handle)
}

//! The shim's functions as C sees them, and [`call`], which makes its errors ours.

use std::{
    ffi::{CStr, CString, c_char, c_int},
    ptr,
};

use anyhow::{Context, Result, anyhow};
use torch_sys::C_tensor;

/// `flow::Store` of `shim/group.cpp`.
#[repr(C)]
pub struct CStore {
    _private: [u8; 0],
}

/// `flow::Group` of `shim/shim.hpp`.
#[repr(C)]
pub struct CGroup {
    _private: [u8; 0],
}

/// `flow::Pending` of `shim/transfers.cpp`.
#[repr(C)]
pub struct CPending {
    _private: [u8; 0],
}

/// `flow_nccl_open` of the library that holds NCCL, as `shim/group.cpp` calls it.
pub type OpenNccl = unsafe extern "C" fn();

unsafe extern "C" {
    pub fn flow_free(text: *mut c_char);
    pub fn flow_libtorch_version() -> *const c_char;
    pub fn flow_be_deterministic(error: *mut *mut c_char) -> c_int;
    pub fn flow_device_bytes(device: c_int, bytes: *mut i64, error: *mut *mut c_char) -> c_int;
    pub fn flow_peak_device_bytes(device: c_int, bytes: *mut i64, error: *mut *mut c_char) -> c_int;
    pub fn flow_pinned(x: *const C_tensor, out: *mut *mut C_tensor, error: *mut *mut c_char) -> c_int;

    pub fn flow_adamw(
        weight: *const C_tensor,
        gradient: *const C_tensor,
        exp_avg: *const C_tensor,
        exp_avg_sq: *const C_tensor,
        step: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        error: *mut *mut c_char,
    ) -> c_int;

    pub fn flow_store_open(
        host: *const c_char,
        port: u16,
        listening_fd: c_int,
        world: usize,
        timeout_ms: i64,
        out: *mut *mut CStore,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_store_close(store: *mut CStore);
    pub fn flow_store_set(
        store: *mut CStore,
        key: *const c_char,
        bytes: *const u8,
        length: usize,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_store_get(
        store: *mut CStore,
        key: *const c_char,
        timeout_ms: i64,
        bytes: *mut *mut u8,
        length: *mut usize,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_store_has(store: *mut CStore, key: *const c_char, has: *mut c_int, error: *mut *mut c_char) -> c_int;
    pub fn flow_store_add(
        store: *mut CStore,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
        error: *mut *mut c_char,
    ) -> c_int;

    pub fn flow_group_open(
        store: *mut CStore,
        name: *const c_char,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        address: *const c_char,
        interface: *const c_char,
        out: *mut *mut CGroup,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_group_open_nccl(
        store: *mut CStore,
        name: *const c_char,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        open: OpenNccl,
        out: *mut *mut CGroup,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_group_close(group: *mut CGroup);
    pub fn flow_all_reduce(group: *mut CGroup, x: *const C_tensor, op: c_int, error: *mut *mut c_char) -> c_int;
    pub fn flow_broadcast(group: *mut CGroup, x: *const C_tensor, root: c_int, error: *mut *mut c_char) -> c_int;
    pub fn flow_barrier(group: *mut CGroup, error: *mut *mut c_char) -> c_int;
    pub fn flow_collective(
        group: *mut CGroup,
        x: *const C_tensor,
        op: i64,
        dim: i64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_autograd_collective(
        group: *mut CGroup,
        x: *const C_tensor,
        forward_op: i64,
        backward_op: i64,
        dim: i64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_reduce_start(
        group: *mut CGroup,
        bucket: *const C_tensor,
        scatter: c_int,
        out: *mut *mut CPending,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_gather_start(
        group: *mut CGroup,
        bucket: *const C_tensor,
        out: *mut *mut CPending,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_send_start(
        group: *mut CGroup,
        x: *const C_tensor,
        to: c_int,
        out: *mut *mut CPending,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_receive(group: *mut CGroup, x: *const C_tensor, from: c_int, error: *mut *mut c_char) -> c_int;
    pub fn flow_pending_wait(pending: *mut CPending, error: *mut *mut c_char) -> c_int;
    pub fn flow_pending_drop(pending: *mut CPending);
    pub fn flow_rotate(
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_linear(
        x: *const C_tensor,
        weight: *const C_tensor,
        sum: *const C_tensor,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_swiglu(gate_up: *const C_tensor, out: *mut *mut C_tensor, error: *mut *mut c_char) -> c_int;
    pub fn flow_add_product(
        sum: *const C_tensor,
        a: *const C_tensor,
        b: *const C_tensor,
        scale: f64,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_causal_suffix_attention(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_piecewise_attention(
        query: *const C_tensor,
        key: *const C_tensor,
        value: *const C_tensor,
        begins: *const C_tensor,
        longest: i64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub fn flow_gradients(
        output: *const C_tensor,
        gradient: *const C_tensor,
        inputs: *const *const C_tensor,
        count: usize,
        gradients: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
}

/// Calls a function of the shim: it gets the place where it leaves its error's text.
pub fn call(function: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<()> {
    let mut error = ptr::null_mut();
    if function(&mut error) == 0 {
        return Ok(());
    }
    // SAFETY: the shim set `error` to a NUL-terminated string of malloc's that is now ours.
    let text = unsafe {
        let text = CStr::from_ptr(error).to_string_lossy().into_owned();
        flow_free(error);
        text
    };
    // libtorch's messages carry its own source places and stack in further lines.
    Err(anyhow!("{}", text.lines().next().unwrap_or("libtorch failed without a word").trim_end()))
}

/// A string for C.
pub fn c_string(text: &str) -> Result<CString> {
    CString::new(text).with_context(|| format!("{text:?} holds a NUL byte"))
}

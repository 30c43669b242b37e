//! Collectives as nodes of the autograd graph, by the names they have in Megatron's paper, and [`gradients`].
//!
//! A collective and its adjoint: what is copied forward is summed backward, what is gathered forward is
//! reduce-scattered backward. All are the identity in a group of one.

use std::ptr;

use anyhow::Result;
use tch::Tensor;

use crate::{
    Group,
    ffi::{self, call},
    group::Op,
};

/// Into a tensor-parallel region: the identity forward, an all-reduce backward.
///
/// # Errors
/// A rank is gone or late.
pub fn copy_to(group: &Group, x: &Tensor) -> Result<Tensor> {
    group.differentiable("copy", x, (Op::Identity, Op::AllReduce), 0)
}

/// Out of a tensor-parallel region: an all-reduce forward, the identity backward.
///
/// # Errors
/// A rank is gone or late.
pub fn reduce_from(group: &Group, x: &Tensor) -> Result<Tensor> {
    group.differentiable("all-reduce", x, (Op::AllReduce, Op::Identity), 0)
}

/// From sequence-parallel into a tensor-parallel region: all-gather along `dim` forward, reduce-scatter backward.
///
/// # Errors
/// A rank is gone or late.
pub fn gather_to(group: &Group, x: &Tensor, dim: i64) -> Result<Tensor> {
    group.differentiable("all-gather", x, (Op::AllGather, Op::ReduceScatter), dim)
}

/// Out of a tensor-parallel into a sequence-parallel region: reduce-scatter along `dim` forward, all-gather backward.
///
/// # Errors
/// A rank is gone or late.
pub fn reduce_scatter_from(group: &Group, x: &Tensor, dim: i64) -> Result<Tensor> {
    group.differentiable("reduce-scatter", x, (Op::ReduceScatter, Op::AllGather), dim)
}

/// Rotates the two halves of the last dimension of `x` as coordinates, by angles of which `cos` and `sin` hold for each
/// place (they broadcast). Backward it rotates back, and keeps nothing of `x` for that.
///
/// # Errors
/// The tensors do not fit each other.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    call(|error| {
        // SAFETY: all pointers are valid for the call.
        unsafe { ffi::flow_rotate(x.as_ptr(), cos.as_ptr(), sin.as_ptr(), &mut out, error) }
    })?;
    // SAFETY: the shim gave us a tensor of our own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// x Wᵀ for `x` [..., in] and `weight` [out, in]. In the backward pass the gradient by the weight is added to `sum`, fp32,
/// where it is made, and [`gradients`] does not give it.
///
/// # Errors
/// The tensors do not fit each other.
pub fn linear(x: &Tensor, weight: &Tensor, sum: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    call(|error| {
        // SAFETY: all pointers are valid for the call.
        unsafe { ffi::flow_linear(x.as_ptr(), weight.as_ptr(), sum.as_ptr(), &mut out, error) }
    })?;
    // SAFETY: the shim gave us a tensor of our own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// silu(gate) · up of the halves of the last dimension of `gate_up`.
///
/// # Errors
/// The last dimension is odd.
pub fn swiglu(gate_up: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    // SAFETY: all pointers are valid for the call.
    call(|error| unsafe { ffi::flow_swiglu(gate_up.as_ptr(), &mut out, error) })?;
    // SAFETY: the shim gave us a tensor of our own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Adds `scale` · a · b to `sum`, outside the graph. `sum` is fp32 whatever a and b are; on a GPU the product is not rounded
/// to their type on its way.
///
/// # Errors
/// The tensors do not fit each other.
pub fn add_product(sum: &Tensor, a: &Tensor, b: &Tensor, scale: f64) -> Result<()> {
    // SAFETY: all pointers are valid for the call.
    call(|error| unsafe { ffi::flow_add_product(sum.as_ptr(), a.as_ptr(), b.as_ptr(), scale, error) })
}

/// Flash attention of queries that stand at the end of the keys' positions: query i of n sees the keys up to
/// keys − n + i. [batch, heads, positions, width], bf16, on a GPU; fewer key heads than query heads are shared out.
///
/// # Errors
/// The tensors do not fit the kernel.
pub fn causal_suffix_attention(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    call(|error| {
        // SAFETY: all pointers are valid for the call.
        unsafe { ffi::flow_causal_suffix_attention(query.as_ptr(), key.as_ptr(), value.as_ptr(), &mut out, error) }
    })?;
    // SAFETY: the shim gave us a tensor of our own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Flash attention within pieces of sequences: [batch, heads, positions, width], bf16, on a GPU; fewer key heads than query
/// heads are shared out. The positions of the batch, one sequence after the other, are cut at `begins` (int32, with the end
/// as the last), and no piece is longer than `longest`.
///
/// # Errors
/// The tensors do not fit the kernel.
pub fn piecewise_attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    begins: &Tensor,
    longest: i64,
) -> Result<Tensor> {
    let mut out = ptr::null_mut();
    call(|error| {
        let (q, k, v, begins) = (query.as_ptr(), key.as_ptr(), value.as_ptr(), begins.as_ptr());
        // SAFETY: all pointers are valid for the call.
        unsafe { ffi::flow_piecewise_attention(q, k, v, begins, longest, &mut out, error) }
    })?;
    // SAFETY: the shim gave us a tensor of our own.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The product of `gradient` with the derivative of `output` by each of `inputs`; `None` for one that `output` does not
/// depend on. `gradient` has the shape of `output`. The graph is freed.
///
/// # Errors
/// `output` has no graph; a collective in it failed.
pub fn gradients(output: &Tensor, gradient: &Tensor, inputs: &[Tensor]) -> Result<Vec<Option<Tensor>>> {
    let pointers: Vec<_> = inputs.iter().map(Tensor::as_ptr).collect();
    let mut found = vec![ptr::null_mut(); inputs.len()];
    call(|error| {
        // SAFETY: `pointers` and `found` have `inputs.len()` elements, and live through the call.
        unsafe {
            ffi::flow_gradients(
                output.as_ptr(),
                gradient.as_ptr(),
                pointers.as_ptr(),
                pointers.len(),
                found.as_mut_ptr(),
                error,
            )
        }
    })?;
    // SAFETY: what is not null is a tensor of our own.
    Ok(found.into_iter().map(|p| (!p.is_null()).then(|| unsafe { Tensor::from_ptr(p) })).collect())
}

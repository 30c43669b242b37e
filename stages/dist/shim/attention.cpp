// Parts of a transformer layer that tch does not reach, or not without tensors that nobody needs.

#include "shim.hpp"

#include <torch/csrc/autograd/custom_function.h>

namespace {

// (a, b) → (a cos − b sin, b cos + a sin) over the halves of the last dimension; products and sums in the angles' type,
// rounded once to that of x.
at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor a = x.narrow(-1, 0, half), b = x.narrow(-1, half, half);
  at::Tensor y = at::empty(x.sizes(), x.options());
  at::Tensor first = y.narrow(-1, 0, half), second = y.narrow(-1, half, half);
  at::sub_out(first, a * cos, b * sin);
  at::add_out(second, b * cos, a * sin);
  return y;
}

// Its derivative is the rotation by the opposite angle: nothing but the angles is kept.
struct Rotation : torch::autograd::Function<Rotation> {
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    context->saved_data["cos"] = cos;
    context->saved_data["sin"] = sin;
    return rotated(x, cos, sin);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    const at::Tensor sin = context->saved_data["sin"].toTensor();
    return {rotated(gradients[0], context->saved_data["cos"].toTensor(), sin.neg()), at::Tensor(), at::Tensor()};
  }
};

// sum += scale · a · b. `sum` is fp32 whatever the type of a and b; on a GPU the product is not rounded to it before.
void add_product(at::Tensor sum, const at::Tensor& a, const at::Tensor& b, double scale) {
  at::NoGradGuard no_grad;
  if (a.scalar_type() == sum.scalar_type()) {
    sum.addmm_(a, b, 1, scale);
  } else if (sum.is_cuda()) {
    at::addmm_out(sum, sum, a, b, sum.scalar_type(), 1, scale);
  } else {
    sum.add_(at::mm(a, b), scale);
  }
}

// x Wᵀ, whose gradient by W goes into a sum where it is made, as Megatron's fused accumulation has it.
struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& sum) {
    context->save_for_backward({x, weight});
    context->saved_data["sum"] = sum;
    return at::linear(x, weight);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &gradient = gradients[0];
    add_product(context->saved_data["sum"].toTensor(), gradient.flatten(0, -2).t(), x.flatten(0, -2), 1);
    return {gradient.matmul(weight), at::Tensor(), at::Tensor()};
  }
};

// silu(gate) · up of the halves of the last dimension; the gradient is written where it belongs, with no copies to join.
struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& gate_up) {
    const int64_t half = gate_up.size(-1) / 2;
    const at::Tensor silu = at::silu(gate_up.narrow(-1, 0, half));
    context->save_for_backward({gate_up, silu});
    return silu * gate_up.narrow(-1, half, half);
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    const auto saved = context->get_saved_variables();
    const at::Tensor &gate_up = saved[0], &silu = saved[1], &gradient = gradients[0];
    const int64_t half = gate_up.size(-1) / 2;
    at::Tensor found = at::empty_like(gate_up);
    at::Tensor d_gate = found.narrow(-1, 0, half), d_up = found.narrow(-1, half, half);
    at::mul_out(d_up, gradient, silu);
    at::silu_backward_out(d_gate, gradient * gate_up.narrow(-1, half, half), gate_up.narrow(-1, 0, half));
    return {found};
  }
};

} // namespace

// Rotates the halves of the last dimension of `x`. Part of the autograd graph.
FLOW_EXPORT int flow_rotate(
    const at::Tensor* x, const at::Tensor* cos, const at::Tensor* sin, at::Tensor** out, char** error) {
  return flow::guarded(error, [&] { *out = new at::Tensor(Rotation::apply(*x, *cos, *sin)); });
}

// Adds scale · a · b to `sum`, outside the graph.
FLOW_EXPORT int flow_add_product(at::Tensor* sum, const at::Tensor* a, const at::Tensor* b, double scale, char** error) {
  return flow::guarded(error, [&] { add_product(*sum, *a, *b, scale); });
}

// x Wᵀ as part of the graph, except for W, whose gradient is added to `sum` in the backward pass.
FLOW_EXPORT int flow_linear(
    const at::Tensor* x, const at::Tensor* weight, const at::Tensor* sum, at::Tensor** out, char** error) {
  return flow::guarded(error, [&] { *out = new at::Tensor(Linear::apply(*x, *weight, *sum)); });
}

// silu(gate) · up of the halves of the last dimension of `gate_up`. Part of the autograd graph.
FLOW_EXPORT int flow_swiglu(const at::Tensor* gate_up, at::Tensor** out, char** error) {
  return flow::guarded(error, [&] { *out = new at::Tensor(SwiGlu::apply(*gate_up)); });
}

// Flash attention within pieces of sequences: [batch, heads, positions, width], bf16, a kernel of the GPU, part of the
// autograd graph. The positions of the batch, one sequence after the other, are cut at `begins` (int32, the end included),
// and no piece is longer than `longest`.
FLOW_EXPORT int flow_piecewise_attention(
    const at::Tensor* query, const at::Tensor* key, const at::Tensor* value, const at::Tensor* begins, int64_t longest,
    at::Tensor** out, char** error) {
  return flow::guarded(error, [&] {
    const auto flat = [](const at::Tensor& x) { return x.transpose(1, 2).flatten(0, 1); };
    const auto result = at::_flash_attention_forward(
        flat(*query), flat(*key), flat(*value), *begins, *begins, longest, longest, 0.0, /*is_causal=*/true,
        /*return_debug_mask=*/false);
    *out = new at::Tensor(std::get<0>(result).unflatten(0, {query->size(0), query->size(2)}).transpose(1, 2));
  });
}

// Flash attention of queries that are the last ones of the keys' positions: query i of n sees the keys up to
// keys - n + i. [batch, heads, positions, width], a kernel of the GPU, part of the autograd graph.
FLOW_EXPORT int flow_causal_suffix_attention(
    const at::Tensor* query, const at::Tensor* key, const at::Tensor* value, at::Tensor** out, char** error) {
  return flow::guarded(error, [&] {
    // This kernel's "causal" is aligned to the lower right where the two lengths differ.
    auto result = at::_scaled_dot_product_flash_attention(*query, *key, *value, 0.0, /*is_causal=*/true);
    *out = new at::Tensor(std::get<0>(result));
  });
}

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

} // namespace

// Rotates the halves of the last dimension of `x`. Part of the autograd graph.
FLOW_EXPORT int flow_rotate(
    const at::Tensor* x, const at::Tensor* cos, const at::Tensor* sin, at::Tensor** out, char** error) {
  return flow::guarded(error, [&] { *out = new at::Tensor(Rotation::apply(*x, *cos, *sin)); });
}

// Adds a · b to `sum`, which is fp32 whatever the type of a and b; the product is not rounded before on a GPU.
FLOW_EXPORT int flow_add_product(at::Tensor* sum, const at::Tensor* a, const at::Tensor* b, double scale, char** error) {
  return flow::guarded(error, [&] {
    at::NoGradGuard no_grad;
    if (a->scalar_type() == sum->scalar_type()) {
      sum->addmm_(*a, *b, 1, scale);
    } else if (sum->is_cuda()) {
      at::addmm_out(*sum, *sum, *a, *b, sum->scalar_type(), 1, scale);
    } else {
      sum->add_(at::mm(*a, *b), scale);
    }
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

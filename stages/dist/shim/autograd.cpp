// A collective as a node of the autograd graph: one operation forward, its adjoint backward.

#include "shim.hpp"

#include <vector>

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace {

struct Collective : torch::autograd::Function<Collective> {
  static at::Tensor forward(
      torch::autograd::AutogradContext* context, const at::Tensor& x, const flow::Backend& backend, int64_t forward_op,
      int64_t backward_op, int64_t dim) {
    context->saved_data["backend"] = c10::IValue::make_capsule(backend);
    context->saved_data["op"] = backward_op;
    context->saved_data["dim"] = dim;
    at::Tensor y = flow::collective(static_cast<flow::Op>(forward_op), backend, x, dim);
    return y.is_same(x) ? x.view_as(x) : y;
  }

  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* context, torch::autograd::variable_list gradients) {
    auto capsule = context->saved_data["backend"].toCapsule();
    flow::Backend backend = c10::static_intrusive_pointer_cast<c10d::Backend>(capsule);
    at::Tensor gradient = flow::collective(
        static_cast<flow::Op>(context->saved_data["op"].toInt()), backend, gradients[0],
        context->saved_data["dim"].toInt());
    return {gradient, at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

} // namespace

FLOW_EXPORT int flow_autograd_collective(
    flow::Group* group, const at::Tensor* x, int64_t forward_op, int64_t backward_op, int64_t dim, at::Tensor** out,
    char** error) {
  return flow::guarded(error, [&] {
    *out = new at::Tensor(Collective::apply(*x, group->backend, forward_op, backward_op, dim));
  });
}

// d(output)/d(inputs[i]) · gradient → gradients[i]; null where an input was not used. The graph is freed.
FLOW_EXPORT int flow_gradients(
    const at::Tensor* output, const at::Tensor* gradient, const at::Tensor* const* inputs, size_t count,
    at::Tensor** gradients, char** error) {
  return flow::guarded(error, [&] {
    std::vector<at::Tensor> wanted;
    for (size_t i = 0; i < count; i++) {
      wanted.push_back(*inputs[i]);
    }
    auto result = torch::autograd::grad({*output}, wanted, {*gradient}, false, false, true);
    for (size_t i = 0; i < count; i++) {
      gradients[i] = result[i].defined() ? new at::Tensor(std::move(result[i])) : nullptr;
    }
  });
}

// Switches and facts of the libtorch in this process that tch does not reach.

#include "shim.hpp"

#include <ATen/Context.h>
#include <ATen/DeviceAccelerator.h>
#include <torch/headeronly/version.h>

FLOW_EXPORT const char* flow_libtorch_version() {
  return TORCH_VERSION;
}

// The same input gives the same bits, or an error for an operation that cannot promise it.
FLOW_EXPORT int flow_be_deterministic(char** error) {
  return flow::guarded(error, [&] {
    at::globalContext().setDeterministicAlgorithms(true, false);
    // Filling what is overwritten anyway would only cost time.
    at::globalContext().setDeterministicFillUninitializedMemory(false);
  });
}

FLOW_EXPORT int flow_device_bytes(int device, int64_t* bytes, char** error) {
  return flow::guarded(error, [&] {
    *bytes = static_cast<int64_t>(at::accelerator::getMemoryInfo(static_cast<c10::DeviceIndex>(device)).second);
  });
}

// The most bytes that tensors took on a device at one time.
FLOW_EXPORT int flow_peak_device_bytes(int device, int64_t* bytes, char** error) {
  return flow::guarded(error, [&] {
    const auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    *bytes = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  });
}

// A copy in memory of the host that the GPUs of this process read and write at full speed. tch names a device to
// libtorch, which warns of that with every call.
FLOW_EXPORT int flow_pinned(const at::Tensor* x, at::Tensor** out, char** error) {
  return flow::guarded(error, [&] {
    at::NoGradGuard no_grad;
    *out = new at::Tensor(x->pin_memory());
  });
}

// One step of AdamW on fp32 tensors, in place, by libtorch's fused kernel. `step` counts from 1.
FLOW_EXPORT int flow_adamw(
    at::Tensor* weight, at::Tensor* gradient, at::Tensor* exp_avg, at::Tensor* exp_avg_sq, double step, double lr,
    double beta1, double beta2, double weight_decay, double eps, char** error) {
  return flow::guarded(error, [&] {
    at::NoGradGuard no_grad;
    const at::Tensor count = at::full({}, step, weight->options());
    at::_fused_adamw_(
        {*weight}, {*gradient}, {*exp_avg}, {*exp_avg_sq}, {}, {count}, lr, beta1, beta2, weight_decay, eps,
        /*amsgrad=*/false, /*maximize=*/false);
  });
}

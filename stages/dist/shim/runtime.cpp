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

// The most bytes that tensors took on a device at one time.
FLOW_EXPORT int flow_peak_device_bytes(int device, int64_t* bytes, char** error) {
  return flow::guarded(error, [&] {
    const auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    *bytes = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  });
}

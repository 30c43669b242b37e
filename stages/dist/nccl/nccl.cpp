// The part of flow-dist that needs CUDA's and NCCL's headers: it makes c10d's ProcessGroupNCCL. The shim uses it as a
// c10d::Backend like any other.

#include <chrono>
#include <cstring>
#include <exception>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

// A backend that the caller owns; or null, with *error set to a text that the caller frees with free.
extern "C" __attribute__((visibility("default"))) c10d::Backend* flow_nccl_open(
    c10d::Store* store, int rank, int size, int64_t timeout_ms, char** error) {
  try {
    auto options = c10d::ProcessGroupNCCL::Options::create(/*is_high_priority_stream=*/true);
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto shared = c10::intrusive_ptr<c10d::Store>::reclaim_copy(store);
    return c10::make_intrusive<c10d::ProcessGroupNCCL>(shared, rank, size, options).release();
  } catch (const std::exception& e) {
    *error = strdup(e.what());
    return nullptr;
  }
}

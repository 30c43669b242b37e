// What the shim's files share: errors as text, the group, collectives on tensors.
//
// Every exported function returns 0, or 1 with *error set to a text that the caller frees with flow_free. No C++
// exception crosses into Rust.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>

#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#define FLOW_EXPORT extern "C" __attribute__((visibility("default")))

namespace flow {

inline int fail(char** error, const char* what) {
  *error = strdup(what);
  return 1;
}

template <typename F>
int guarded(char** error, F&& body) {
  try {
    body();
    return 0;
  } catch (const c10::Error& e) {
    return fail(error, e.what_without_backtrace());
  } catch (const std::exception& e) {
    return fail(error, e.what());
  } catch (...) {
    return fail(error, "an exception of unknown type in libtorch");
  }
}

using Backend = c10::intrusive_ptr<c10d::Backend>;

struct Group {
  Backend backend;
};

struct Store {
  c10::intrusive_ptr<c10d::Store> store;
};

// Gloo moves the host's memory, NCCL the GPUs'.
inline bool on_device(const Backend& backend) {
  return backend->getBackendName() == "nccl";
}

// What a collective does to a tensor; the numbers are those of src/autograd.rs.
enum class Op : int64_t { Identity = 0, AllReduce = 1, AllGather = 2, ReduceScatter = 3 };

// `dim` is the dimension that is gathered or scattered. Always a new tensor, or `x` itself for Identity.
at::Tensor collective(Op op, const Backend& backend, const at::Tensor& x, int64_t dim);

// Reduces in place. `x` may be on any device and need not be contiguous.
void all_reduce(const Backend& backend, at::Tensor x, c10d::ReduceOp::RedOpType op);

} // namespace flow

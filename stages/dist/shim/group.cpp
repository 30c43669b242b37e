// Stores (c10d's TCPStore) and process groups (c10d's ProcessGroupGloo, or ProcessGroupNCCL out of a library of its own).

#include "shim.hpp"

#include <chrono>
#include <stdexcept>
#include <vector>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace flow {

namespace {

// With Gloo, a tensor of a device takes the way through the host.
at::Tensor movable(const Backend& backend, const at::Tensor& x) {
  return x.device().is_cpu() || on_device(backend) ? x.contiguous() : x.cpu().contiguous();
}

void wait(const c10::intrusive_ptr<c10d::Work>& work) {
  work->wait();
}

} // namespace

void all_reduce(const Backend& backend, at::Tensor x, c10d::ReduceOp::RedOpType op) {
  at::Tensor host = movable(backend, x);
  const bool average = op == c10d::ReduceOp::AVG;
  c10d::AllreduceOptions options;
  options.reduceOp = average ? c10d::ReduceOp::SUM : op;
  std::vector<at::Tensor> tensors{host};
  wait(backend->allreduce(tensors, options));
  if (average) {
    host.div_(backend->getSize()); // Gloo has no average
  }
  if (!host.is_same(x)) {
    x.copy_(host);
  }
}

at::Tensor collective(Op op, const Backend& backend, const at::Tensor& x, int64_t dim) {
  const int64_t size = backend->getSize();
  switch (op) {
    case Op::Identity:
      return x;
    case Op::AllReduce: {
      at::Tensor y = x.clone(at::MemoryFormat::Contiguous);
      all_reduce(backend, y, c10d::ReduceOp::SUM);
      return y;
    }
    case Op::AllGather: {
      at::Tensor mine = movable(backend, x);
      std::vector<std::vector<at::Tensor>> parts(1);
      for (int64_t i = 0; i < size; i++) {
        parts[0].push_back(at::empty_like(mine));
      }
      std::vector<at::Tensor> inputs{mine};
      wait(backend->allgather(parts, inputs));
      return at::cat(parts[0], dim).to(x.device());
    }
    case Op::ReduceScatter: {
      TORCH_CHECK(x.size(dim) % size == 0, "a dimension of ", x.size(dim), " does not split over ", size, " ranks");
      at::Tensor sum = collective(Op::AllReduce, backend, x, dim);
      const int64_t part = x.size(dim) / size;
      return sum.narrow(dim, backend->getRank() * part, part).contiguous();
    }
  }
  TORCH_CHECK(false, "no such collective");
}

} // namespace flow

using flow::Group;
using flow::guarded;
using flow::Store;

FLOW_EXPORT void flow_free(char* text) {
  free(text);
}

// `listening_fd`: a socket that listens on the port, for the one who serves the store and now owns the socket; else -1.
FLOW_EXPORT int flow_store_open(
    const char* host, uint16_t port, int listening_fd, size_t world, int64_t timeout_ms, Store** out, char** error) {
  return guarded(error, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = listening_fd >= 0;
    if (options.isServer) {
      options.masterListenFd = listening_fd;
    }
    options.numWorkers = world;
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    *out = new Store{c10::make_intrusive<c10d::TCPStore>(host, options)};
  });
}

FLOW_EXPORT void flow_store_close(Store* store) {
  delete store;
}

FLOW_EXPORT int flow_store_set(Store* store, const char* key, const uint8_t* bytes, size_t length, char** error) {
  return guarded(error, [&] { store->store->set(key, std::vector<uint8_t>(bytes, bytes + length)); });
}

// Waits until the key is there, at most timeout_ms. *bytes is to be freed with flow_free.
FLOW_EXPORT int flow_store_get(
    Store* store, const char* key, int64_t timeout_ms, uint8_t** bytes, size_t* length, char** error) {
  return guarded(error, [&] {
    store->store->wait({key}, std::chrono::milliseconds(timeout_ms));
    const std::vector<uint8_t> value = store->store->get(key);
    *length = value.size();
    *bytes = static_cast<uint8_t*>(malloc(value.size() + 1));
    memcpy(*bytes, value.data(), value.size());
  });
}

FLOW_EXPORT int flow_store_has(Store* store, const char* key, int* has, char** error) {
  return guarded(error, [&] { *has = store->store->check({key}) ? 1 : 0; });
}

FLOW_EXPORT int flow_store_add(Store* store, const char* key, int64_t amount, int64_t* sum, char** error) {
  return guarded(error, [&] { *sum = store->store->add(key, amount); });
}

// `address`: of this host, to listen on. `interface` wins over it.
FLOW_EXPORT int flow_group_open(
    Store* store, const char* name, int rank, int size, int64_t timeout_ms, const char* address,
    const char* interface, Group** out, char** error) {
  return guarded(error, [&] {
    using Gloo = c10d::ProcessGroupGloo;
    auto options = Gloo::Options::create(std::chrono::milliseconds(timeout_ms));
    options->devices.push_back(
        *interface != 0 ? Gloo::createDeviceForInterface(interface) : Gloo::createDeviceForHostname(address));
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(name, store->store);
    *out = new Group{c10::make_intrusive<Gloo>(prefixed, rank, size, options)};
  });
}

// `open` is flow_nccl_open of the library that holds NCCL: it returns a backend that is ours.
FLOW_EXPORT int flow_group_open_nccl(
    Store* store, const char* name, int rank, int size, int64_t timeout_ms,
    c10d::Backend* (*open)(c10d::Store*, int, int, int64_t, char**), Group** out, char** error) {
  return guarded(error, [&] {
    auto prefixed = c10::make_intrusive<c10d::PrefixStore>(name, store->store);
    char* why = nullptr;
    c10d::Backend* backend = open(prefixed.get(), rank, size, timeout_ms, &why);
    if (backend == nullptr) {
      std::string text = why == nullptr ? "no reason was given" : why;
      free(why);
      throw std::runtime_error(text);
    }
    *out = new Group{flow::Backend::reclaim(backend)};
  });
}

FLOW_EXPORT void flow_group_close(Group* group) {
  delete group;
}

// In place. op: c10d's ReduceOp (0 sum, 1 average, 3 min, 4 max).
FLOW_EXPORT int flow_all_reduce(Group* group, at::Tensor* x, int op, char** error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    flow::all_reduce(group->backend, *x, static_cast<c10d::ReduceOp::RedOpType>(op));
  });
}

FLOW_EXPORT int flow_broadcast(Group* group, at::Tensor* x, int root, char** error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    at::Tensor host = flow::movable(group->backend, *x);
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<at::Tensor> tensors{host};
    group->backend->broadcast(tensors, options)->wait();
    if (!host.is_same(*x)) {
      x->copy_(host);
    }
  });
}

FLOW_EXPORT int flow_barrier(Group* group, char** error) {
  return guarded(error, [&] { group->backend->barrier()->wait(); });
}

// Outside autograd; a new tensor.
FLOW_EXPORT int flow_collective(
    Group* group, const at::Tensor* x, int64_t op, int64_t dim, at::Tensor** out, char** error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    *out = new at::Tensor(flow::collective(static_cast<flow::Op>(op), group->backend, *x, dim));
  });
}

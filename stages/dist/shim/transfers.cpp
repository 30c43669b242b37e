// Transfers that go on while the caller computes, and those that move flat buffers in place.

#include "shim.hpp"

#include <memory>
#include <vector>

#include <torch/csrc/distributed/c10d/Work.hpp>

namespace flow {

// What is under way. It keeps the memory alive that is read or written meanwhile.
struct Pending {
  c10::intrusive_ptr<c10d::Work> work;
  at::Tensor moved;
  // Where the result is copied in the end, if it came by another buffer.
  at::Tensor target;
};

namespace {

// The tensor itself where the backend can move it, else a copy on the host.
at::Tensor movable(const Backend& backend, const at::Tensor& x) {
  return x.device().is_cpu() || on_device(backend) ? x : x.cpu();
}

at::Tensor part_of(const Backend& backend, const at::Tensor& bucket) {
  const int64_t part = bucket.size(0) / backend->getSize();
  return bucket.narrow(0, backend->getRank() * part, part);
}

// What is done to a bucket in place, through another buffer where the backend cannot reach it.
std::unique_ptr<Pending> in_place(const Backend& backend, const at::Tensor& bucket) {
  TORCH_CHECK(
      bucket.dim() == 1 && bucket.is_contiguous() && bucket.size(0) % backend->getSize() == 0, "a bucket of ",
      bucket.sizes(), " does not split over ", backend->getSize(), " ranks");
  auto pending = std::make_unique<Pending>();
  pending->moved = movable(backend, bucket);
  if (!pending->moved.is_same(bucket)) {
    pending->target = bucket;
  }
  return pending;
}

} // namespace
} // namespace flow

using flow::Group;
using flow::guarded;
using flow::Pending;

// Sums a flat buffer over the ranks. With `scatter`, only this rank's part of it is the sum in the end, and the rest is
// undefined; parts are equal, in the order of ranks.
FLOW_EXPORT int flow_reduce_start(Group* group, at::Tensor* bucket, int scatter, Pending** out, char** error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    auto pending = flow::in_place(group->backend, *bucket);
    if (scatter != 0 && flow::on_device(group->backend)) {
      at::Tensor part = flow::part_of(group->backend, pending->moved);
      pending->work = group->backend->_reduce_scatter_base(part, pending->moved);
    } else {
      // Gloo's own reduce-scatter is an all-reduce of a copy: in place it takes no memory, and sums in the same order.
      std::vector<at::Tensor> tensors{pending->moved};
      pending->work = group->backend->allreduce(tensors);
    }
    *out = pending.release();
  });
}

// Spreads each rank's part of a flat buffer to all.
FLOW_EXPORT int flow_gather_start(Group* group, at::Tensor* bucket, Pending** out, char** error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    auto pending = flow::in_place(group->backend, *bucket);
    at::Tensor part = flow::part_of(group->backend, pending->moved);
    pending->work = group->backend->_allgather_base(pending->moved, part);
    *out = pending.release();
  });
}

// Sends to a rank of the group.
FLOW_EXPORT int flow_send_start(Group* group, const at::Tensor* x, int to, Pending** out, char** error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    auto pending = std::make_unique<Pending>();
    pending->moved = flow::movable(group->backend, x->contiguous());
    std::vector<at::Tensor> tensors{pending->moved};
    pending->work = group->backend->send(tensors, to, 0);
    *out = pending.release();
  });
}

// Overwrites `x` with what a rank of the group sends. Messages come in the order in which they were sent.
FLOW_EXPORT int flow_receive(Group* group, at::Tensor* x, int from, char** error) {
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    at::Tensor moved = flow::movable(group->backend, *x);
    std::vector<at::Tensor> tensors{moved};
    group->backend->recv(tensors, from, 0)->wait();
    if (!moved.is_same(*x)) {
      x->copy_(moved);
    }
  });
}

// Waits for it, and frees it also on an error.
FLOW_EXPORT int flow_pending_wait(Pending* pending, char** error) {
  std::unique_ptr<Pending> owned(pending);
  return guarded(error, [&] {
    at::NoGradGuard no_grad;
    owned->work->wait();
    if (owned->target.defined()) {
      owned->target.copy_(owned->moved);
    }
  });
}

FLOW_EXPORT void flow_pending_drop(Pending* pending) {
  delete pending;
}

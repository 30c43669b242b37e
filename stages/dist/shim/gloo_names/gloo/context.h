// The names of Gloo's that c10d's ProcessGroupGloo.hpp mentions. libtorch_cpu.so holds Gloo itself; its wheel has no
// headers of it. The shim only holds pointers to these types, so their layout does not matter here.
#pragma once
#include <chrono>
#include <memory>
#include <string>
#include <vector>
namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
namespace transport {
class Device;
class UnboundBuffer {
 public:
  virtual ~UnboundBuffer() = 0;
};
} // namespace transport
} // namespace gloo

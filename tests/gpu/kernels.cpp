// Where a program's time on the GPU goes, by class of kernel, without a profiler: CUPTI's activities, summed up.
// CUDA loads it into any program: CUDA_INJECTION64_PATH=libkernels.so KERNELS=FILE PROGRAM; the tables in FILE are written
// anew every second, as programs may end without a last word.
// Built by run.sh.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <cupti.h>

namespace {

struct Total {
  uint64_t nanoseconds = 0, count = 0;
};

std::mutex lock;
std::map<std::string, Total>& kernels() {
  static auto* kernels = new std::map<std::string, Total>; // never destroyed: CUPTI's threads outlive main
  return *kernels;
}

// The first word that a kernel's name holds says its class.
const std::vector<std::pair<std::string, std::vector<std::string>>> CLASSES = {
    {"attention", {"flash", "fmha"}},
    {"matrix products", {"gemm", "cutlass", "nvjet", "splitK"}},
    {"RMSNorm", {"rms_norm", "RmsNorm", "layer_norm", "LayerNorm", "GammaBeta"}},
    {"SiLU and its derivative", {"silu"}},
    {"reductions (the head's softmax, norms)", {"reduce_kernel"}},
    {"joining and copying", {"CatArray", "copy_kernel", "Memcpy"}},
    {"optimizer", {"multi_tensor", "FusedAdam"}},
    {"collectives", {"nccl"}},
    {"products and sums by element", {"elementwise"}},
};

void CUPTIAPI request(uint8_t** buffer, size_t* size, size_t* records) {
  *size = 8 << 20;
  *buffer = static_cast<uint8_t*>(aligned_alloc(8, *size));
  *records = 0;
}

void CUPTIAPI complete(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  CUpti_Activity* record = nullptr;
  std::lock_guard guard(lock);
  while (cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      auto* kernel = reinterpret_cast<CUpti_ActivityKernel10*>(record);
      auto& total = kernels()[kernel->name];
      total.nanoseconds += kernel->end - kernel->start;
      total.count++;
    }
  }
  free(buffer);
}

std::string class_of(const std::string& name) {
  for (const auto& [label, words] : CLASSES) {
    if (std::any_of(words.begin(), words.end(), [&](const auto& word) { return name.find(word) != std::string::npos; })) {
      return label;
    }
  }
  return "other";
}

void table(FILE* file, const std::map<std::string, Total>& totals, uint64_t all, size_t rows) {
  std::vector<std::pair<std::string, Total>> sorted(totals.begin(), totals.end());
  std::sort(sorted.begin(), sorted.end(), [](auto& a, auto& b) { return a.second.nanoseconds > b.second.nanoseconds; });
  sorted.resize(std::min(rows, sorted.size()));
  for (const auto& [name, total] : sorted) {
    std::fprintf(
        file, "%5.1f %% %10.1f ms %8llu x  %.150s\n", 100.0 * total.nanoseconds / all, total.nanoseconds / 1e6,
        static_cast<unsigned long long>(total.count), name.c_str());
  }
}

void tell(const std::string& path) {
  cuptiActivityFlushAll(0);
  std::lock_guard guard(lock);
  uint64_t all = 1;
  std::map<std::string, Total> classes;
  for (const auto& [name, total] : kernels()) {
    auto& sum = classes[class_of(name)];
    sum.nanoseconds += total.nanoseconds;
    sum.count += total.count;
    all += total.nanoseconds;
  }
  if (FILE* file = std::fopen(path.c_str(), "w")) {
    std::fprintf(file, "kernels: %.1f ms in all\n", all / 1e6);
    table(file, classes, all, classes.size());
    std::fprintf(file, "the kernels that take most\n");
    table(file, kernels(), all, 40);
    std::fclose(file);
  }
}

} // namespace

extern "C" __attribute__((visibility("default"))) int InitializeInjection() {
  const char* path = std::getenv("KERNELS");
  if (!path || cuptiActivityRegisterCallbacks(request, complete) != CUPTI_SUCCESS ||
      cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) != CUPTI_SUCCESS) {
    std::fprintf(stderr, "kernels: no KERNELS=FILE, or CUPTI does not start\n");
    return 0;
  }
  std::thread([path = std::string(path)] {
    for (;; std::this_thread::sleep_for(std::chrono::seconds(1))) {
      tell(path);
    }
  }).detach();
  return 1;
}

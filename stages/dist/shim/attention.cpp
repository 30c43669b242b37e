// Attention that tch does not reach.

#include "shim.hpp"

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

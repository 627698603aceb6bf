// dual_layer_norm: dy = weight (dx - mean(dx) - h mean(h dx)) / std + h dweight + dbias over the last dimension.
#pragma once

#include <optional>

#include "utils/check.h"

namespace taskarith {

using MaybeTensor = std::optional<Tensor>;

inline void check_dual_layer_norm(const Tensor& x, const MaybeTensor& dx, const MaybeTensor& weight,
                                  const MaybeTensor& dweight, const MaybeTensor& dbias) {
  STD_TORCH_CHECK(x.dim() >= 1 && is_storage_type(x.scalar_type()),
                  "dual_layer_norm: x must have a dimension and be float32, bfloat16 or float16");
  const int64_t width = x.size(x.dim() - 1);
  for (const MaybeTensor* t : {&dx, &weight, &dweight, &dbias})
    STD_TORCH_CHECK(!t->has_value() || ((*t)->scalar_type() == x.scalar_type() && (*t)->is_cpu() == x.is_cpu() &&
                                        (*t)->numel() == (t == &dx ? x.numel() : width)),
                    "dual_layer_norm: tensors must fit x in size, dtype and device");
}

}  // namespace taskarith

// dual_attention: dy = dp v + p dv with p = softmax(scale q k^T + mask), ds = scale (dq k^T + q dk^T) + dmask and
// dp = p (ds - rowsum(p ds)). dual_attention_biased is the same with a dmask.
#pragma once

#include <optional>

#include "utils/check.h"

namespace taskarith {

using MaybeTensor = std::optional<Tensor>;

struct AttentionSizes {
  int64_t batch, heads, queries, keys, depth, width;
};

inline AttentionSizes check_dual_attention(const Tensor& q, const MaybeTensor& dq, const Tensor& k,
                                           const MaybeTensor& dk, const Tensor& v, const MaybeTensor& dv,
                                           const MaybeTensor& mask, const MaybeTensor& dmask = std::nullopt) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && v.dim() == 4, "dual_attention: q, k, v must have four dimensions");
  STD_TORCH_CHECK(is_storage_type(q.scalar_type()), "dual_attention: float32, bfloat16 or float16");
  const AttentionSizes s{q.size(0), q.size(1), q.size(2), k.size(2), q.size(3), v.size(3)};
  const auto fits = [&](const Tensor& t, int64_t rows, int64_t width) {
    return t.dim() == 4 && t.size(0) == s.batch && t.size(1) == s.heads && t.size(2) == rows && t.size(3) == width &&
           t.scalar_type() == q.scalar_type() && t.is_cpu() == q.is_cpu();
  };
  STD_TORCH_CHECK(
      fits(k, s.keys, s.depth) && fits(v, s.keys, s.width) && (!dq.has_value() || fits(*dq, s.queries, s.depth)) &&
          (!dk.has_value() || fits(*dk, s.keys, s.depth)) && (!dv.has_value() || fits(*dv, s.keys, s.width)),
      "dual_attention: tensors must fit q in shape, dtype and device");
  STD_TORCH_CHECK(dq.has_value() || dk.has_value() || dv.has_value() || dmask.has_value(),
                  "dual_attention: at least one tangent");
  for (const MaybeTensor& t : {mask, dmask})
    STD_TORCH_CHECK(!t.has_value() || (t->scalar_type() == ScalarType::Float && t->is_cpu() == q.is_cpu() &&
                                       t->dim() == 4 && t->size(0) == s.batch && t->size(1) == s.heads &&
                                       t->size(2) == s.queries && t->size(3) == s.keys),
                    "dual_attention: mask and dmask must be float32 [B, H, L, S]");
  return s;
}

}  // namespace taskarith

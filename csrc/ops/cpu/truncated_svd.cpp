#include "ops/truncated_svd.h"

#include "math/gram_svd.h"
#include "utils/work_queue.h"

namespace taskarith {
namespace {

struct Worker {
  GramSvd svd;
  AlignedBuffer<float> matrix;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> truncated_svd_cpu(Tensor matrices, int64_t rank, std::string method) {
  const bool certified = check_svd_method("truncated_svd", method);
  check_truncated_svd(matrices, rank);
  matrices = torch::stable::contiguous(matrices);
  const int64_t count = matrices.size(0), m = matrices.size(1), n = matrices.size(2);
  const ScalarType type = matrices.scalar_type();
  Tensor u = torch::stable::new_empty(matrices, {count, m, rank}, ScalarType::Float);
  Tensor s = torch::stable::new_empty(matrices, {count, rank}, ScalarType::Float);
  Tensor vh = torch::stable::new_empty(matrices, {count, rank, n}, ScalarType::Float);
  Tensor excess = torch::stable::new_empty(matrices, {count}, ScalarType::Double);
  const void* const data = matrices.const_data_ptr();
  float *const pu = u.mutable_data_ptr<float>(), *const ps = s.mutable_data_ptr<float>();
  float* const pvh = vh.mutable_data_ptr<float>();
  double* const pe = excess.mutable_data_ptr<double>();
  std::vector<char> ok(count, 0);
  run_queue<Worker>(count, [&](Worker& worker, int64_t i) {
    float* const buffer = type == ScalarType::Float ? nullptr : worker.matrix.reserve(m * n);
    const float* const d = load_block(data, type, i * m * n, m * n, buffer);
    const SvdResult result = worker.svd.decompose(d, m, n, rank, certified, true);
    ok[i] = result.ok;
    pe[i] = result.excess;
    if (result.ok) worker.svd.write_factors(pu + i * m * rank, ps + i * rank, pvh + i * rank * n);
  });
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(ok[i], "truncated_svd: matrices[", i, "] holds NaN or Inf, or its decomposition did not converge");
  return {u, s, vh, excess};
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("truncated_svd", TORCH_BOX(&truncated_svd_cpu)); }

}  // namespace
}  // namespace taskarith

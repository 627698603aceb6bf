"""Bugs that tools/mutations.py puts into the kernels, one at a time; the tests have to notice each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Mutant(NamedTuple):
    """One change of one file.

    name: What is wrong then.
    file: Path in the repository.
    op: The operator whose tests are run; it uses the file.
    old: Text that the file holds once.
    new: What stands there instead.
    source: Stem of the .cu file that is compiled, if it is not the operator's.
    tests: More of a pytest -k expression, beginning with `or` or `and`.
    quick: Whether `make check` tries this one.
    """

    name: str
    file: str
    op: str
    old: str
    new: str
    cu: str = ""
    tests: str = ""
    quick: bool = False

    @property
    def triton(self) -> bool:
        return self.file.startswith("kernels/")

    @property
    def source(self) -> str:
        return self.cu or (Path(self.file).stem if self.file.endswith(".cu") else self.op)


VECTOR = "csrc/utils/vector.cuh"
TABLE = "csrc/utils/tensor_table.cuh"
REDUCE = "csrc/utils/block_reduce.cuh"
SELECT = "csrc/utils/block_select.cuh"
SEARCH = "csrc/utils/row_search.cuh"
KEPT = "csrc/utils/ties_kept.cuh"
TALL = "csrc/utils/tall_vector.cuh"
WSUM = "csrc/ops/cuda/weighted_sum.cu"
BACKWARD = "csrc/ops/cuda/weighted_sum_backward.cu"
KTH = "csrc/ops/cuda/kth_magnitude.cu"
TIES = "csrc/ops/cuda/ties_merge.cu"
CRUMBS = "csrc/ops/cuda/breadcrumbs.cu"
DARE = "csrc/ops/cuda/dare.cu"
SELECTED = "csrc/utils/selected.cuh"
STEP = "csrc/utils/sparse_step.cuh"
BOTTOM = "csrc/ops/cuda/bottom_k_mask.cu"
NORM = "csrc/ops/cuda/dual_layer_norm.cu"
FISHER = "csrc/ops/cuda/fisher_diag_elementwise_.cu"
LONG = "or long_segments or ties_are_cut"
ZERO = "or zero_votes"
CUTS = "or breadcrumbs_cuts"

MUTANTS = [
    # What all operators share: vectors and their tails, the table of tensors, offsets.
    Mutant("load reads behind the end", VECTOR, "weighted_sum", "j < n ? source[j] : T{}", "source[j]"),
    Mutant("load fills the tail with the first", VECTOR, "weighted_sum_backward", "source[j] : T{}", "source[j] : source[0]"),
    Mutant("store writes behind the end", VECTOR, "where_bits", "      if (j < n) target[j] = x[j];", "      target[j] = x[j];"),
    Mutant("second half of a vector is the first", VECTOR, "tall_mask", "source + p, *re", "source, *re"),
    Mutant("second half of a vector is stored over the first", VECTOR, "consensus", "(x + p), target + p)", "(x + p), target)"),
    Mutant("half is rounded as bfloat16", VECTOR, "weighted_sum", "return __float2half_rn(x);", "return __float2half_rn(__bfloat162float(__float2bfloat16_rn(x)));", quick=True),
    Mutant("chunk belongs to the tensor before", TABLE, "unpack_bits", "first_chunk <= chunk ?", "first_chunk < chunk ?"),
    Mutant("stride leaves chunks out", TABLE, "count_nonfinite", "chunk += gridDim.x) f", "chunk += gridDim.x + 1) f", quick=True),
    Mutant("last chunk goes on behind the tensor", TABLE, "weighted_sum", "begin + table.chunk_size < tensor.numel ? begin + table.chunk_size : tensor.numel", "begin + table.chunk_size"),
    Mutant("int for a chunk's offset", TABLE, "count_nonfinite", "const int64_t begin = (chunk", "const int begin = (chunk", tests="or beyond_two_to_the_31_are_right"),
    Mutant("int for an element's offset", TABLE, "count_nonfinite", "int64_t i = span.begin", "int i = span.begin", tests="or beyond_two_to_the_31_are_right"),
    Mutant("tail taken for a whole vector", TABLE, "weighted_sum", "span.tensor.aligned && n >= W", "span.tensor.aligned && n > 0"),
    Mutant("odd address taken for an aligned one", TABLE, "where_bits", "span.tensor.aligned && n >= W", "n >= W", quick=True),
    Mutant("second packet lies over the first", TABLE, "tall_mask", "(memory.mutable_data_ptr()) + i;", "(memory.mutable_data_ptr());"),
    Mutant("pointers of the tensor before", TABLE, "weighted_sum", "table.pointers + i * table.width", "table.pointers + i * (table.width - 1)"),
    # Sums over a block.
    Mutant("no barrier before the warps' sums are read", REDUCE, "weighted_sum_backward", "  __syncthreads();\n#pragma unroll", "#pragma unroll", quick=True),
    Mutant("no barrier before the sums are written again", REDUCE, "ties_square_sums", "  __syncthreads();  // the next call may write\n", "", cu="ties_merge"),
    Mutant("last warp's sum is left out", REDUCE, "weighted_sum_backward", "warp < kWarps; ++warp", "warp < kWarps - 1; ++warp"),
    Mutant("half a warp is summed", REDUCE, "count_nonfinite", "int step = 16", "int step = 8"),
    # Selection by ranks.
    Mutant("rank found one item early", SELECT, "kth_magnitude", "count_of(first + j)) < rank", "count_of(first + j)) + 1 < rank"),
    Mutant("scan leaves out a lane", SELECT, "kth_magnitude", "if (lane >= step)", "if (lane > step)"),
    Mutant("no barrier before the scan's sums are read", SELECT, "kth_magnitude", "if (lane == 31) sums[warp] = end;\n    __syncthreads();", "if (lane == 31) sums[warp] = end;", tests=LONG),
    Mutant("rank is not reduced round by round", SELECT, "kth_magnitude", "    rank -= total;\n", "", tests=LONG),
    Mutant("ties are not cut", SELECT, "kth_magnitude", "tied = bin.rank < bin.count;", "tied = false;"),
    Mutant("cutoff one short", SELECT, "kth_magnitude", "return {prefix, last.index + 1};", "return {prefix, last.index};", quick=True),
    Mutant("bins are not cleared", SELECT, "kth_magnitude", "    for (int b = threadIdx.x; b < at.bins; b += kBlock) counts[b] = 0;\n", ""),
    Mutant("prefix is not compared", SELECT, "kth_magnitude", "if (at.follows(bits, prefix)) atomic", "atomic"),
    Mutant("no barrier between clearing and counting", SELECT, "kth_magnitude", "counts[b] = 0;\n    __syncthreads();\n    for (int i", "counts[b] = 0;\n    for (int i"),
    Mutant("counts of long segments are added to the first", KTH, "kth_magnitude", "x.counts + cell * kBins + b", "x.counts + b", tests=LONG),
    Mutant("long segment's bins are not cleared", SELECT, "kth_magnitude", "  for (int b = threadIdx.x; b < at.bins; b += kBlock) counts[b] = 0;\n  return", "  return", tests=LONG),
    Mutant("position of a run in its segment is left out", KTH, "kth_magnitude", "run.tensor.info.position + end_of_rank", "end_of_rank", tests=LONG),
    Mutant("task and segment are swapped", KTH, "kth_magnitude", "thresholds[segment * tasks + t]", "thresholds[t * tasks + segment]"),
    # Breadcrumbs' rows in registers.
    Mutant("largest is outside the bracket", SEARCH, "breadcrumbs", "high(largest + 1)", "high(largest)", tests=CUTS),
    Mutant("candidates are not counted from zero", SEARCH, "breadcrumbs", "gathered[threadIdx.x] = 0;", ";", tests=CUTS),
    Mutant("one set of sums in turn", SEARCH, "breadcrumbs", "sums[turn & 1]", "sums[0]", tests=CUTS),
    Mutant("no barrier between gathering and comparing", SEARCH, "breadcrumbs", "atomicAdd(&gathered[c], 1u)] = bits[j];\n  }\n  barrier<kBlock>();", "atomicAdd(&gathered[c], 1u)] = bits[j];\n  }", tests=CUTS),
    Mutant("equal candidates are counted once more", SEARCH, "breadcrumbs", "&& other < i;", "&& other <= i;", tests=CUTS),
    Mutant("band keeps the outliers", CRUMBS, "breadcrumbs", "cuts[1].holds(bits[j], i) && !cuts[0].holds(bits[j], i)", "cuts[1].holds(bits[j], i)", quick=True),
    Mutant("bands of a long row are read too early", CRUMBS, "breadcrumbs", "counts, bands[t]);\n  __syncthreads();", "counts, bands[t]);", tests=CUTS),
    Mutant("longest short row is cut off", CRUMBS, "breadcrumbs", "row > kLongest[c]", "row > kLongest[c] + 1", tests=CUTS),
    # The operators' own.
    Mutant("weights are taken task by task", WSUM, "weighted_sum", "weights + t * length + span.tensor.index", "weights + t + length * span.tensor.index"),
    Mutant("base and task are swapped", WSUM, "weighted_sum", "weight, x[j], base[j]", "weight, base[j], x[j]"),
    Mutant("task before is added", WSUM, "weighted_sum", "span.at<const T>(2 + t) + i", "span.at<const T>(1 + t) + i"),
    Mutant("tasks beyond the last are read", BACKWARD, "weighted_sum_backward", "      if (first + u >= tasks) break;\n", ""),
    Mutant("second group of tasks is written over the first", BACKWARD, "weighted_sum_backward", "tasks + first + u] = sums[u]", "tasks + u] = sums[u]"),
    Mutant("tensor's sum takes the next tensor's chunks", BACKWARD, "weighted_sum_backward", "table.entries[i + 1].first_chunk", "table.chunks"),
    Mutant("half's infinity is bfloat16's", "csrc/ops/cuda/count_nonfinite.cu", "count_nonfinite", "0x7C00 : 0x7F80", "0x7F80 : 0x7F80"),
    Mutant("second half-word of a block is another element", DARE, "dare", "e + half % W + half / W * 32", "e + half % W + half / W * 4"),
    Mutant("word counts as whole too early", DARE, "dare", "n >= 32 + W", "n >= W"),
    Mutant("stream of another task", DARE, "dare", "draw.streams + cell", "draw.streams + span.tensor.index"),
    Mutant("byte behind the mask is written", "csrc/ops/cuda/pack_bits.cu", "pack_bits", "if (i + 8 < span.end) out[1]", "out[1]"),
    Mutant("byte behind the mask is read", "csrc/ops/cuda/unpack_bits.cu", "unpack_bits", "i + 8 < span.end ? spread_eight(bits[1]) : 0", "spread_eight(bits[1])"),
    Mutant("rows of masks are rounded down", "csrc/ops/cuda/tall_mask.cu", "tall_mask", "packed_size(span.tensor.numel)", "(span.tensor.numel / 8)"),
    Mutant("one vote more is needed", "csrc/ops/cuda/consensus.cu", "consensus", "votes[j] >= threshold", "votes[j] > threshold"),
    Mutant("bits of the first half of a byte", "csrc/ops/cuda/where_bits.cu", "where_bits", " >> (i % 8);", ";"),
    Mutant("first task is left out of the sum", TALL, "tall_mask", "for (int64_t t = 0; t < tasks; ++t) {\n    load", "for (int64_t t = 1; t < tasks; ++t) {\n    load"),
    Mutant("one tie too many is kept", KEPT, "ties_merge", "j < ties ?", "j <= ties ?"),
    Mutant("row's end is not seen", KEPT, "ties_merge", "    if (++column == info.row_size) column = 0, cell += trim.tasks;\n", "    ++column;\n"),
    Mutant("position in the segment is left out", KEPT, "ties_merge", "- info.position - i;", "- i;"),
    Mutant("negative deltas vote twice", TIES, "ties_merge", "deltas[j] < 0 ? 1u << 16 : 0", "deltas[j] < 0 ? 2u << 16 : 0"),
    Mutant("zero vote is not reported", TIES, "ties_merge_part", "if (mattered) atomicOr(x.tally + 1, 1ull);", ""),
    Mutant("majority is merged again without need", TIES, "ties_merge", "x.mattered[chunk] = mattered ? 1 : 0;", "x.mattered[chunk] = 0;", tests=ZERO),
    Mutant("tally takes one warp", TIES, "ties_merge_part", "if (threadIdx.x % 32 == 0 && signs", "if (threadIdx.x == 0 && signs"),
    # Selected entries and their steps.
    Mutant("block of an entry is one too early", SELECTED, "sparse_sgd_step_", "while (j + k >= block_end)", "while (j + k > block_end)"),
    Mutant("run is left one entry late", SELECTED, "sparse_sgd_step_", "j + k >= end)", "j + k > end)"),
    Mutant("chunk goes on behind the last entry", SELECTED, "selected_square_sums", "x.end = end < count ? end : count;", "x.end = end;"),
    Mutant("gradient is taken for a compact one", STEP, "sparse_sgd_step_", "scattered && !span.tensor.info.compact_grad", "false"),
    Mutant("scalars of the first tensor", STEP, "sparse_adamw_step_", "folded[span.tensor.index]", "folded[0]"),
    Mutant("second state is not written", STEP, "sparse_adamw_step_", "for (int s = 0; s < S; ++s) store", "for (int s = 0; s < 1; ++s) store"),
    Mutant("random bits of the entry before", STEP, "sparse_adamw_step_", "(j % 8) + k);", "(j % 8) + k / 2);", tests="or (random_is_the_same and cuda_emulated)"),
    Mutant("step is taken in spite of infinities", STEP, "sparse_adamw_step_", "  if (given.skips()) return;\n", ""),
    Mutant("run of equal digits is counted once", BOTTOM, "bottom_k_mask", "    if (count_) atomicAdd(&counts_[bin_], count_);", "    if (count_) atomicAdd(&counts_[bin_], 1u);"),
    Mutant("last digits are not flushed", BOTTOM, "bottom_k_mask", "  counter.flush();\n", ""),
    Mutant("excluded entries are ties", BOTTOM, "bottom_k_mask", "j < n && !(excluded_bits(span, i) >> (i % W) & 1) &&", "j < n &&"),
    Mutant("later chunks take ties, too", BOTTOM, "bottom_k_mask", "last.end : span.begin;", "last.end : span.end;"),
    Mutant("Fisher information in the model's type", "csrc/ops/cuda/fisher_merge.cu", "fisher_merge", "load_floats<W>(span.at<const decltype(zero)>(1 + tasks + t)", "load_floats<W>(span.at<const T>(1 + tasks + t)"),
    Mutant("low end is counted twice", "csrc/ops/cuda/count_magnitudes_.cu", "count_magnitudes_", "if (bits > low && bits < high)", "if (bits >= low && bits < high)"),
    Mutant("cutoff of the chunk before", "csrc/ops/cuda/tie_cutoffs.cu", "tie_cutoffs", "span_of(table, chunk.index)", "span_of(table, chunk.index > 0 ? chunk.index - 1 : 0)"),
    # Tangents of norms and activations, Fisher information of norms.
    Mutant("mean of the tangent is left out", NORM, "dual_layer_norm", "    m.mean_dx = sums[1] * a.per_width;\n", ""),
    Mutant("second sums start from the first", NORM, "dual_layer_norm", "  sums[0] = sums[1] = 0;\n", ""),
    Mutant("row's tail counts in the mean", NORM, "dual_layer_norm", "if (begin(v) + (whole ? 0 : j) < width) f", "f"),
    Mutant("warps share a row", NORM, "dual_layer_norm", "int64_t{kWarps} + threadIdx.x / 32; row", "int64_t{kWarps} + threadIdx.x / 64; row"),
    Mutant("absent weight is zero", NORM, "dual_layer_norm", "load_or<W>(1, a.weight", "load_or<W>(0, a.weight"),
    Mutant("second vector takes the first's tangent", "csrc/ops/cuda/dual_gelu.cu", "dual_gelu", "(a.dx) + i + v * kApart", "(a.dx) + i"),
    Mutant("last block counts as whole", "csrc/utils/array_steps.cuh", "dual_gelu", "aligned && left == kStep", "aligned && left > 0"),
    Mutant("gate is taken for its tangent", "csrc/ops/cuda/dual_glu.cu", "dual_glu", "(arrays.db) + i", "(arrays.b) + i"),
    Mutant("tangents take the last block for a whole one", "csrc/utils/array_steps.cuh", "dual_glu", "aligned && left == kStep", "aligned && left > 0"),
    Mutant("lines are added before all are there", FISHER, "fisher_diag_elementwise_", "sums[warp][lane][j] = x[j];\n  }\n  __syncthreads();", "sums[warp][lane][j] = x[j];\n  }"),
    Mutant("lines are added over the next ones", FISHER, "fisher_diag_elementwise_", "  __syncthreads();  // the next call may write\n", ""),
    Mutant("squares of sums over lines twice", FISHER, "fisher_diag_elementwise_", "if (!a.by_tokens) sum_lines(total);", "sum_lines(total);"),
    Mutant("last part is left out", FISHER, "fisher_diag_elementwise_", "p < a.parts; ++p)", "p + 1 < a.parts; ++p)"),
    # Triton.
    Mutant("block's number is one too high", "kernels/weighted_sum.py", "weighted_sum", "tl.program_id(0).to(tl.int64) * BLOCK +", "(tl.program_id(0).to(tl.int64) + 1) * BLOCK +", quick=True),
    Mutant("tail is not masked", "kernels/weighted_sum.py", "weighted_sum", "tl.store(out + i, total.to(tl.float32).to(out.dtype.element_ty), mask=inside)", "tl.store(out + i, total.to(tl.float32).to(out.dtype.element_ty))"),
    Mutant("groups of tasks start anew", "kernels/weighted_sum.py", "weighted_sum", "FIRST=first == 0", "FIRST=True"),
    Mutant("weights of the first group", "kernels/weighted_sum.py", "weighted_sum", "group, weights[first:]", "group, weights"),
    Mutant("samples' sums are squared together", "kernels/fisher_diag_.py", "fisher_diag_", "                squares += run * run\n                run = tl.zeros((BLOCK_O, BLOCK_K), tl.float32)", "                squares += run * run"),
    Mutant("tokens of the next sample are read", "kernels/fisher_diag_.py", "fisher_diag_", "inside = token < tokens - first", "inside = token < tokens"),
    Mutant("Fisher is replaced", "kernels/fisher_diag_.py", "fisher_diag_", "tl.load(out, mask=inside, other=0.0) + scale", "scale"),
    Mutant("tangent of the weight takes the input's tangent", "kernels/dual_linear.py", "dual_linear", "add_product(tangent, xs, dws)", "add_product(tangent, dxs, dws)"),
    Mutant("inner tail is not masked", "kernels/dual_linear.py", "dual_linear", "x_inside = (rows < count)[:, None] & (at < k)[None, :]", "x_inside = (rows < count)[:, None] & (at >= 0)[None, :]"),
    Mutant("gate's slope is its value", "kernels/dual_glu.py", "dual_glu", "_slope(x, FORM) * gate", "_value(x, FORM) * gate"),
    Mutant("mask's tangent is scaled", "kernels/dual_attention.py", "dual_attention_biased", "                ds += bias_tile(", "                ds += scale * bias_tile("),
    Mutant("digit that holds the rank is left out", "kernels/_radix.py", "kth_magnitude", "counts, 0) < left)", "counts, 0) <= left)"),
    Mutant("leading digits are forgotten", "kernels/_radix.py", "bottom_k_mask", "inside & (before == prefix.to(tl.uint32))", "inside"),
    Mutant("ties of the tensors before are forgotten", "kernels/_magnitude_ranks.py", "kth_magnitude", "before + ties.cumsum(0)", "ties.cumsum(0)"),
    Mutant("cutoff is the tie itself", "kernels/_magnitude_ranks.py", "tie_cutoffs", "position + block * TIES + last + 1", "position + block * TIES + last"),
    Mutant("ties of a row count anew in every tile", "kernels/_magnitude_ranks.py", "breadcrumbs", "rank = before + tl.cumsum(tied, 0)", "rank = tl.cumsum(tied, 0)"),
    Mutant("removed entries are kept", "kernels/breadcrumbs.py", "breadcrumbs", "kept & (removed == 0)", "kept"),
    Mutant("excluded scores compete", "kernels/bottom_k_mask.py", "bottom_k_mask", "(i & 7).to(tl.int32)) & 1) == 0)", "(i & 7).to(tl.int32)) & 1) < 2)"),
    Mutant("lower end is counted twice in Triton", "kernels/count_magnitudes_.py", "count_magnitudes_", "(bits > low) & (bits < high)", "(bits >= low) & (bits < high)"),
    Mutant("place counts its own entry", "kernels/_weight_gradient.py", "masked_wgrad_", "tl.cumsum(bits, 1) - bits", "tl.cumsum(bits, 1)"),
    Mutant("third quarter is taken for the second", "kernels/_weight_gradient.py", "masked_wgrad_", "return first, second, third, fourth", "return first, third, second, fourth"),
    Mutant("tile's start is the tile's before", "kernels/_weight_gradient.py", "masked_wgrad_", "first = tl.load(starts + rows * (across + 1) + tile,", "first = tl.load(starts + rows * (across + 1) + tile // 2,"),
    Mutant("gradient is written, not added", "kernels/masked_wgrad_.py", "masked_wgrad_", "before + gradient[i]", "gradient[i]"),
    Mutant("lower half of a Gram matrix is not written", "kernels/_gram.py", "truncated_svd", "        if top < left:\n", "        if top > left:\n"),
    Mutant("matrices of a batch are taken for the first", "kernels/_gram.py", "truncated_svd", "(number % each).to(tl.int64)", "(number // each).to(tl.int64)"),
    Mutant("inner sum of the projection ends early", "kernels/_gram.py", "truncated_svd", "for first in range(0, n, BLOCK_N):", "for first in range(0, n - BLOCK_N, BLOCK_N):"),
    Mutant("base is added", "kernels/_gram.py", "lowrank_sum", "value -= load_double(base", "value += load_double(base"),
    Mutant("tasks are taken for the first", "kernels/_gram.py", "lowrank_sum", "if tensor == t:", "if tensor > t:"),
    Mutant("second moment takes the gradient", "kernels/_adamw.py", "masked_wgrad_adamw_step_", "rounded_product(rest2, g), g, rounded", "rounded_product(rest2, g), m, rounded"),
]  # fmt: skip

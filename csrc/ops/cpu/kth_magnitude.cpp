#include "ops/kth_magnitude.h"

#include <atomic>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>

#include "math/rank_select.h"
#include "math/ties_scan.h"
#include "utils/parallel.h"

namespace taskarith {
namespace {

constexpr int64_t kBlock = 65536;  // elements a work item, and the size up to which a segment is simply selected
constexpr int64_t kScratch = kBlock + kScanSlack;
constexpr int64_t kStrip = 2048;         // base stays in the first-level cache while the tasks pass over it
constexpr int64_t kLine = 16;            // floats of a cache line: sampled together, since they are read together
constexpr int64_t kMaxSample = 1 << 18;  // see sample_brackets
constexpr int64_t kMagnitudeBits = 31;
constexpr uint32_t kInfinity = 0x7F800000u;

struct Views {
  std::vector<ScalarType> types;       // [L]
  std::vector<const void*> base;       // [L]
  std::vector<const void*> finetuned;  // [T * L], task-major
  int64_t tasks;

  const void* task(int64_t t, int64_t tensor) const { return finetuned[t * base.size() + tensor]; }
};

// A run of whole or partial tensors that is selected as one: block offsets count from its start.
struct Segment {
  std::vector<Block> blocks;
  std::vector<int64_t> offsets;  // elements before each block
  int64_t numel = 0;
  int64_t k = 0;

  void add(const Block& block) {
    blocks.push_back(block);
    offsets.push_back(numel);
    numel += block.size;
  }
};

struct Kth {
  uint32_t bits = kInfinity;  // of the magnitude
  int64_t cutoff = 0;         // entries equal to it are among the k first where their position is below
};

struct Buffers {
  alignas(64) float base[kStrip], finetuned[kStrip];
};

// f(strip's base, strip's finetuned, position in the block, size) over one block, both as floats.
template <class F>
void for_strips(const Views& x, int64_t t, const Block& block, Buffers& buffers, const F& f) {
  for (int64_t s = 0; s < block.size; s += kStrip) {
    const int64_t n = std::min(kStrip, block.size - s);
    const ScalarType type = x.types[block.tensor];
    const float* b = load_block(x.base[block.tensor], type, block.begin + s, n, buffers.base);
    f(b, load_block(x.task(t, block.tensor), type, block.begin + s, n, buffers.finetuned), s, n);
  }
}

std::vector<uint32_t> block_magnitudes(const Views& x, int64_t t, const Block& block) {
  std::vector<uint32_t> bits(block.size);
  Buffers buffers;
  for_strips(x, t, block, buffers,
             [&](const float* b, const float* f, int64_t s, int64_t n) { fill_magnitudes(f, b, bits.data() + s, n); });
  return bits;
}

// Position after the rank-th (from 1) entry equal to `value`.
int64_t end_of_rank(const std::vector<uint32_t>& bits, uint32_t value, int64_t rank) {
  int64_t i = 0;
  while (rank > 0) rank -= bits[i++] == value;
  return i;
}

// At most kBlock elements: materialize them.
Kth select_small(const Views& x, int64_t t, const Segment& segment) {
  if (segment.k == 0) return {};
  std::vector<uint32_t> bits;
  bits.reserve(segment.numel);
  for (const Block& block : segment.blocks) {
    const std::vector<uint32_t> part = block_magnitudes(x, t, block);
    bits.insert(bits.end(), part.begin(), part.end());
  }
  std::vector<uint32_t> sorted = bits;
  std::nth_element(sorted.begin(), sorted.begin() + (segment.k - 1), sorted.end(), std::greater<>());
  const uint32_t kth = sorted[segment.k - 1];
  int64_t above = 0, equal = 0;
  for (const uint32_t b : bits) above += b > kth, equal += b == kth;
  const int64_t kept = segment.k - above;
  return {kth, kept == equal ? segment.numel : end_of_rank(bits, kth, kept)};
}

// Magnitudes at one random line of each stretch of the segment, the same lines for every task. [T, sample]
std::vector<std::vector<uint32_t>> draw_sample(const Views& x, const Segment& segment) {
  const int64_t lines = std::min(kMaxSample, segment.numel / 8) / kLine, stretch = segment.numel / lines;
  std::vector<std::vector<uint32_t>> sample(x.tasks, std::vector<uint32_t>(lines * kLine));
  parallel_ranges(lines, [&](int64_t first, int64_t last) {
    alignas(64) float b[kLine], f[kLine];
    for (int64_t j = first; j < last; ++j) {
      const int64_t position = j * stretch + static_cast<int64_t>(mix(j) % static_cast<uint64_t>(stretch));
      const auto after = std::upper_bound(segment.offsets.begin(), segment.offsets.end(), position);
      const int64_t index = after - segment.offsets.begin() - 1;
      const Block& block = segment.blocks[index];
      const int64_t n = std::min(kLine, block.size);
      const int64_t begin = block.begin + std::min((position - segment.offsets[index]) & -kLine, block.size - n);
      const ScalarType type = x.types[block.tensor];
      const float* base = load_block(x.base[block.tensor], type, begin, n, b);
      for (int64_t t = 0; t < x.tasks; ++t) {
        uint32_t* out = &sample[t][j * kLine];
        fill_magnitudes(load_block(x.task(t, block.tensor), type, begin, n, f), base, out, n);
        for (int64_t i = n; i < kLine; ++i) out[i] = out[i - n];  // a shorter tensor's entries count repeatedly
      }
    }
  });
  return sample;
}

Bracket bracket_of(const std::vector<uint32_t>& sample, const Segment& segment) {
  return bracket_rank(sample, segment.k, segment.numel, kNan, kAbove);
}

struct TaskScan {
  Bracket bracket;
  std::vector<BlockScan> blocks;
  std::atomic<int64_t> stored{0};
  std::atomic<bool> overflow{false};  // more entries in the bracket than memory is spent on

  TaskScan(Bracket b, size_t n) : bracket(b), blocks(n) {}
};

void scan_block(const Views& x, const std::vector<int64_t>& tasks, std::deque<TaskScan>& scans, const Segment& segment,
                int64_t index, Buffers& buffers, std::vector<uint32_t>& scratch) {
  const Block& block = segment.blocks[index];
  const ScalarType type = x.types[block.tensor];
  std::vector<int64_t> found(tasks.size(), 0);
  for (int64_t s = 0; s < block.size; s += kStrip) {
    const int64_t n = std::min(kStrip, block.size - s);
    const float* b = load_block(x.base[block.tensor], type, block.begin + s, n, buffers.base);
    for (size_t j = 0; j < tasks.size(); ++j) {
      const float* f = load_block(x.task(tasks[j], block.tensor), type, block.begin + s, n, buffers.finetuned);
      found[j] += scan(f, b, n, scans[j].bracket, scans[j].blocks[index].counts, &scratch[j * kScratch + found[j]]);
    }
  }
  for (size_t j = 0; j < tasks.size(); ++j) {
    if (scans[j].stored.fetch_add(found[j]) + found[j] > segment.numel / 8 + kBlock) scans[j].overflow = true;
    if (!scans[j].overflow)
      scans[j].blocks[index].inside.assign(&scratch[j * kScratch], &scratch[j * kScratch] + found[j]);
  }
}

// One pass over the segment for all `tasks`, each against its bracket.
std::deque<TaskScan> scan_segment(const Views& x, const std::vector<int64_t>& tasks,
                                  const std::vector<Bracket>& brackets, const Segment& segment) {
  std::deque<TaskScan> scans;  // its elements never move
  for (const Bracket& bracket : brackets) scans.emplace_back(bracket, segment.blocks.size());
  parallel_ranges(static_cast<int64_t>(segment.blocks.size()), [&](int64_t first, int64_t last) {
    Buffers buffers;
    std::vector<uint32_t> scratch(tasks.size() * kScratch);
    for (int64_t i = first; i < last; ++i) scan_block(x, tasks, scans, segment, i, buffers, scratch);
  });
  return scans;
}

// Entries of a block equal to `value`, one of the bracket's ends or an entry inside.
int64_t count_equal(const TaskScan& scan, const BlockScan& block, uint32_t value) {
  if (value == scan.bracket.high) return block.counts.at_high;
  if (value == scan.bracket.low) return block.counts.at_low;
  return std::count(block.inside.begin(), block.inside.end(), value);
}

// The position after which ties are dropped so that k entries are kept; the segment's end if none is.
int64_t find_cutoff(const Views& x, int64_t t, const TaskScan& scan, const Segment& segment, const Selected& kth) {
  int64_t kept = segment.k - kth.above;
  if (kept == kth.equal) return segment.numel;
  size_t i = 0;
  for (int64_t equal = 0; kept > (equal = count_equal(scan, scan.blocks[i], kth.value)); ++i) kept -= equal;
  return segment.offsets[i] + end_of_rank(block_magnitudes(x, t, segment.blocks[i]), kth.value, kept);
}

// False if the bracket missed.
bool finish(const Views& x, int64_t t, const TaskScan& scan, const Segment& segment, Kth& result) {
  const std::optional<Selected> kth = select_scanned(scan.blocks, scan.bracket, scan.overflow, segment.k);
  if (kth) result = {kth->value, find_cutoff(x, t, scan, segment, *kth)};
  return kth.has_value();
}

// The k-th magnitude whatever the layout and the ties: three histograms of 11, 10 and 10 bits, each over the entries
// that share the bits found so far.
uint32_t select_by_histograms(const Views& x, int64_t t, const Segment& segment) {
  uint32_t prefix = 0;
  int64_t rank = segment.k;
  int64_t shift = kMagnitudeBits;
  for (const int64_t width : {11, 10, 10}) {
    const int64_t known = shift;
    shift -= width;
    std::vector<int64_t> histogram(int64_t{1} << width, 0);
    std::mutex mutex;
    parallel_ranges(static_cast<int64_t>(segment.blocks.size()), [&](int64_t first, int64_t last) {
      std::vector<int64_t> local(histogram.size(), 0);
      for (int64_t i = first; i < last; ++i)
        for (const uint32_t bits : block_magnitudes(x, t, segment.blocks[i]))
          if ((bits >> known) == prefix) ++local[(bits >> shift) & (local.size() - 1)];
      const std::lock_guard<std::mutex> lock(mutex);
      for (size_t b = 0; b < local.size(); ++b) histogram[b] += local[b];
    });
    int64_t b = static_cast<int64_t>(histogram.size()) - 1;
    for (; rank > histogram[b]; --b) rank -= histogram[b];
    prefix = (prefix << width) | static_cast<uint32_t>(b);
  }
  return prefix;
}

// More than kBlock elements: sample, bracket, scan once for all tasks; histograms for a task whose bracket missed.
std::vector<Kth> select_large(const Views& x, const Segment& segment) {
  std::vector<Kth> result(x.tasks);
  if (segment.k == 0) return result;
  std::vector<std::vector<uint32_t>> sample = draw_sample(x, segment);
  std::vector<Bracket> brackets(x.tasks);
  std::vector<int64_t> tasks(x.tasks);
  parallel_ranges(x.tasks, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) tasks[t] = t, brackets[t] = bracket_of(sample[t], segment);
  });
  const std::deque<TaskScan> scans = scan_segment(x, tasks, brackets, segment);
  std::vector<char> found(x.tasks);
  parallel_ranges(x.tasks, [&](int64_t first, int64_t last) {
    for (int64_t t = first; t < last; ++t) found[t] = finish(x, t, scans[t], segment, result[t]);
  });
  for (int64_t t = 0; t < x.tasks; ++t) {
    if (found[t]) continue;
    const uint32_t kth = select_by_histograms(x, t, segment);
    finish(x, t, scan_segment(x, {t}, {{kth, kth}}, segment)[0], segment, result[t]);
  }
  return result;
}

std::vector<Segment> cut_into_segments(const Segments& segments, const std::vector<int64_t>& k) {
  std::vector<Segment> out(segments.count());
  for (int64_t i = 0; i < static_cast<int64_t>(segments.numels().size()); ++i)
    for (int64_t e = 0; e < segments.numels()[i];) {
      const Place place = segments.at(i, e);
      const int64_t size = std::min(kBlock, place.left);
      out[place.segment].add({i, e, size});
      e += size;
    }
  for (Segment& s : out)
    if (s.numel > 0) s.k = k[segments.scope() == Scope::kGlobal ? 0 : s.blocks[0].tensor];
  return out;
}

// [S, T] tables of thresholds and cutoffs.
void kth_magnitude(const Views& x, const std::vector<Segment>& segments, float* thresholds, int64_t* cutoffs) {
  const auto store = [&](int64_t s, int64_t t, const Kth& kth) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    thresholds[s * x.tasks + t] = kth.bits == kNan ? nan : __builtin_bit_cast(float, kth.bits);
    cutoffs[s * x.tasks + t] = kth.cutoff;
  };
  std::vector<int64_t> small;
  for (int64_t s = 0; s < static_cast<int64_t>(segments.size()); ++s) {
    if (segments[s].numel <= kBlock) {
      small.push_back(s);
      continue;
    }
    const std::vector<Kth> kth = select_large(x, segments[s]);
    for (int64_t t = 0; t < x.tasks; ++t) store(s, t, kth[t]);
  }
  parallel_ranges(static_cast<int64_t>(small.size()) * x.tasks, [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j)
      store(small[j / x.tasks], j % x.tasks, select_small(x, j % x.tasks, segments[small[j / x.tasks]]));
  });
}

std::tuple<Tensor, Tensor> kth_magnitude_cpu(TensorList base, TensorList finetuned, std::vector<int64_t> k,
                                             std::string scope) {
  const Segments segments = make_segments("kth_magnitude", base, scope);
  const int64_t tasks = check_kth_magnitude(base, finetuned, k, segments);
  base = contiguous(base);
  finetuned = contiguous(finetuned);
  Views x{{}, {}, {}, tasks};
  for (const Tensor& b : base) {
    x.types.push_back(b.scalar_type());
    x.base.push_back(b.const_data_ptr());
  }
  for (const Tensor& f : finetuned) x.finetuned.push_back(f.const_data_ptr());
  Tensor thresholds = torch::stable::empty({segments.count(), tasks}, ScalarType::Float);
  Tensor cutoffs = torch::stable::empty({segments.count(), tasks}, ScalarType::Long);
  kth_magnitude(x, cut_into_segments(segments, k), thresholds.mutable_data_ptr<float>(),
                cutoffs.mutable_data_ptr<int64_t>());
  return {thresholds, cutoffs};
}

STABLE_TORCH_LIBRARY_IMPL(taskarith, CPU, m) { m.impl("kth_magnitude", TORCH_BOX(&kth_magnitude_cpu)); }

}  // namespace
}  // namespace taskarith

// The arithmetic of ties_merge, one coordinate at a time, for the CPU and the CUDA kernel. Everything is in double:
// base, deltas and votes may cancel, and then float32 keeps no digit.
#pragma once

#include <cstdint>

#include "utils/host_device.h"

namespace taskarith {

enum class Elect { kMass, kCount, kNormFrac, kNormMass };
enum class Combine { kMean, kSum, kMax };

// The vote after one more task: its sign is the elected one. `share` is 1 / (sum of the task's squared kept deltas).
template <Elect E>
TASKARITH_HOST_DEVICE double add_vote(double vote, double delta, double share) {
  if constexpr (E == Elect::kMass) return vote + delta;
  if constexpr (E == Elect::kCount) return vote + (delta > 0 ? 1.0 : 0.0) - (delta < 0 ? 1.0 : 0.0);
  const double fraction = delta * delta * share;
  if constexpr (E == Elect::kNormMass) return vote + delta * fraction;
  const double best = vote < 0 ? -vote : vote;  // the largest fraction so far, with the sign of its delta
  return fraction > best ? (delta < 0 ? -fraction : fraction) : vote;
}

// +1 or -1; `undecided` where the vote is zero.
TASKARITH_HOST_DEVICE double elected_sign(double vote, double undecided) {
  return vote > 0 ? 1.0 : vote < 0 ? -1.0 : undecided;
}

// The running total of the deltas of one sign: their sum, or for kMax the largest magnitude.
template <Combine C>
TASKARITH_HOST_DEVICE double add_agreeing(double total, double delta, double sign) {
  const double along = delta * sign;
  if constexpr (C == Combine::kMax) return along > total ? along : total;
  return along > 0 ? total + delta : total;
}

TASKARITH_HOST_DEVICE double count_agreeing(double count, double delta, double sign) {
  return delta * sign > 0 ? count + 1.0 : count;
}

template <Combine C>
TASKARITH_HOST_DEVICE double merged_delta(double total, double count, double sign) {
  if constexpr (C == Combine::kMax) return total * sign;
  if constexpr (C == Combine::kMean) return total / (count > 1 ? count : 1.0);
  return total;
}

}  // namespace taskarith

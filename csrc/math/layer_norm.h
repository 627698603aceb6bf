// What the derivative of a normalised row along a direction is made of.
#pragma once

#include <cmath>

#include "utils/host_device.h"

namespace taskarith {

// mean and mean_dx are 0 without centring.
struct NormMoments {
  float mean, rstd, mean_dx, mean_h_dx;
};

// A GPU's own is within 2 units in the last place.
TASKARITH_HOST_DEVICE float reciprocal_root(float x) {
#ifdef __CUDA_ARCH__
  return rsqrtf(x);
#else
  return 1.0f / sqrtf(x);
#endif
}

// From the sums of (x - mean)^2 and of (x - mean) dx.
TASKARITH_HOST_DEVICE void finish_moments(NormMoments& m, float squares, float dots, float per_width, float eps) {
  m.rstd = reciprocal_root(squares * per_width + eps);
  m.mean_h_dx = dots * m.rstd * per_width;
}

TASKARITH_HOST_DEVICE float carried_input(float x, float dx, float weight, const NormMoments& m) {
  return weight * m.rstd * (dx - m.mean_dx - (x - m.mean) * m.rstd * m.mean_h_dx);
}

TASKARITH_HOST_DEVICE float carried_weight(float x, float dweight, const NormMoments& m) {
  return (x - m.mean) * m.rstd * dweight;
}

}  // namespace taskarith

// A product that is rounded by itself: compilers contract a * b + c to one rounding, where and as they like.
#pragma once

#include <cmath>

#include "utils/host_device.h"

namespace taskarith {

TASKARITH_HOST_DEVICE float rounded_product(float a, float b) { return fmaf(a, b, -0.0f); }

}  // namespace taskarith

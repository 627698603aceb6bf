// Which weights a task needs: |tau_t| > lambda_t |tau_MT - tau_t| with tau_MT = sum_t tau_t, all in double.
#pragma once

#include <cmath>

#include "utils/host_device.h"

namespace taskarith {

TASKARITH_HOST_DEVICE bool is_needed(double delta, double lambda, double sum) {
  return fabs(delta) > lambda * fabs(sum - delta);
}

}  // namespace taskarith

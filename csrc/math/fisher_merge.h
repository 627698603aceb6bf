// One element of a Fisher-weighted mean (Matena & Raffel 2022, eq. 4), task by task in double.
#pragma once

#include "utils/host_device.h"

namespace taskarith {

struct FisherWeights {
  double share, factor;  // c_t scaled to add up to 1; c_t over the norm
};

// Fisher information is raised to at least `least`, then by `plus`.
TASKARITH_HOST_DEVICE void add_fisher(double theta, double information, const FisherWeights& weights, double least,
                                      double plus, double& needed, double& mass, double& total) {
  const double raised = weights.factor * ((information > least ? information : least) + plus);
  needed += weights.share * information;
  mass += raised;
  total += raised * theta;
}

}  // namespace taskarith

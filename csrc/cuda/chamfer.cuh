// Which kernels compute a Chamfer distance.
#pragma once

#include "chamfer_tiled.cuh"
#include "chamfer_warp.cuh"

namespace omnitrunk {

// Starts the kernels that fit best, one after another: launch(kernel, blocks).
template <class Launch>
void compare_sets(const Chamfer& problem, const Launch& launch) {
  const Clouds &a = problem.a, &b = problem.b;
  const auto pieces = [](int total, int per_block) { return total / per_block + (total % per_block != 0); };
  if (a.count == 0) return;
  if (problem.match_a == nullptr) {
    const bool one_slot = a.total / a.count <= simt::lanes && b.total / b.count <= simt::lanes;
    const int blocks = pieces(a.count, ChamferByWarp<1>::warps);
    if (one_slot) return launch(ChamferByWarp<1>{problem}, blocks);
    return launch(ChamferByWarp<2>{problem}, blocks);
  }
  const int nearest_a = pieces(a.total, ChamferNearest::rows_per_block);
  launch(ChamferNearest{problem, nearest_a}, nearest_a + pieces(b.total, ChamferNearest::rows_per_block));
  launch(ChamferLoss{problem}, a.count);
  if (problem.grad_a == nullptr) return;
  const int gradient_a = pieces(a.total, ChamferGradient::rows_per_block);
  launch(ChamferGradient{problem, gradient_a}, gradient_a + pieces(b.total, ChamferGradient::rows_per_block));
}

}  // namespace omnitrunk

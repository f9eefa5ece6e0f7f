// What both ways to compute the Chamfer distance share. For sets a of n and b of m points,
//
//   loss = (1/n) sum_i f(min_j |a_i - b_j|^2) + (1/m) sum_j f(min_i |a_i - b_j|^2)
//
// with f(d) = d, or f(d) = sqrt(d) / 2 where `root`. The gradient of a point has a term for its own nearest point, then
// one for every point of the other set that has chosen it, in the order of their index, added up one after another.
#pragma once

#include "geometry.cuh"

namespace omnitrunk {

OMNITRUNK_DEVICE float loss_term(float squared_distance, bool root) {
  return root ? simt::multiply(0.5f, simt::square_root(squared_distance)) : squared_distance;
}

// The derivative of f(d) / size along d, twice: what the difference of two points is multiplied with.
OMNITRUNK_DEVICE float gradient_weight(float squared_distance, int size, bool root) {
  const float count = static_cast<float>(size);
  if (!root) return simt::divide(2.0f, count);
  return simt::divide(0.5f, simt::multiply(count, simt::square_root(squared_distance)));
}

OMNITRUNK_DEVICE Point add_term(Point sum, float weight, Point p, Point q) {
  const Point d = difference(p, q);
  using simt::add, simt::multiply;
  return {add(sum.x, multiply(weight, d.x)), add(sum.y, multiply(weight, d.y)), add(sum.z, multiply(weight, d.z))};
}

OMNITRUNK_DEVICE float loss_of_sums(float sum_a, int size_a, float sum_b, int size_b) {
  return simt::add(simt::divide(sum_a, static_cast<float>(size_a)), simt::divide(sum_b, static_cast<float>(size_b)));
}

// The same sum in all lanes, always added in the same order.
OMNITRUNK_DEVICE float sum_of_warp(float mine) {
  OMNITRUNK_UNROLL
  for (int lane_distance = simt::lanes / 2; lane_distance > 0; lane_distance /= 2) {
    mine = simt::add(mine, simt::exchange(mine, lane_distance));
  }
  return mine;
}

// A point as one access to shared memory.
struct alignas(16) Stored {
  float x, y, z, weight;
  OMNITRUNK_DEVICE Point point() const { return {x, y, z}; }
};

}  // namespace omnitrunk

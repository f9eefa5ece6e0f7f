// Points, clouds and distances.
#pragma once

#include "problems.h"
#include "simt.cuh"

namespace omnitrunk {

struct Point {
  float x, y, z;
};

OMNITRUNK_DEVICE Point load_point(const float* points, int row) {
  const float* from = points + 3 * static_cast<std::int64_t>(row);
  return {simt::read_only(from), simt::read_only(from + 1), simt::read_only(from + 2)};
}

OMNITRUNK_DEVICE void store_point(float* points, std::int64_t row, Point p) {
  float* to = points + 3 * row;
  to[0] = p.x;
  to[1] = p.y;
  to[2] = p.z;
}

OMNITRUNK_DEVICE Point difference(Point p, Point q) {
  return {simt::subtract(p.x, q.x), simt::subtract(p.y, q.y), simt::subtract(p.z, q.z)};
}

OMNITRUNK_DEVICE float squared_norm(Point p) {
  using simt::add, simt::multiply;
  return add(add(multiply(p.x, p.x), multiply(p.y, p.y)), multiply(p.z, p.z));
}

OMNITRUNK_DEVICE float squared_distance(Point p, Point q) { return squared_norm(difference(p, q)); }

// Rows [begin, end) of one cloud.
struct Rows {
  int begin, end;
  OMNITRUNK_DEVICE int size() const { return end - begin; }
};

OMNITRUNK_DEVICE Rows rows_of(const Clouds& clouds, int cloud) {
  if (clouds.offsets != nullptr) {
    const std::int64_t* from = clouds.offsets + cloud;
    return {static_cast<int>(simt::read_only(from)), static_cast<int>(simt::read_only(from + 1))};
  }
  const int size = clouds.total / clouds.count;
  return {cloud * size, (cloud + 1) * size};
}

// The cloud that a row lies in.
OMNITRUNK_DEVICE int cloud_of(const Clouds& clouds, int row) {
  if (clouds.offsets == nullptr) return row / (clouds.total / clouds.count);
  int low = 0, high = clouds.count;  // offsets[low] <= row < offsets[high]
  while (high - low > 1) {
    const int middle = low + (high - low) / 2;
    (simt::read_only(clouds.offsets + middle) <= row ? low : high) = middle;
  }
  return low;
}

}  // namespace omnitrunk

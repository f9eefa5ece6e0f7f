// What the CUDA kernels for point clouds are asked: pointers to device memory and sizes.
#pragma once

#include <cstdint>

namespace omnitrunk {

// Clouds one after another in one array of points (x, y, z), fewer than 2^31 points in all.
struct Clouds {
  const float* points;          // (total, 3)
  const std::int64_t* offsets;  // (count + 1) first point of each cloud, or null where every cloud has total / count
  int count, total;
};

// Farthest point sampling: every pick is the point farthest from all picks before it, the lowest index among equals.
// A cloud without points is left alone.
struct Sampling {
  Clouds clouds;
  const std::int64_t* start;  // (clouds) the first pick of each cloud, or null for index 0
  bool pointnet2;             // never pick points within the square root of 1e-3 of the origin, except as the start
  int picks;                  // per cloud
  std::int64_t* index;        // (clouds, picks) out: indices within the cloud
  float* work;                // (total) distances to the nearest pick; null where sampling_work(clouds) is false
};

// The k nearest points of every query in its own cloud, ordered by (squared distance, index). Results may be null.
// A cloud with fewer than k points leaves index -1, an infinite distance and NaN coordinates.
struct Neighbors {
  Clouds clouds, queries;  // as many clouds of queries as of points
  int k;                   // 1 to 128
  std::int64_t* index;     // (queries, k) out: indices within the cloud
  float* distance;         // (queries, k) out: squared distances
  float* groups;           // (queries, k, 3) out: the neighbors minus their query
};

// The Chamfer distance of every pair of sets, and its gradients.
struct Chamfer {
  Clouds a, b;               // as many sets on both sides
  bool root;                 // distances instead of squared distances
  float* loss;               // (sets) out
  float *grad_a, *grad_b;    // (total, 3) out: the gradients of a set's loss; both null, or none
  float *nearest_a, *nearest_b;  // (total) work space: squared distance to the nearest point of the other side
  int *match_a, *match_b;        // (total) work space: that point
};

}  // namespace omnitrunk

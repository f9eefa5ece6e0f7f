// The face of the kernels for point clouds, under the rules of kernels.h, and what their sources share. A squared
// distance is (dx dx + dy dy) + dz dz, every operation rounded: the same bits on every processor, GPUs included.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"

#if defined(__GNUC__)
// Vectors are passed to functions that are always inlined only, so how they would be passed is of no interest.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace omnitrunk {

struct Point {
  float x, y, z;
};

// Clouds one after another in one array. Ragged clouds have offsets, all others `size` points each.
struct PointClouds {
  const Point* points;
  const std::int64_t* offsets;  // (count + 1) first point of each cloud, or null
  std::size_t count, size;

  std::size_t begin(std::size_t cloud) const {
    return offsets != nullptr ? static_cast<std::size_t>(offsets[cloud]) : cloud * size;
  }
  std::size_t size_of(std::size_t cloud) const { return begin(cloud + 1) - begin(cloud); }
  const Point* points_of(std::size_t cloud) const { return points + begin(cloud); }
};

// Farthest point sampling: every pick is the point farthest from all picks before it, the lowest index among equals.
// Points that are not finite are never picked, except as the start or where there is no other.
struct FarthestPointSampling {
  PointClouds clouds;         // of one point at least, unless picks is 0
  const std::int64_t* start;  // (clouds) the first pick of each cloud, or null for index 0
  bool pointnet2;             // nor are points with a squared norm of 1e-3 or less
  std::size_t picks;          // per cloud
  std::int64_t* index;        // (clouds, picks) out: indices within the cloud
};
void farthest_point_sample(const FarthestPointSampling& sampling, Execution execution);

// The k nearest points of every query in its cloud, ordered by (squared distance, index), NaN after infinity.
struct NeighborSearch {
  PointClouds clouds, queries;  // as many clouds of queries as of points
  std::size_t k;                // at least 1, at most the points of any cloud that has queries
  std::int64_t* index;          // (queries, k) out: indices within the cloud, or null
  float* distance;              // (queries, k) out: squared distances, or null
  Point* groups;                // (queries, k) out: the neighbors minus their query, or null
};
void nearest_neighbors(const NeighborSearch& search, Execution execution);

// The Chamfer distance of every pair of sets, and its gradients: kernels/chamfer.py has the formulas.
struct ChamferDistance {
  PointClouds a, b;        // as many sets on both sides, none of them empty
  bool root;               // half of the distances instead of squared distances
  float* loss;             // (sets) out
  Point *grad_a, *grad_b;  // (total) out: the gradients of each set's own loss; both null, or none
};
void chamfer(const ChamferDistance& problem, Execution execution);

// Some points of one cloud, in rows [begin, end) of the array of all.
struct Piece {
  std::size_t cloud, begin, end;
};

// Work for threads: all clouds, in pieces of at most `most` points.
inline std::vector<Piece> pieces_of(const PointClouds& clouds, std::size_t most) {
  std::vector<Piece> pieces;
  for (std::size_t cloud = 0; cloud < clouds.count; ++cloud) {
    const std::size_t end = clouds.begin(cloud + 1);
    for (std::size_t row = clouds.begin(cloud); row < end; row += most) {
      pieces.push_back({cloud, row, std::min(row + most, end)});
    }
  }
  return pieces;
}

// Vectors of as many numbers as a register of the instruction set holds: compilers take wider ones apart, and their
// comparisons number by number. (An alias cannot carry the attribute where the width is a parameter.)
template <std::size_t lanes>
struct VectorsOf {
  typedef float Floats __attribute__((vector_size(4 * lanes)));
  typedef std::int32_t Integers __attribute__((vector_size(4 * lanes)));
};
template <std::size_t lanes>
using Floats = typename VectorsOf<lanes>::Floats;
template <std::size_t lanes>
using Integers = typename VectorsOf<lanes>::Integers;

// As `dispatch`, for a kernel that is a template over the numbers in a vector, on which its results do not depend.
template <template <std::size_t> class Kernel, class... Args>
void dispatch_vectors(Isa isa, Args... args) {
#ifdef OMNITRUNK_X86
  if (isa == Isa::avx512) return run_avx512<Kernel<16>>(args...);
  if (isa == Isa::avx2) return run_avx2<Kernel<8>>(args...);
#endif
  (void)isa;
  Kernel<4>::run(args...);
}

template <class V, class T>
OMNITRUNK_INLINE V load(const T* from) {
  V x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

template <class V, class T>
OMNITRUNK_INLINE void store(T* to, const V& x) {
  std::memcpy(to, &x, sizeof x);
}

template <class To, class From>
OMNITRUNK_INLINE To same_bits(const From& x) {
  To y;
  static_assert(sizeof y == sizeof x);
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// 0, 1, 2, ...
template <std::size_t lanes>
OMNITRUNK_INLINE Integers<lanes> lane_numbers() {
  Integers<lanes> numbers;
  for (std::size_t i = 0; i < lanes; ++i) numbers[i] = static_cast<std::int32_t>(i);
  return numbers;
}

struct Smaller {
  template <class V>
  OMNITRUNK_INLINE V operator()(const V& a, const V& b) const {
    return a < b ? a : b;
  }
};

struct Larger {
  template <class V>
  OMNITRUNK_INLINE V operator()(const V& a, const V& b) const {
    return a > b ? a : b;
  }
};

struct Sum {
  template <class V>
  OMNITRUNK_INLINE V operator()(const V& a, const V& b) const {
    return a + b;
  }
};

// One number out of a vector, halved step by step so that no step waits for more than three others.
template <std::size_t lanes, class Combine>
OMNITRUNK_INLINE std::int32_t folded(const Integers<lanes>& x, Combine combine) {
  if constexpr (lanes > 4) {
    Integers<lanes / 2> halves[2];
    std::memcpy(halves, &x, sizeof x);
    return folded<lanes / 2>(combine(halves[0], halves[1]), combine);
  } else {
    const Integers<4> pairs = combine(x, Integers<4>(__builtin_shufflevector(x, x, 2, 3, 0, 1)));
    return combine(pairs, Integers<4>(__builtin_shufflevector(pairs, pairs, 1, 0, 3, 2)))[0];
  }
}

// From differences along the axes, of one point or of many.
template <class V>
OMNITRUNK_INLINE V squared_distance(const V& dx, const V& dy, const V& dz) {
  return (dx * dx + dy * dy) + dz * dz;
}

OMNITRUNK_INLINE Point difference(Point p, Point q) { return {p.x - q.x, p.y - q.y, p.z - q.z}; }
OMNITRUNK_INLINE float squared_norm(Point p) { return squared_distance(p.x, p.y, p.z); }

// The points of one cloud axis by axis, filled up with NaN to whole vectors.
template <std::size_t lanes>
class Columns {
 public:
  OMNITRUNK_INLINE void fill(const Point* points, std::size_t size) {
    padded_ = (size + lanes - 1) / lanes * lanes;
    if (values_.size() < 3 * padded_) values_.resize(3 * padded_);
    float *x = values_.data(), *y = x + padded_, *z = y + padded_;
    for (std::size_t i = 0; i < size; ++i) {
      x[i] = points[i].x;
      y[i] = points[i].y;
      z[i] = points[i].z;
    }
    for (float* axis : {x, y, z}) std::fill(axis + size, axis + padded_, std::numeric_limits<float>::quiet_NaN());
  }

  std::size_t vectors() const { return padded_ / lanes; }
  std::size_t padded_size() const { return padded_; }

  // Of the points of a vector to one point.
  OMNITRUNK_INLINE Floats<lanes> squared_distances(std::size_t vector, Point to) const {
    using V = Floats<lanes>;
    const float* x = values_.data() + vector * lanes;
    const float *y = x + padded_, *z = y + padded_;
    return squared_distance<V>(load<V>(x) - to.x, load<V>(y) - to.y, load<V>(z) - to.z);
  }

 private:
  std::size_t padded_ = 0;
  std::vector<float> values_;
};

}  // namespace omnitrunk

// Farthest point sampling (Eldar et al.: "The farthest point strategy for progressive image sampling", 1997;
// PointNet++, Qi et al. 2017): one pass over a cloud per pick updates all distances to the nearest pick and finds the
// greatest of them.
#include <cmath>
#include <limits>

#include "parallel.h"
#include "points.h"

namespace omnitrunk {
namespace {

// The greatest distances met so far in every lane, as their bits, which for numbers that are not negative are in the
// order of their values; and the number of the vector that each comes from.
template <std::size_t lanes>
struct Farthest {
  Integers<lanes> distance = Integers<lanes>{} + std::numeric_limits<std::int32_t>::min(), vector = {};

  OMNITRUNK_INLINE void include(const Integers<lanes>& others, const Integers<lanes>& from) {
    vector = others > distance ? from : vector;
    distance = others > distance ? others : distance;
  }

  OMNITRUNK_INLINE std::size_t index() const {
    const Integers<lanes> farthest = Integers<lanes>{} + folded<lanes>(distance, Larger{});
    const Integers<lanes> none = Integers<lanes>{} + std::numeric_limits<std::int32_t>::max();
    const Integers<lanes> index = vector * static_cast<std::int32_t>(lanes) + lane_numbers<lanes>();
    return static_cast<std::size_t>(folded<lanes>(distance == farthest ? index : none, Smaller{}));
  }
};

// Infinite before the first pick; -1, less than any other, for a point that may not be picked.
OMNITRUNK_INLINE float initial_distance(Point p, bool pointnet2) {
  const bool finite = std::isfinite(p.x) && std::isfinite(p.y) && std::isfinite(p.z);
  const bool left_out = pointnet2 && squared_norm(p) <= 1e-3f;
  return finite && !left_out ? std::numeric_limits<float>::infinity() : -1.0f;
}

// Takes the distances to `pick` into account, and returns the next pick.
template <std::size_t lanes>
OMNITRUNK_INLINE std::size_t next_pick(const Columns<lanes>& cloud, Point pick, float* nearest) {
  using V = Floats<lanes>;
  Farthest<lanes> farthest;
  for (std::size_t vector = 0; vector < cloud.vectors(); ++vector) {
    const V distance = cloud.squared_distances(vector, pick), before = load<V>(nearest + vector * lanes);
    // A distance that is NaN is not less.
    const V now = distance < before ? distance : before;
    store(nearest + vector * lanes, now);
    farthest.include(same_bits<Integers<lanes>>(now), Integers<lanes>{} + static_cast<std::int32_t>(vector));
  }
  return farthest.index();
}

template <std::size_t lanes>
struct SampleClouds {
  static OMNITRUNK_INLINE void run(const FarthestPointSampling* sampling, std::size_t begin, std::size_t end) {
    Columns<lanes> columns;
    std::vector<float> nearest;
    for (std::size_t cloud = begin; cloud < end; ++cloud) {
      const Point* points = sampling->clouds.points + sampling->clouds.begin(cloud);
      const std::size_t size = sampling->clouds.size_of(cloud);
      columns.fill(points, size);
      nearest.assign(columns.padded_size(), -1.0f);
      for (std::size_t i = 0; i < size; ++i) nearest[i] = initial_distance(points[i], sampling->pointnet2);
      std::int64_t* index = sampling->index + cloud * sampling->picks;
      std::size_t pick = sampling->start ? static_cast<std::size_t>(sampling->start[cloud]) : 0;
      index[0] = static_cast<std::int64_t>(pick);
      for (std::size_t i = 1; i < sampling->picks; ++i) {
        pick = next_pick(columns, points[pick], nearest.data());
        index[i] = static_cast<std::int64_t>(pick);
      }
    }
  }
};

}  // namespace

void farthest_point_sample(const FarthestPointSampling& sampling, Execution execution) {
  if (sampling.picks == 0) return;
  parallel_for(sampling.clouds.count, 1, execution.threads, [&](std::size_t begin, std::size_t end) {
    dispatch_vectors<SampleClouds>(execution.isa, &sampling, begin, end);
  });
}

}  // namespace omnitrunk

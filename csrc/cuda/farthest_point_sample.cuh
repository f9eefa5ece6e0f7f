// Farthest point sampling (Eldar et al. 1997; PointNet++, Qi et al. 2017), one block per cloud. A pick depends on the
// one before it, so what counts is the latency of a round: points and their distances to the nearest pick stay in
// registers, a warp reduces in two instructions, and the block meets at one barrier.
#pragma once

#include <climits>
#include <cmath>

#include "geometry.cuh"

namespace omnitrunk {

// A point and the bits of its distance. Distances are not negative: their bits are in the order of their values.
struct Farthest {
  int distance_bits;
  unsigned index;
};

OMNITRUNK_DEVICE Farthest farthest_of_warp(Farthest mine) {
  const int distance_bits = simt::greatest(mine.distance_bits);
  return {distance_bits, simt::least(mine.distance_bits == distance_bits ? mine.index : UINT_MAX)};
}

// What the warps of a block found. The two sets take turns: a warp that writes the set of the next round has passed
// the barrier of this round, and one that writes this set again has passed the next, which all reach after reading.
template <int threads>
struct Partials {
  static constexpr int warps = threads / simt::lanes;
  Farthest of_warp[2][warps];

  OMNITRUNK_DEVICE Farthest farthest_of_block(Farthest mine, int round) {
    Farthest* partial = of_warp[round % 2];
    mine = farthest_of_warp(mine);
    if (simt::lane() == 0) partial[simt::warp()] = mine;
    simt::block_barrier();
    return farthest_of_warp(simt::lane() < warps ? partial[simt::lane()] : Farthest{INT_MIN, UINT_MAX});
  }
};

// Infinite before the first pick; -1, nearer than any other, for a point that may not be picked: one that pointnet2
// leaves out, or that is not finite, whose difference to itself is NaN.
OMNITRUNK_DEVICE float initial_distance(const Sampling& sampling, Point p) {
  const bool finite = squared_distance(p, p) == 0;
  const bool left_out = sampling.pointnet2 && squared_norm(p) <= 1e-3f;
  return finite && !left_out ? INFINITY : -1.0f;
}

// A thread of 1024 has 64 registers. The third coordinates of points that find no room there move to shared memory,
// each to the column of its thread, which alone reads it.
template <int threads, int parked>
struct Parking {
  float z[parked][threads];
};
template <int threads>
struct Parking<threads, 0> {};

// A cloud in registers: thread t holds the points t, t + threads, t + 2 threads, ...
template <int threads, int held, int parked>
struct InRegisters {
  float x[held], y[held], z[held - parked], nearest[held];
  Parking<threads, parked>& parking;
  int size;

  OMNITRUNK_DEVICE InRegisters(const Sampling& sampling, Rows rows, Parking<threads, parked>& parking)
      : parking(parking), size(rows.size()) {
    OMNITRUNK_UNROLL
    for (int i = 0; i < held; ++i) {
      const int index = i * threads + simt::thread();
      const Point point = load_point(sampling.clouds.points, rows.begin + (index < size ? index : 0));
      x[i] = point.x;
      y[i] = point.y;
      z_of(i) = point.z;
      nearest[i] = index < size ? initial_distance(sampling, point) : -1.0f;
    }
  }

  OMNITRUNK_DEVICE Farthest update(Point pick) {
    Farthest farthest{INT_MIN, UINT_MAX};
    OMNITRUNK_UNROLL
    for (int i = 0; i < held; ++i) {
      // No more points, for all threads alike. Only every fourth time, since nothing overlaps across a branch.
      if (i > 0 && i % 4 == 0 && i * threads >= size) break;
      nearest[i] = fminf(nearest[i], squared_distance({x[i], y[i], z_of(i)}, pick));
      if (simt::bits(nearest[i]) > farthest.distance_bits) {
        farthest = {simt::bits(nearest[i]), static_cast<unsigned>(i * threads + simt::thread())};
      }
    }
    return farthest;
  }

  OMNITRUNK_DEVICE float& z_of(int i) {
    if constexpr (parked > 0) {
      if (i < parked) return parking.z[i][simt::thread()];
    }
    return z[i - parked];
  }
};

// A cloud of any size in memory, which its part of the cache holds up to some ten thousand points.
template <int threads>
struct InMemory {
  const float* points;
  float* nearest;
  int size;

  OMNITRUNK_DEVICE InMemory(const Sampling& sampling, Rows rows)
      : points(sampling.clouds.points + 3 * static_cast<std::int64_t>(rows.begin)),
        nearest(sampling.work + rows.begin),
        size(rows.size()) {
    for (int i = simt::thread(); i < size; i += threads) nearest[i] = initial_distance(sampling, load_point(points, i));
  }

  OMNITRUNK_DEVICE Farthest update(Point pick) {
    Farthest farthest{INT_MIN, UINT_MAX};
    for (int i = simt::thread(); i < size; i += threads) {
      const float distance = fminf(nearest[i], squared_distance(load_point(points, i), pick));
      nearest[i] = distance;
      if (simt::bits(distance) > farthest.distance_bits) farthest = {simt::bits(distance), static_cast<unsigned>(i)};
    }
    return farthest;
  }
};

// Blocks of `threads` threads for clouds of up to threads * held points, and for larger ones where `any_size`.
template <int threads_, int held, int parked, bool any_size>
struct FarthestPointSample {
  static constexpr int threads = threads_, resident_blocks = 1;
  static constexpr int dynamic_bytes = parked == 0 ? 0 : sizeof(Parking<threads_, parked>);
  Sampling sampling;

  OMNITRUNK_DEVICE void run() const {
    OMNITRUNK_SHARED(Partials<threads>, partials);
    const Rows rows = rows_of(sampling.clouds, simt::block());
    if (rows.size() == 0) return;
    if (any_size && rows.size() > threads * held) {
      pick_all(rows, InMemory<threads>(sampling, rows), partials);
    } else {
      auto& parking = simt::dynamic_shared<Parking<threads, parked>>();
      pick_all(rows, InRegisters<threads, held, parked>(sampling, rows, parking), partials);
    }
  }

  template <class Candidates>
  OMNITRUNK_DEVICE void pick_all(Rows rows, Candidates candidates, Partials<threads>& partials) const {
    std::int64_t* index = sampling.index + static_cast<std::int64_t>(simt::block()) * sampling.picks;
    int pick = sampling.start != nullptr ? static_cast<int>(sampling.start[simt::block()]) : 0;
    for (int round = 0;; ++round) {
      if (simt::thread() == 0) index[round] = pick;
      if (round + 1 == sampling.picks) return;
      const Farthest mine = candidates.update(load_point(sampling.clouds.points, rows.begin + pick));
      pick = static_cast<int>(partials.farthest_of_block(mine, round).index);
    }
  }
};

// Starts the kernel that fits best: launch(kernel, blocks, bytes of dynamic shared memory).
template <class Launch>
void sample(const Sampling& sampling, const Launch& launch) {
  const Clouds& clouds = sampling.clouds;
  if (clouds.count == 0 || sampling.picks == 0) return;
  const int mean = clouds.total / clouds.count;
  const auto start = [&](auto kernel) { launch(kernel, clouds.count, kernel.dynamic_bytes); };
  if (sampling.work != nullptr) {  // ragged, where a cloud may be much larger than the mean, or very large
    if (mean <= 512) return start(FarthestPointSample<256, 4, 0, true>{sampling});
    if (mean <= 4096) return start(FarthestPointSample<1024, 8, 0, true>{sampling});
    return start(FarthestPointSample<1024, 16, 14, true>{sampling});
  }
  if (mean <= 256) return start(FarthestPointSample<256, 1, 0, false>{sampling});
  if (mean <= 512) return start(FarthestPointSample<256, 2, 0, false>{sampling});
  if (mean <= 1024) return start(FarthestPointSample<256, 4, 0, false>{sampling});
  if (mean <= 2048) return start(FarthestPointSample<512, 4, 0, false>{sampling});
  if (mean <= 4096) return start(FarthestPointSample<1024, 4, 0, false>{sampling});
  if (mean <= 8192) return start(FarthestPointSample<1024, 8, 0, false>{sampling});
  return start(FarthestPointSample<1024, 16, 14, false>{sampling});
}

}  // namespace omnitrunk

// The Chamfer distance of sets of any size in three kernels: the nearest points, the loss, and the gradients.
#pragma once

#include <cmath>

#include "chamfer_terms.cuh"

namespace omnitrunk {

// Both directions, from a to b and back. Blocks [0, blocks_a) work for a, the others for b.
struct Direction {
  Clouds from, to;
  float* nearest;              // (from) squared distance to the nearest of `to`
  int* match;                  // (from) its row
  const float* nearest_back;   // (to) the same the other way round
  const int* match_back;       // (to)
  float* grad;                 // (from)
  int first_row;               // of this block

  OMNITRUNK_DEVICE static Direction of_block(const Chamfer& problem, int blocks_a, int rows_per_block) {
    const int block = simt::block();
    const Chamfer& p = problem;
    if (block < blocks_a) {
      return {p.a, p.b, p.nearest_a, p.match_a, p.nearest_b, p.match_b, p.grad_a, block * rows_per_block};
    }
    return {p.b, p.a, p.nearest_b, p.match_b, p.nearest_a, p.match_a, p.grad_b, (block - blocks_a) * rows_per_block};
  }
};

// The nearest point of the other set for 128 points in a row, four of them in each lane. The warps of a block share out
// the other set in chunks of 16, and look only for the least distance of a chunk. Which point it belongs to comes out
// at the end, from computing the best chunk once more: 9 instructions per pair instead of 11.
struct ChamferNearest {
  static constexpr int threads = 256, warps = threads / simt::lanes, resident_blocks = 3;
  static constexpr int slots = 4, rows_per_block = slots * simt::lanes, chunk = 16, tile = 1024;
  Chamfer problem;
  int blocks_a;

  struct Shared {
    Stored other[tile];
    float nearest[warps][rows_per_block];
    int chunk[warps][rows_per_block];
  };

  // The four points of a lane, with the least distance so far and the chunk where it was.
  struct Mine {
    Point point[slots];
    float nearest[slots];
    int chunk[slots];
  };

  OMNITRUNK_DEVICE void run() const {
    OMNITRUNK_SHARED(Shared, shared);
    const Direction way = Direction::of_block(problem, blocks_a, rows_per_block);
    const int end = way.from.total - way.first_row < rows_per_block ? way.from.total : way.first_row + rows_per_block;
    Mine mine{};
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      const int row = way.first_row + s * simt::lanes + simt::lane();
      if (row < end) mine.point[s] = load_point(way.from.points, row);
    }
    const int last = cloud_of(way.from, end - 1);
    for (int set = cloud_of(way.from, way.first_row); set <= last; ++set) {
      const Rows from = rows_of(way.from, set), to = rows_of(way.to, set);
      search(mine, way.to.points, to, shared);
      const int row = way.first_row + simt::thread();
      if (simt::thread() < rows_per_block && row >= from.begin && row < from.end) finish(way, to, row, shared);
      simt::block_barrier();
    }
  }

  // Leaves what each warp found for the points of this block in shared memory.
  OMNITRUNK_DEVICE static void search(Mine& mine, const float* points, Rows to, Shared& shared) {
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      mine.nearest[s] = INFINITY;
      mine.chunk[s] = 0;
    }
    for (int first = to.begin; first < to.end; first += tile) {
      const int size = to.end - first < tile ? to.end - first : tile;
      simt::block_barrier();
      load_tile(shared.other, points, first, size);
      simt::block_barrier();
      for (int at = simt::warp() * chunk; at < size; at += warps * chunk) {
        look_at(mine, shared.other + at, (first - to.begin + at) / chunk);
      }
    }
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      shared.nearest[simt::warp()][s * simt::lanes + simt::lane()] = mine.nearest[s];
      shared.chunk[simt::warp()][s * simt::lanes + simt::lane()] = mine.chunk[s];
    }
    simt::block_barrier();
  }

  // The last chunk is filled up with points that are infinitely far.
  OMNITRUNK_DEVICE static void load_tile(Stored* stored, const float* points, int first, int size) {
    for (int i = simt::thread(); i < (size + chunk - 1) / chunk * chunk; i += threads) {
      const Point p = i < size ? load_point(points, first + i) : Point{INFINITY, INFINITY, INFINITY};
      stored[i] = {p.x, p.y, p.z, 0};
    }
  }

  OMNITRUNK_DEVICE static void look_at(Mine& mine, const Stored* others, int number) {
    float least[slots];
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) least[s] = INFINITY;
    OMNITRUNK_UNROLL
    for (int i = 0; i < chunk; ++i) {
      const Point other = others[i].point();
      OMNITRUNK_UNROLL
      for (int s = 0; s < slots; ++s) least[s] = fminf(least[s], squared_distance(mine.point[s], other));
    }
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      if (least[s] < mine.nearest[s]) {
        mine.nearest[s] = least[s];
        mine.chunk[s] = number;
      }
    }
  }

  // Among the warps, then within the chunk: the least distance, the lowest index among equals.
  OMNITRUNK_DEVICE static void finish(const Direction& way, Rows to, int row, const Shared& shared) {
    const int place = simt::thread();
    float nearest = shared.nearest[0][place];
    int number = shared.chunk[0][place];
    for (int warp = 1; warp < warps; ++warp) {
      const float other = shared.nearest[warp][place];
      if (other < nearest || (other == nearest && shared.chunk[warp][place] < number)) {
        nearest = other;
        number = shared.chunk[warp][place];
      }
    }
    const Point mine = load_point(way.from.points, row);
    const int first = to.begin + number * chunk;
    // Where no distance is a number, the match is the first point and the distance NaN.
    way.match[row] = first;
    way.nearest[row] = NAN;
    for (int i = first; i < first + chunk && i < to.end; ++i) {
      if (squared_distance(mine, load_point(way.to.points, i)) == nearest) {
        way.match[row] = i;
        way.nearest[row] = nearest;
        break;
      }
    }
  }
};

// One block per pair of sets, so that the order of the sum is always the same.
struct ChamferLoss {
  static constexpr int threads = 256, warps = threads / simt::lanes, resident_blocks = 1;
  Chamfer problem;

  struct Shared {
    float sum[warps];
  };

  OMNITRUNK_DEVICE void run() const {
    const int set = simt::block();
    const Rows a = rows_of(problem.a, set), b = rows_of(problem.b, set);
    const float sum_a = sum_of_block(problem.nearest_a, a), sum_b = sum_of_block(problem.nearest_b, b);
    if (simt::thread() == 0) problem.loss[set] = loss_of_sums(sum_a, a.size(), sum_b, b.size());
  }

  OMNITRUNK_DEVICE float sum_of_block(const float* nearest, Rows rows) const {
    OMNITRUNK_SHARED(Shared, shared);
    float sum = 0;
    for (int row = rows.begin + simt::thread(); row < rows.end; row += threads) {
      sum = simt::add(sum, loss_term(nearest[row], problem.root));
    }
    sum = sum_of_warp(sum);
    simt::block_barrier();
    if (simt::lane() == 0) shared.sum[simt::warp()] = sum;
    simt::block_barrier();
    return sum_of_warp(simt::lane() < warps ? shared.sum[simt::lane()] : 0);
  }
};

// One warp per 32 points in a row. It reads all choices of the other side's sets, 32 at a time, and stops only at those
// that fell on one of its points: n m / 1024 steps and one for every choice.
struct ChamferGradient {
  static constexpr int threads = 256, rows_per_block = threads, resident_blocks = 4;
  Chamfer problem;
  int blocks_a;

  OMNITRUNK_DEVICE void run() const {
    const Direction way = Direction::of_block(problem, blocks_a, rows_per_block);
    const int first = way.first_row + simt::warp() * simt::lanes, total = way.from.total;
    if (first >= total) return;
    const int last = total - first < simt::lanes ? total - 1 : first + simt::lanes - 1;
    const int row = first + simt::lane() <= last ? first + simt::lane() : last;
    const int set = cloud_of(way.from, row);
    const int size = rows_of(way.from, set).size(), size_back = rows_of(way.to, set).size();
    const Point mine = load_point(way.from.points, row);
    Point sum{0, 0, 0};
    if (size_back > 0) {
      const float weight = gradient_weight(way.nearest[row], size, problem.root);
      sum = add_term(sum, weight, mine, load_point(way.to.points, way.match[row]));
    }
    const int end = rows_of(way.to, cloud_of(way.from, last)).end;
    for (int base = rows_of(way.to, cloud_of(way.from, first)).begin; base < end; base += simt::lanes) {
      const int choice = base + simt::lane() < end ? way.match_back[base + simt::lane()] - first : -1;
      unsigned hits = simt::ballot(choice >= 0 && choice < simt::lanes);
      for (; hits != 0; hits &= hits - 1) {
        const int from_lane = simt::lowest_bit(hits), chooser = base + from_lane;
        const int chosen = simt::shuffle(choice, from_lane);
        if (chosen != simt::lane()) continue;
        const float weight = gradient_weight(way.nearest_back[chooser], size_back, problem.root);
        sum = add_term(sum, weight, mine, load_point(way.to.points, chooser));
      }
    }
    if (first + simt::lane() <= last) store_point(way.grad, row, sum);
  }
};

}  // namespace omnitrunk

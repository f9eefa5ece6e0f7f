// The Chamfer distance of small sets, as masked groups of points are: one warp per pair of sets, with one or two points
// of each side in a lane, and everything in one kernel.
#pragma once

#include "chamfer_terms.cuh"

namespace omnitrunk {

// For sets of up to 32 * slots points, all of the same size.
template <int slots>
struct ChamferByWarp {
  static constexpr int warps = 4, threads = warps * simt::lanes, resident_blocks = 4, most = slots * simt::lanes;
  Chamfer problem;

  // One side of the pair: lane l holds the points l and, with two slots, l + 32.
  struct Side {
    Rows rows;
    Point point[slots];
    float nearest[slots];  // squared distance to the nearest point of the other side
    int match[slots];      // and which it is
    OMNITRUNK_DEVICE int index(int slot) const { return slot * simt::lanes + simt::lane(); }
    OMNITRUNK_DEVICE bool has(int slot) const { return index(slot) < rows.size(); }
  };

  struct OfWarp {
    Stored a[most], b[most];
    unsigned chosen_by[most][slots];  // bits of the points of the other side that a point is the nearest of
  };

  struct Shared {
    OfWarp of_warp[warps];
  };

  OMNITRUNK_DEVICE void run() const {
    OMNITRUNK_SHARED(Shared, shared);
    const int set = simt::block() * warps + simt::warp();
    if (set >= problem.a.count) return;
    OfWarp& mine = shared.of_warp[simt::warp()];
    Side a = load(problem.a, set, mine.a), b = load(problem.b, set, mine.b);
    simt::warp_barrier();
    find_nearest(a, mine.b, b.rows.size());
    find_nearest(b, mine.a, a.rows.size());
    const float loss = loss_of_sums(sum_of_warp(terms(a)), a.rows.size(), sum_of_warp(terms(b)), b.rows.size());
    if (simt::lane() == 0) problem.loss[set] = loss;
    if (problem.grad_a == nullptr) return;
    store_weights(a, mine.a);
    store_weights(b, mine.b);
    write_gradient(a, b, mine.a, mine.b, mine.chosen_by, problem.grad_a);
    write_gradient(b, a, mine.b, mine.a, mine.chosen_by, problem.grad_b);
  }

  OMNITRUNK_DEVICE static Side load(const Clouds& sets, int set, Stored* stored) {
    Side side{rows_of(sets, set), {}, {}, {}};
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      if (!side.has(s)) continue;
      const Point p = side.point[s] = load_point(sets.points, side.rows.begin + side.index(s));
      stored[side.index(s)] = {p.x, p.y, p.z, 0};
    }
    return side;
  }

  // NaN anywhere reaches the loss: nothing is nearer than a distance of NaN, and a NaN point has no other distances.
  OMNITRUNK_DEVICE static void find_nearest(Side& side, const Stored* others, int size) {
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      side.nearest[s] = squared_distance(side.point[s], others[0].point());
      side.match[s] = 0;
    }
    for (int other = 1; other < size; ++other) {
      const Point point = others[other].point();
      OMNITRUNK_UNROLL
      for (int s = 0; s < slots; ++s) {
        const float distance = squared_distance(side.point[s], point);
        if (distance < side.nearest[s]) {
          side.nearest[s] = distance;
          side.match[s] = other;
        }
      }
    }
  }

  OMNITRUNK_DEVICE float terms(const Side& side) const {
    float sum = 0;
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      if (side.has(s)) sum = simt::add(sum, loss_term(side.nearest[s], problem.root));
    }
    return sum;
  }

  OMNITRUNK_DEVICE void store_weights(const Side& side, Stored* stored) const {
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      if (side.has(s)) {
        stored[side.index(s)].weight = gradient_weight(side.nearest[s], side.rows.size(), problem.root);
      }
    }
  }

  OMNITRUNK_DEVICE static void write_gradient(const Side& side, const Side& other, const Stored* stored,
                                              const Stored* others, unsigned (*chosen_by)[slots], float* grad) {
    find_choices(other, chosen_by);
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      if (!side.has(s)) continue;
      const Point mine = side.point[s];
      Point sum = add_term({0, 0, 0}, stored[side.index(s)].weight, mine, others[side.match[s]].point());
      OMNITRUNK_UNROLL
      for (int t = 0; t < slots; ++t) {
        for (unsigned choices = chosen_by[side.index(s)][t]; choices != 0; choices &= choices - 1) {
          const Stored& chooser = others[t * simt::lanes + simt::lowest_bit(choices)];
          sum = add_term(sum, chooser.weight, mine, chooser.point());
        }
      }
      store_point(grad, side.rows.begin + side.index(s), sum);
    }
  }

  // chosen_by[i] for the side that `other` has chosen from.
  OMNITRUNK_DEVICE static void find_choices(const Side& other, unsigned (*chosen_by)[slots]) {
    simt::warp_barrier();
    for (int i = simt::lane(); i < most * slots; i += simt::lanes) chosen_by[i / slots][i % slots] = 0;
    simt::warp_barrier();
    OMNITRUNK_UNROLL
    for (int s = 0; s < slots; ++s) {
      const unsigned agreeing = simt::match(other.has(s) ? other.match[s] : -1);
      if (other.has(s)) chosen_by[other.match[s]][s] = agreeing;  // all that agree write the same
    }
    simt::warp_barrier();
  }
};

}  // namespace omnitrunk

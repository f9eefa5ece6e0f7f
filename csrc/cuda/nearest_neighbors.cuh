// The k nearest neighbors of queries by exhaustive search, one warp per query. The k best so far lie sorted across the
// lanes of the warp. A point nearer than the last of them waits in a buffer, and a full buffer of 32 is sorted and
// merged by a bitonic network (Batcher 1968; k-selection in registers: Johnson, Douze, Jegou 2017). Of n points in
// random order about k ln(n / k) ever wait, so that most of the work is the distances.
#pragma once

#include <cmath>

#include "geometry.cuh"

namespace omnitrunk {

// A candidate as one number, ordered by squared distance, then by index. NaN is further than infinity.
using Candidate = unsigned long long;
constexpr Candidate nothing = ~Candidate{0};

OMNITRUNK_DEVICE unsigned order_bits(float squared_distance) {
  return static_cast<unsigned>(simt::bits(squared_distance)) & 0x7fffffffu;
}

OMNITRUNK_DEVICE Candidate candidate(unsigned distance_bits, int index) {
  return Candidate{distance_bits} << 32 | static_cast<unsigned>(index);
}

OMNITRUNK_DEVICE unsigned distance_bits(Candidate candidate) { return static_cast<unsigned>(candidate >> 32); }
OMNITRUNK_DEVICE int index_of(Candidate candidate) { return static_cast<int>(static_cast<unsigned>(candidate)); }

// One column of the network: every lane keeps the smaller or the larger of its own and its partner's.
OMNITRUNK_DEVICE Candidate compare_exchange(Candidate mine, int lane_distance, bool ascending) {
  const Candidate other = simt::exchange(mine, lane_distance);
  const bool wants_smaller = ((simt::lane() & lane_distance) == 0) == ascending;
  return (other < mine) == wants_smaller ? other : mine;
}

// Sorts lanes whose values rise and then fall, or the other way round.
OMNITRUNK_DEVICE Candidate merge(Candidate mine, bool ascending) {
  OMNITRUNK_UNROLL
  for (int lane_distance = 16; lane_distance > 0; lane_distance /= 2) {
    mine = compare_exchange(mine, lane_distance, ascending);
  }
  return mine;
}

// Sorts the lanes of a warp, the largest first.
OMNITRUNK_DEVICE Candidate sort_descending(Candidate mine) {
  OMNITRUNK_UNROLL
  for (int run = 2; run <= simt::lanes; run *= 2) {
    OMNITRUNK_UNROLL
    for (int lane_distance = run / 2; lane_distance > 0; lane_distance /= 2) {
      mine = compare_exchange(mine, lane_distance, (simt::lane() & run) != 0);
    }
  }
  return mine;
}

// The best 32 * rows candidates of a warp: row r holds the places 32 r to 32 r + 31, one in each lane.
template <int rows>
struct Best {
  Candidate row[rows];

  OMNITRUNK_DEVICE Best() {
    OMNITRUNK_UNROLL
    for (int r = 0; r < rows; ++r) row[r] = nothing;
  }

  // Takes in one new candidate per lane.
  OMNITRUNK_DEVICE void insert(Candidate mine) {
    mine = sort_descending(mine);
    OMNITRUNK_UNROLL
    for (int r = 0; r < rows; ++r) {
      // A rising row against a falling one: the lane-wise minima are the 32 smallest of both.
      const bool better = mine < row[r];
      const Candidate low = better ? mine : row[r], high = better ? row[r] : mine;
      row[r] = merge(low, true);
      if (r + 1 < rows) mine = merge(high, false);
    }
  }

  OMNITRUNK_DEVICE Candidate last_of(int k) const { return simt::shuffle(row[rows - 1], (k - 1) % simt::lanes); }
};

// Serves k in (32 (rows - 1), 32 rows]. A block takes `warps` queries in a row, whatever clouds they belong to, and
// brings each of these clouds to shared memory, one tile after another.
template <int rows>
struct NearestNeighbors {
  static constexpr int threads = 512, warps = threads / simt::lanes, tile = 1024;
  static constexpr int resident_blocks = 2;
  Neighbors problem;

  struct Shared {
    float x[tile], y[tile], z[tile];
    Candidate waiting[warps][2 * simt::lanes];
  };

  // One warp's search.
  struct Search {
    Point query;
    Candidate* buffer;
    int k, waiting = 0;
    unsigned limit = 0xffffffff;  // distance bits of the k-th best
    Best<rows> best;

    // Whoever is nearer than the limit waits. Indices only rise, so that an equal distance is never better.
    OMNITRUNK_DEVICE void offer(unsigned bits, int index) {
      const bool nearer = bits < limit;
      const unsigned votes = simt::ballot(nearer);
      if (votes == 0) return;
      const unsigned before_me = votes & ((1u << simt::lane()) - 1);
      if (nearer) buffer[waiting + simt::count_bits(before_me)] = candidate(bits, index);
      waiting += simt::count_bits(votes);
      if (waiting >= simt::lanes) take_in();
    }

    // Merges the 32 that came last, or all where fewer wait.
    OMNITRUNK_DEVICE void take_in() {
      const int stay = waiting > simt::lanes ? waiting - simt::lanes : 0;
      simt::warp_barrier();
      const Candidate mine = stay + simt::lane() < waiting ? buffer[stay + simt::lane()] : nothing;
      simt::warp_barrier();
      waiting = stay;
      best.insert(mine);
      limit = distance_bits(best.last_of(k));
    }

    // Looks at a tile of `size` points, the first of which has the index `first` in its cloud.
    OMNITRUNK_DEVICE void scan(const Shared& shared, int first, int size) {
      unsigned next = bits_at(shared, simt::lane(), size);
      for (int base = 0; base < size; base += simt::lanes) {
        const unsigned bits = next;
        next = bits_at(shared, base + simt::lanes + simt::lane(), size);  // under way while these are sorted out
        offer(bits, first + base + simt::lane());
      }
    }

    OMNITRUNK_DEVICE unsigned bits_at(const Shared& shared, int slot, int size) const {
      if (slot >= size) return 0xffffffff;
      return order_bits(squared_distance({shared.x[slot], shared.y[slot], shared.z[slot]}, query));
    }
  };

  OMNITRUNK_DEVICE void run() const {
    OMNITRUNK_SHARED(Shared, shared);
    const int first_query = simt::block() * warps, query = first_query + simt::warp();
    const int queries = problem.queries.total;
    const int last_query = first_query + warps <= queries ? first_query + warps - 1 : queries - 1;
    const bool searches = query < queries;
    const int my_cloud = searches ? cloud_of(problem.queries, query) : -1;
    Search search{};
    search.buffer = shared.waiting[simt::warp()];
    search.k = problem.k;
    if (searches) search.query = load_point(problem.queries.points, query);
    const int last_cloud = cloud_of(problem.queries, last_query);
    for (int cloud = cloud_of(problem.queries, first_query); cloud <= last_cloud; ++cloud) {
      const Rows points = rows_of(problem.clouds, cloud);
      for (int first = 0; first < points.size(); first += tile) {
        const int size = points.size() - first < tile ? points.size() - first : tile;
        simt::block_barrier();
        load_tile(shared, points.begin + first, size);
        simt::block_barrier();
        if (cloud == my_cloud) search.scan(shared, first, size);
      }
    }
    if (!searches) return;
    if (search.waiting > 0) search.take_in();
    write(search, query, rows_of(problem.clouds, my_cloud).begin);
  }

  OMNITRUNK_DEVICE void load_tile(Shared& shared, int row, int size) const {
    for (int i = simt::thread(); i < size; i += threads) {
      const Point point = load_point(problem.clouds.points, row + i);
      shared.x[i] = point.x;
      shared.y[i] = point.y;
      shared.z[i] = point.z;
    }
  }

  OMNITRUNK_DEVICE void write(const Search& search, int query, int first_row) const {
    OMNITRUNK_UNROLL
    for (int r = 0; r < rows; ++r) {
      const int place = r * simt::lanes + simt::lane();
      if (place >= problem.k) break;
      const Candidate found = search.best.row[r];
      const std::int64_t at = static_cast<std::int64_t>(query) * problem.k + place;
      const int index = index_of(found);  // -1 for nothing
      if (problem.index != nullptr) problem.index[at] = index;
      if (problem.distance != nullptr) {
        problem.distance[at] = index < 0 ? INFINITY : simt::from_bits(static_cast<int>(distance_bits(found)));
      }
      if (problem.groups != nullptr) {
        const Point missing{NAN, NAN, NAN};
        const Point point = index < 0 ? missing : load_point(problem.clouds.points, first_row + index);
        store_point(problem.groups, at, difference(point, search.query));
      }
    }
  }
};

// Starts the kernel that fits: launch(kernel, blocks).
template <class Launch>
void search(const Neighbors& problem, const Launch& launch) {
  constexpr int warps = NearestNeighbors<1>::warps;
  const int blocks = problem.queries.total / warps + (problem.queries.total % warps != 0);
  if (blocks == 0 || problem.k == 0) return;
  if (problem.k <= 32) return launch(NearestNeighbors<1>{problem}, blocks);
  if (problem.k <= 64) return launch(NearestNeighbors<2>{problem}, blocks);
  if (problem.k <= 96) return launch(NearestNeighbors<3>{problem}, blocks);
  return launch(NearestNeighbors<4>{problem}, blocks);
}

}  // namespace omnitrunk

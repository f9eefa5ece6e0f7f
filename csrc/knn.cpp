// The k nearest points of a query by brute force. One pass computes the distances to all points of the cloud, and the
// least of each of some 4 k groups of them. A bound that k of these reach is reached by at least k points, and hardly
// more: only those are picked out and sorted.
#include "parallel.h"
#include "points.h"

namespace omnitrunk {
namespace {

constexpr std::size_t queries_per_piece = 64;
constexpr std::size_t groups_per_neighbor = 4;
constexpr std::size_t most_by_rank = 512;

// Distances are compared as their bits, which for numbers that are not negative are in the order of their values. All
// that are not numbers become one that is greater than infinity.
template <std::size_t lanes>
OMNITRUNK_INLINE Integers<lanes> order_of(const Floats<lanes>& distance) {
  const Integers<lanes> bits = same_bits<Integers<lanes>>(distance) & 0x7FFFFFFF;
  return Smaller{}(bits, Integers<lanes>{} + 0x7FC00000);
}

template <std::size_t lanes>
OMNITRUNK_INLINE std::size_t count_within(const std::int32_t* values, std::size_t size, std::int32_t bound) {
  Integers<lanes> count{};
  for (std::size_t i = 0; i < size; i += lanes) count -= load<Integers<lanes>>(values + i) <= bound;
  return static_cast<std::size_t>(folded<lanes>(count, Sum{}));
}

// A bound that at least k of the values reach, and not many more unless they are equal; `size` is a multiple of lanes.
template <std::size_t lanes>
OMNITRUNK_INLINE std::int32_t bound_of(const std::int32_t* values, std::size_t size, std::size_t k) {
  using V = Integers<lanes>;
  V least = load<V>(values), greatest = least;
  for (std::size_t i = lanes; i < size; i += lanes) {
    least = Smaller{}(least, load<V>(values + i));
    greatest = Larger{}(greatest, load<V>(values + i));
  }
  // Always: fewer than k values reach `low`, at least k reach `high`.
  std::int32_t low = folded<lanes>(least, Smaller{}) - 1, high = folded<lanes>(greatest, Larger{});
  for (std::size_t count = size; high - low > 1 && count > k + k / 8;) {
    const std::int32_t middle = low + (high - low) / 2;
    const std::size_t within = count_within<lanes>(values, size, middle);
    if (within < k) {
      low = middle;
    } else {
      high = middle;
      count = within;
    }
  }
  return high;
}

// What one thread works with, for one query after another.
template <std::size_t lanes>
struct Scratch {
  Columns<lanes> cloud;
  std::vector<std::int32_t> distance;          // to all points of the cloud
  std::vector<std::int32_t> least;             // of groups of them
  std::vector<std::int32_t> index, key, rank;  // of the points picked out; key is the distance
  std::vector<std::uint64_t> sorted;           // key and index of each as one number

  OMNITRUNK_INLINE void fill(const Point* points, std::size_t size) {
    cloud.fill(points, size);
    distance.resize(cloud.padded_size());
    for (auto* of_picked : {&index, &key, &rank}) of_picked->resize(cloud.padded_size() + lanes);
    sorted.resize(cloud.padded_size());
  }
};

// Fills in the distances, and returns a bound that at least k of them reach.
template <std::size_t lanes>
OMNITRUNK_INLINE std::int32_t measure(Point query, std::size_t k, Scratch<lanes>& scratch) {
  using V = Integers<lanes>;
  const std::size_t vectors = scratch.cloud.vectors();
  const std::size_t groups = std::min((groups_per_neighbor * k + lanes - 1) / lanes, vectors);
  scratch.least.assign(groups * lanes, std::numeric_limits<std::int32_t>::max());
  std::int32_t *distance = scratch.distance.data(), *least = scratch.least.data();
  for (std::size_t first = 0; first < vectors; first += groups) {
    for (std::size_t i = 0; i < std::min(groups, vectors - first); ++i) {
      const V order = order_of<lanes>(scratch.cloud.squared_distances(first + i, query));
      store(distance + (first + i) * lanes, order);
      store(least + i * lanes, Smaller{}(order, load<V>(least + i * lanes)));
    }
  }
  return bound_of<lanes>(least, groups * lanes, k);
}

// Picks out the points within the bound, and returns how many there are.
template <std::size_t lanes>
OMNITRUNK_INLINE std::size_t pick(std::int32_t bound, Scratch<lanes>& scratch) {
  using V = Integers<lanes>;
  const std::int32_t* distance = scratch.distance.data();
  std::int32_t* index = scratch.index.data();
  const std::size_t vectors = scratch.cloud.vectors();
  std::size_t picked = 0;
  for (std::size_t first = 0; first < vectors; first += 32) {
    // Bit i of a lane is for its point in vector first + i.
    V within{}, bit = V{} + 1;
    for (std::size_t i = first; i < std::min(first + 32, vectors); ++i) {
      within |= load<V>(distance + i * lanes) <= bound ? bit : V{};
      bit += bit;
    }
    std::uint32_t words[lanes];
    store(words, within);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      std::uint32_t word = words[lane];
      const auto note_lowest = [&] {
        const auto vector = first + static_cast<std::size_t>(__builtin_ctz(word | 0x80000000));
        index[picked] = static_cast<std::int32_t>(vector * lanes + lane);
        picked += word != 0;
        word &= word - 1;
      };
      // Two even where there are fewer, which then do not count: a branch would be mispredicted half of the time.
      note_lowest();
      note_lowest();
      while (word != 0) note_lowest();
    }
  }
  for (std::size_t i = 0; i < picked; ++i) scratch.key[i] = distance[index[i]];
  return picked;
}

// Key and index as one number, in whose order points are sorted.
OMNITRUNK_INLINE std::uint64_t joined(std::int32_t key, std::int32_t index) {
  return static_cast<std::uint64_t>(key) << 32 | static_cast<std::uint32_t>(index);
}

// Sorts a few points by counting for each of them those that come before it.
template <std::size_t lanes>
OMNITRUNK_INLINE void sort_by_rank(std::size_t picked, Scratch<lanes>& scratch) {
  using V = Integers<lanes>;
  std::int32_t *key = scratch.key.data(), *index = scratch.index.data(), *rank = scratch.rank.data();
  for (std::size_t first = 0; first < picked; first += lanes) {
    const V own_key = load<V>(key + first), own_index = load<V>(index + first);
    V before{};
    // An equal key with a lower index comes before, too: true is -1 in a vector.
    for (std::size_t i = 0; i < picked; ++i) before -= key[i] < own_key - (index[i] < own_index);
    store(rank + first, before);
  }
  for (std::size_t i = 0; i < picked; ++i) {
    scratch.sorted[static_cast<std::size_t>(rank[i])] = joined(key[i], index[i]);
  }
}

// Sorts the first k of many points, as there are where distances are equal or the points of a cloud are in an order.
template <std::size_t lanes>
OMNITRUNK_INLINE void sort_first(std::size_t k, std::size_t picked, Scratch<lanes>& scratch) {
  for (std::size_t i = 0; i < picked; ++i) scratch.sorted[i] = joined(scratch.key[i], scratch.index[i]);
  std::uint64_t *begin = scratch.sorted.data(), *end = begin + k;
  std::nth_element(begin, end - 1, begin + picked);
  std::sort(begin, end);
}

template <std::size_t lanes>
OMNITRUNK_INLINE void search_one(const NeighborSearch& search, const Point* points, std::size_t row,
                                 Scratch<lanes>& scratch) {
  const Point query = search.queries.points[row];
  const std::size_t picked = pick(measure(query, search.k, scratch), scratch);
  if (picked <= most_by_rank) {
    sort_by_rank(picked, scratch);
  } else {
    sort_first(search.k, picked, scratch);
  }
  for (std::size_t i = 0, out = row * search.k; i < search.k; ++i, ++out) {
    const auto index = static_cast<std::uint32_t>(scratch.sorted[i]);
    const auto distance = static_cast<std::uint32_t>(scratch.sorted[i] >> 32);
    if (search.index != nullptr) search.index[out] = index;
    if (search.distance != nullptr) search.distance[out] = same_bits<float>(distance);
    if (search.groups != nullptr) search.groups[out] = difference(points[index], query);
  }
}

template <std::size_t lanes>
struct SearchPieces {
  static OMNITRUNK_INLINE void run(const NeighborSearch* search, const Piece* begin, const Piece* end) {
    Scratch<lanes> scratch;
    for (const Piece* piece = begin; piece < end; ++piece) {
      const Point* points = search->clouds.points_of(piece->cloud);
      scratch.fill(points, search->clouds.size_of(piece->cloud));
      for (std::size_t row = piece->begin; row < piece->end; ++row) search_one(*search, points, row, scratch);
    }
  }
};

}  // namespace

void nearest_neighbors(const NeighborSearch& search, Execution execution) {
  const std::vector<Piece> pieces = pieces_of(search.queries, queries_per_piece);
  parallel_for(pieces.size(), 1, execution.threads, [&](std::size_t begin, std::size_t end) {
    dispatch_vectors<SearchPieces>(execution.isa, &search, pieces.data() + begin, pieces.data() + end);
  });
}

}  // namespace omnitrunk

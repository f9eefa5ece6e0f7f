// The Chamfer distance of pairs of point sets with its gradients (Fan, Su, Guibas: "A point set generation network for
// 3D object reconstruction from a single image", 2017). The points of one side look for their nearest points on the
// other, a few vectors of them at a time against one point after another; then the matches make sums and gradients.
#include <cmath>

#include "parallel.h"
#include "points.h"

namespace omnitrunk {
namespace {

constexpr std::size_t points_per_piece = 512, points_per_turn = 1024;

// One side of a pair of sets. Of every point: the nearest point of the other side, the lowest index among equals, and
// the squared distance to it.
struct Side {
  const Point* points;
  std::size_t size;
  float* distance;
  std::int32_t* match;
  Point* grad;  // out, or null
};

// As many sides, one after another.
struct Sides {
  explicit Sides(const PointClouds& clouds, Point* grad)
      : clouds(clouds), grad(grad), distance(clouds.begin(clouds.count)), match(distance.size()) {}

  OMNITRUNK_INLINE Side operator[](std::size_t set) {
    const std::size_t begin = clouds.begin(set);
    return {clouds.points + begin, clouds.size_of(set), distance.data() + begin, match.data() + begin,
            grad == nullptr ? nullptr : grad + begin};
  }

  PointClouds clouds;
  Point* grad;
  std::vector<float> distance;
  std::vector<std::int32_t> match;
};

// Matches up to lanes * vectors points of one side, `size` of them from `first` on.
template <std::size_t lanes, std::size_t vectors>
OMNITRUNK_INLINE void match_vectors(const Side& side, std::size_t first, std::size_t size, const Side& other) {
  using V = Floats<lanes>;
  float x[lanes * vectors] = {}, y[lanes * vectors] = {}, z[lanes * vectors] = {};
  for (std::size_t i = 0; i < size; ++i) {
    x[i] = side.points[first + i].x;
    y[i] = side.points[first + i].y;
    z[i] = side.points[first + i].z;
  }
  V least[vectors];
  Integers<lanes> match[vectors] = {};
  for (V& one : least) one = V{} + std::numeric_limits<float>::infinity();
  for (std::size_t i = 0; i < other.size; ++i) {
    const Point to = other.points[i];
    for (std::size_t v = 0; v < vectors; ++v) {
      const auto along = [&](const float* axis, float center) { return load<V>(axis + v * lanes) - center; };
      const V distance = squared_distance<V>(along(x, to.x), along(y, to.y), along(z, to.z));
      match[v] = distance < least[v] ? Integers<lanes>{} + static_cast<std::int32_t>(i) : match[v];
      least[v] = distance < least[v] ? distance : least[v];
    }
  }
  std::int32_t matches[lanes * vectors];
  std::memcpy(matches, match, sizeof match);
  std::copy(matches, matches + size, side.match + first);
}

template <std::size_t lanes>
OMNITRUNK_INLINE void match_points(const Side& side, std::size_t begin, std::size_t end, const Side& other) {
  std::size_t i = begin;
  for (; i + 4 * lanes <= end; i += 4 * lanes) match_vectors<lanes, 4>(side, i, 4 * lanes, other);
  for (; i + 2 * lanes <= end; i += 2 * lanes) match_vectors<lanes, 2>(side, i, 2 * lanes, other);
  for (; i < end; i += lanes) match_vectors<lanes, 1>(side, i, std::min(lanes, end - i), other);
  // Once more, because a point that is not a number has no match, and its distance must show it.
  for (i = begin; i < end; ++i) {
    side.distance[i] = squared_norm(difference(side.points[i], other.points[side.match[i]]));
  }
}

OMNITRUNK_INLINE double mean_term(const Side& side, bool root) {
  double sum = 0;
  for (std::size_t i = 0; i < side.size; ++i) sum += root ? 0.5f * std::sqrt(side.distance[i]) : side.distance[i];
  return sum / static_cast<double>(side.size);
}

// Half of the gradient of every term of a side, for the point itself: its match has the opposite.
OMNITRUNK_INLINE Point term_gradient(const Side& side, std::size_t i, const Side& other, bool root) {
  const auto count = static_cast<float>(side.size);
  const float weight = root ? 0.5f / (count * std::sqrt(side.distance[i])) : 2.0f / count;
  const Point d = difference(side.points[i], other.points[side.match[i]]);
  return {weight * d.x, weight * d.y, weight * d.z};
}

OMNITRUNK_INLINE void add_to_matches(const Side& side, const Side& other, bool root) {
  for (std::size_t i = 0; i < side.size; ++i) {
    Point& sum = other.grad[side.match[i]];
    sum = difference(sum, term_gradient(side, i, other, root));
  }
}

// The gradient of a point has the term of its own match first, then those of the points that it is the match of, in
// the order of their index.
OMNITRUNK_INLINE void write_gradients(const Side& a, const Side& b, bool root) {
  for (std::size_t i = 0; i < a.size; ++i) a.grad[i] = term_gradient(a, i, b, root);
  for (std::size_t i = 0; i < b.size; ++i) b.grad[i] = term_gradient(b, i, a, root);
  add_to_matches(a, b, root);
  add_to_matches(b, a, root);
}

template <std::size_t lanes>
struct MatchPieces {
  static OMNITRUNK_INLINE void run(Sides* sides, Sides* others, const Piece* begin, const Piece* end) {
    for (const Piece* piece = begin; piece < end; ++piece) {
      const std::size_t first = sides->clouds.begin(piece->cloud);
      match_points<lanes>((*sides)[piece->cloud], piece->begin - first, piece->end - first, (*others)[piece->cloud]);
    }
  }
};

struct FinishSets {
  static OMNITRUNK_INLINE void run(Sides* a, Sides* b, const ChamferDistance* problem, std::size_t begin,
                                   std::size_t end) {
    for (std::size_t set = begin; set < end; ++set) {
      const Side one = (*a)[set], other = (*b)[set];
      problem->loss[set] = static_cast<float>(mean_term(one, problem->root) + mean_term(other, problem->root));
      if (one.grad != nullptr) write_gradients(one, other, problem->root);
    }
  }
};

void match_sides(Sides& sides, Sides& others, Execution execution) {
  const std::vector<Piece> pieces = pieces_of(sides.clouds, points_per_piece);
  const std::size_t points = sides.distance.size();
  const std::size_t grain = points == 0 ? 1 : std::max<std::size_t>(1, points_per_turn * pieces.size() / points);
  parallel_for(pieces.size(), grain, execution.threads, [&](std::size_t begin, std::size_t end) {
    dispatch_vectors<MatchPieces>(execution.isa, &sides, &others, pieces.data() + begin, pieces.data() + end);
  });
}

}  // namespace

void chamfer(const ChamferDistance& problem, Execution execution) {
  Sides a(problem.a, problem.grad_a), b(problem.b, problem.grad_b);
  match_sides(a, b, execution);
  match_sides(b, a, execution);
  parallel_for(problem.a.count, 16, execution.threads, [&](std::size_t begin, std::size_t end) {
    dispatch<FinishSets>(execution.isa, &a, &b, &problem, begin, end);
  });
}

}  // namespace omnitrunk

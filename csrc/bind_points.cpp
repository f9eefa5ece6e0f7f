// The point-cloud kernels in the Python module; kernels/native_points.py is the only caller and checks tensors. Values
// are checked here: the operations do so in words, but cannot where torch.compile traces them.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>

#include "points.h"

namespace py = pybind11;

namespace omnitrunk {
namespace {

using Address = std::uintptr_t;
// (address of the points, address of the offsets or 0, clouds, points of all)
using CloudsTuple = std::tuple<Address, Address, std::size_t, std::size_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Clouds within their array, none of fewer than `least` points.
PointClouds clouds(const CloudsTuple& tuple, std::size_t least) {
  const auto [points, address, count, total] = tuple;
  const auto* offsets = pointer<const std::int64_t>(address);
  const PointClouds clouds{pointer<Point>(points), offsets, count, count == 0 ? 0 : total / count};
  if (offsets != nullptr) {
    const bool ascending = std::is_sorted(offsets, offsets + count + 1);
    if (!ascending || offsets[0] != 0 || offsets[count] != static_cast<std::int64_t>(total)) {
      throw py::value_error("cu_seqlens must ascend from 0 to the number of points, " + std::to_string(total));
    }
  }
  for (std::size_t cloud = 0; cloud < count; ++cloud) {
    if (clouds.size_of(cloud) < least) {
      throw py::value_error("a cloud has " + std::to_string(clouds.size_of(cloud)) + " points and needs " +
                            std::to_string(least) + ": leave it out");
    }
  }
  return clouds;
}

// First picks, or null, within their clouds.
const std::int64_t* starts(Address address, const PointClouds& clouds) {
  const auto* start = pointer<const std::int64_t>(address);
  for (std::size_t cloud = 0; start != nullptr && cloud < clouds.count; ++cloud) {
    // A negative one is larger than any size.
    if (static_cast<std::size_t>(start[cloud]) >= clouds.size_of(cloud)) {
      throw py::value_error("start must hold an index of every cloud, not " + std::to_string(start[cloud]));
    }
  }
  return start;
}

}  // namespace

void bind_points(py::module_& m, Isa isa) {
  m.def("farthest_point_sample", [isa](const CloudsTuple& points, Address start, bool pointnet2, std::size_t picks,
                                       Address index, int threads) {
    const PointClouds sampled = clouds(points, 1);
    const FarthestPointSampling sampling{sampled, starts(start, sampled), pointnet2, picks,
                                         pointer<std::int64_t>(index)};
    const py::gil_scoped_release released;
    farthest_point_sample(sampling, {isa, threads});
  });
  m.def("nearest_neighbors", [isa](const CloudsTuple& points, const CloudsTuple& queries, std::size_t k, Address index,
                                   Address distance, Address groups, int threads) {
    const NeighborSearch search{clouds(points, k), clouds(queries, 0), k, pointer<std::int64_t>(index),
                                pointer<float>(distance), pointer<Point>(groups)};
    const py::gil_scoped_release released;
    nearest_neighbors(search, {isa, threads});
  });
  m.def("chamfer", [isa](const CloudsTuple& a, const CloudsTuple& b, bool root, Address loss,
                         std::pair<Address, Address> gradients, int threads) {
    const ChamferDistance problem{clouds(a, 1), clouds(b, 1), root, pointer<float>(loss),
                                  pointer<Point>(gradients.first), pointer<Point>(gradients.second)};
    const py::gil_scoped_release released;
    chamfer(problem, {isa, threads});
  });
}

}  // namespace omnitrunk

// One parallel loop for all kernels: pieces of fixed size, so that no result depends on the number of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace omnitrunk {

// Calls body(begin, end) for the pieces [0, grain), [grain, 2 grain), ... of [0, count), in any order.
template <class Body>
void parallel_for(std::size_t count, std::size_t grain, int threads, const Body& body) {
  const auto pieces = static_cast<std::int64_t>((count + grain - 1) / grain);
  [[maybe_unused]] const auto team = static_cast<int>(std::clamp<std::int64_t>(pieces, 1, std::max(threads, 1)));
  // One thread enters no parallel region: safe in a data loader's process forked after OpenMP has started.
  // Dynamic, because cores are often shared with the data loader.
#pragma omp parallel for schedule(dynamic) num_threads(team) if (team > 1)
  for (std::int64_t piece = 0; piece < pieces; ++piece) {
    const std::size_t begin = static_cast<std::size_t>(piece) * grain;
    body(begin, std::min(begin + grain, count));
  }
}

}  // namespace omnitrunk

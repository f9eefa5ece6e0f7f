#include "nearest_neighbors.cuh"

#include "launch.cuh"

namespace omnitrunk {

void nearest_neighbors(const Neighbors& neighbors, cudaStream_t stream) { search(neighbors, Launcher{stream}); }

}  // namespace omnitrunk

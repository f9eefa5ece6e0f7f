#include "farthest_point_sample.cuh"

#include "launch.cuh"

namespace omnitrunk {

void farthest_point_sample(const Sampling& sampling, cudaStream_t stream) { sample(sampling, Launcher{stream}); }

}  // namespace omnitrunk

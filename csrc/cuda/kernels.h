// The face of the CUDA kernels for point clouds: plain functions on device pointers, sizes and a stream, without torch
// and without state. They start kernels and return; nothing waits, so that all of them can be captured in a CUDA graph.
// Results depend on the inputs alone: no atomics, and distances are rounded operation by operation, as on a CPU.
#pragma once

#include <cuda_runtime_api.h>

#include "problems.h"

namespace omnitrunk {

void farthest_point_sample(const Sampling& sampling, cudaStream_t stream);
void nearest_neighbors(const Neighbors& neighbors, cudaStream_t stream);
void chamfer(const Chamfer& chamfer, cudaStream_t stream);

}  // namespace omnitrunk

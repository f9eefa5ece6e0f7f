#include "chamfer.cuh"

#include "launch.cuh"

namespace omnitrunk {

void chamfer(const Chamfer& chamfer, cudaStream_t stream) { compare_sets(chamfer, Launcher{stream}); }

}  // namespace omnitrunk

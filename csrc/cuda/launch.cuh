// Starts kernels on a stream. A kernel is a struct: its arguments, a device function run(), the `threads` of a block,
// and the `resident_blocks` that the registers of one multiprocessor must hold.
#pragma once

#include <stdexcept>
#include <string>

#include "kernels.h"
#include "simt.cuh"

namespace omnitrunk {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::resident_blocks) run(const __grid_constant__ Kernel kernel) {
  kernel.run();
}

struct Launcher {
  cudaStream_t stream;

  template <class Kernel>
  void operator()(const Kernel& kernel, int blocks, int dynamic_bytes = 0) const {
    if (blocks == 0) return;
    if (dynamic_bytes > 48 * 1024) {
      check(cudaFuncSetAttribute(run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, dynamic_bytes));
    }
    run<<<blocks, Kernel::threads, dynamic_bytes, stream>>>(kernel);
    check(cudaGetLastError());
  }

  static void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
  }
};

}  // namespace omnitrunk

// The few primitives that the kernels are written in: where a thread stands, and how the 32 lanes of a warp and the
// threads of a block talk to each other. Without nvcc, the same functions come from a small emulator that runs every
// thread of a block on the host (tests/cuda/emulator.h), so that the kernels themselves are tested without a GPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#define OMNITRUNK_DEVICE __device__ __forceinline__
#define OMNITRUNK_SHARED(type, name) __shared__ type name
#define OMNITRUNK_UNROLL _Pragma("unroll")

namespace omnitrunk::simt {

constexpr unsigned everyone = 0xffffffff;

OMNITRUNK_DEVICE int thread() { return static_cast<int>(threadIdx.x); }
OMNITRUNK_DEVICE int block() { return static_cast<int>(blockIdx.x); }

// Memory of the size that the launch gives, which may be beyond the 48 KB of OMNITRUNK_SHARED.
template <class T>
OMNITRUNK_DEVICE T& dynamic_shared() {
  extern __shared__ float4 memory[];
  return *reinterpret_cast<T*>(memory);
}

OMNITRUNK_DEVICE void block_barrier() { __syncthreads(); }
OMNITRUNK_DEVICE void warp_barrier() { __syncwarp(); }

// Each is called by all lanes of a warp together.
OMNITRUNK_DEVICE unsigned ballot(bool vote) { return __ballot_sync(everyone, vote); }
OMNITRUNK_DEVICE unsigned match(int value) { return __match_any_sync(everyone, value); }
OMNITRUNK_DEVICE int greatest(int value) { return __reduce_max_sync(everyone, value); }
OMNITRUNK_DEVICE unsigned least(unsigned value) { return __reduce_min_sync(everyone, value); }
template <class T>
OMNITRUNK_DEVICE T shuffle(T value, int from_lane) {
  return __shfl_sync(everyone, value, from_lane);
}
template <class T>
OMNITRUNK_DEVICE T exchange(T value, int lane_distance) {
  return __shfl_xor_sync(everyone, value, lane_distance);
}

// Rounded one by one: the compiler may not fuse them, so the bits are those of any other processor.
OMNITRUNK_DEVICE float add(float x, float y) { return __fadd_rn(x, y); }
OMNITRUNK_DEVICE float subtract(float x, float y) { return __fsub_rn(x, y); }
OMNITRUNK_DEVICE float multiply(float x, float y) { return __fmul_rn(x, y); }
OMNITRUNK_DEVICE float divide(float x, float y) { return __fdiv_rn(x, y); }
OMNITRUNK_DEVICE float square_root(float x) { return __fsqrt_rn(x); }

OMNITRUNK_DEVICE int bits(float x) { return __float_as_int(x); }
OMNITRUNK_DEVICE float from_bits(int x) { return __int_as_float(x); }
OMNITRUNK_DEVICE int count_bits(unsigned x) { return __popc(x); }
OMNITRUNK_DEVICE int lowest_bit(unsigned x) { return __ffs(static_cast<int>(x)) - 1; }

template <class T>
OMNITRUNK_DEVICE T read_only(const T* address) {
  return __ldg(address);
}

}  // namespace omnitrunk::simt

#else
#include "emulator.h"
#endif

namespace omnitrunk::simt {

constexpr int lanes = 32;

OMNITRUNK_DEVICE int lane() { return thread() % lanes; }
OMNITRUNK_DEVICE int warp() { return thread() / lanes; }

}  // namespace omnitrunk::simt

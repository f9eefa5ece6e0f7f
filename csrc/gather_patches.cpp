// Reads only the picked patches out of channels-last images: `patch` contiguous runs of patch * channels values each.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "parallel.h"

namespace omnitrunk {
namespace {

// The first pixel of the patch of a row of the result.
OMNITRUNK_INLINE const std::uint8_t* patch_start(const PatchGather& gather, std::size_t row, std::size_t pixel_bytes) {
  const std::size_t across = gather.width / gather.patch, per_image = gather.height / gather.patch * across;
  const auto index = static_cast<std::size_t>(gather.index[row]);
  const std::size_t image = index / per_image, cell = index % per_image;
  const std::size_t line = image * gather.height + cell / across * gather.patch;
  return gather.pixels + (line * gather.width + cell % across * gather.patch) * pixel_bytes;
}

// Asks for a run of the patch after next: its lines lie too far apart for the processor to foresee.
OMNITRUNK_INLINE void prefetch(const std::uint8_t* run, std::size_t run_bytes) {
#if defined(__GNUC__) || defined(__clang__)
  __builtin_prefetch(run);
  __builtin_prefetch(run + run_bytes - 1);
#else
  (void)run, (void)run_bytes;
#endif
}

void check_index(const PatchGather& gather) {
  const std::size_t patches = gather.images * (gather.height / gather.patch) * (gather.width / gather.patch);
  for (std::size_t row = 0; row < gather.rows; ++row) {
    if (static_cast<std::size_t>(gather.index[row]) >= patches) {  // a negative index becomes a huge one
      throw std::out_of_range("patch index " + std::to_string(gather.index[row]) + " is outside [0, " +
                              std::to_string(patches) + ")");
    }
  }
}

struct NormalizeRange {
  // scale and shift hold one run: patch * channels values, the channels repeating.
  static OMNITRUNK_INLINE void run(const PatchGather* gather, std::size_t channels, const float* __restrict scale,
                                   const float* __restrict shift, float* __restrict out, std::size_t begin,
                                   std::size_t end) {
    const std::size_t patch = gather->patch, run_length = patch * channels, stride = gather->width * channels;
    for (std::size_t row = begin; row < end; ++row) {
      const std::uint8_t* __restrict from = patch_start(*gather, row, channels);
      const std::uint8_t* next = patch_start(*gather, std::min(row + 2, end - 1), channels);
      float* __restrict to = out + row * patch * run_length;
      for (std::size_t line = 0; line < patch; ++line, from += stride, next += stride, to += run_length) {
        prefetch(next, run_length);
        for (std::size_t i = 0; i < run_length; ++i) to[i] = static_cast<float>(from[i]) * scale[i] + shift[i];
      }
    }
  }
};

std::vector<float> repeated(const std::vector<float>& values, std::size_t times) {
  std::vector<float> result;
  result.reserve(values.size() * times);
  for (std::size_t i = 0; i < times; ++i) result.insert(result.end(), values.begin(), values.end());
  return result;
}

// Enough for one thread that waking another pays.
std::size_t rows_per_piece(std::size_t row_bytes) {
  return std::max<std::size_t>(1, (std::size_t{1} << 18) / std::max<std::size_t>(1, row_bytes));
}

}  // namespace

void copy_patches(const PatchGather& gather, std::size_t pixel_bytes, std::uint8_t* out, Execution execution) {
  check_index(gather);
  const std::size_t run_bytes = gather.patch * pixel_bytes, stride = gather.width * pixel_bytes;
  const std::size_t row_bytes = gather.patch * run_bytes;
  parallel_for(gather.rows, rows_per_piece(row_bytes), execution.threads, [&](std::size_t begin, std::size_t end) {
    std::uint8_t* to = out + begin * row_bytes;
    for (std::size_t row = begin; row < end; ++row) {
      const std::uint8_t* from = patch_start(gather, row, pixel_bytes);
      const std::uint8_t* next = patch_start(gather, std::min(row + 2, end - 1), pixel_bytes);
      for (std::size_t line = 0; line < gather.patch; ++line, from += stride, next += stride, to += run_bytes) {
        prefetch(next, run_bytes);
        std::memcpy(to, from, run_bytes);
      }
    }
  });
}

void normalize_patches(const PatchGather& gather, const std::vector<float>& scale, const std::vector<float>& shift,
                       float* out, Execution execution) {
  check_index(gather);
  const std::vector<float> scales = repeated(scale, gather.patch), shifts = repeated(shift, gather.patch);
  const std::size_t row_bytes = gather.patch * scales.size() * sizeof(float);
  parallel_for(gather.rows, rows_per_piece(row_bytes), execution.threads, [&](std::size_t begin, std::size_t end) {
    dispatch<NormalizeRange>(execution.isa, &gather, scale.size(), scales.data(), shifts.data(), out, begin, end);
  });
}

}  // namespace omnitrunk

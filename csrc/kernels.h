// The face of the native kernels: plain functions on pointers and sizes, without torch and without state.
// Every one of them may run in several threads at once, and its result depends neither on `threads` nor on the
// instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "dispatch.h"
#include "philox.h"

namespace omnitrunk {

// How to run: the instruction set and the largest number of threads.
struct Execution {
  Isa isa;
  int threads;
};

// Which tokens of each sample stay visible. Every token has two 32-bit noise values, one from each stream. In every
// task the wanted number of tokens with the smallest first noise are candidates, the lower index first among equals;
// visible are the `keep` smallest tokens in the order (not a candidate, second noise, index). Arrays are row-major; N
// is the sum of `task_sizes`.
struct MaskSampling {
  const std::int32_t* counts;           // (samples, tasks) wanted visible tokens per task, clamped to [0, task size]
  std::vector<std::size_t> task_sizes;  // tokens of each task
  std::size_t keep;                     // visible tokens per sample over all tasks, at most N
  PhiloxKey task_key, fill_key;         // the two noise streams
  const std::int64_t* positions;        // (samples) global positions, which key the noise
  std::int64_t* ids_keep;               // (samples, keep) out: visible tokens, ascending
  std::uint8_t* mask;                   // (samples, N) out: 1 for masked, 0 for visible
};
void sample_mask(const MaskSampling& sampling, std::size_t samples, Execution execution);

// Patches of channels-last images, picked by index; a row of the result is one patch in (row, column, channel) order.
struct PatchGather {
  const std::uint8_t* pixels;  // (images, height, width, pixel) bytes
  std::size_t images, height, width;
  std::size_t patch;          // side of a patch in pixels; divides height and width
  const std::int64_t* index;  // (rows) image * patches per image + row-major patch
  std::size_t rows;
};
// Copies patches of pixels of `pixel_bytes` bytes each, whatever their type. Throws std::out_of_range on a bad index.
void copy_patches(const PatchGather& gather, std::size_t pixel_bytes, std::uint8_t* out, Execution execution);
// Turns bytes into x * scale[channel] + shift[channel]; out is (rows, patch * patch * channels).
void normalize_patches(const PatchGather& gather, const std::vector<float>& scale, const std::vector<float>& shift,
                       float* out, Execution execution);

// The rows of all heads of a tensor (batch, length, heads, width); strides count numbers, those along the width are 1.
template <class T>
struct Heads {
  T* data;
  std::size_t batch_stride, row_stride, head_stride;
};

// Softmax attention: out = softmax(scale q k^T) v for every sample and head.
struct Attention {
  std::size_t batch, queries, keys, heads, width;  // no size is 0, and the width of a head is a multiple of 16
  float scale;
  Heads<const float> q, k, v;
};
void attention(const Attention& attention, Heads<float> out, Execution execution);

struct AttentionGradients {
  Heads<float> q, k, v;
};
void attention_backward(const Attention& attention, Heads<const float> grad, const AttentionGradients& out,
                        Execution execution);

// GELU, active = gelu(hidden); both may be the same.
void gelu(const float* hidden, float* active, std::size_t size, Execution execution);

// For three matrices (rows, columns): values *= gelu'(hidden), active = gelu(hidden) once more, and the sums down the
// columns of the new values over blocks of `rows_per_sum` rows: sums (rows / rows_per_sum rounded up, columns).
struct GeluGradient {
  const float* hidden;
  float* values;
  float* active;
  std::size_t rows, columns, rows_per_sum;
  float* sums;
};
void gelu_backward(const GeluGradient& gradient, Execution execution);

// How the numbers of a tensor are stored.
enum class Format { float32, bfloat16, float16 };

// A gradient, and tensors of its size to multiply it with.
struct Partner {
  const void* values;
  Format format;
};
struct Gradient {
  const float* data;
  std::size_t size;
  std::vector<Partner> partners;
};
// For every gradient the sum of its squares, then the sum of its products with each partner, in double precision.
std::vector<std::vector<double>> gradient_products(const std::vector<Gradient>& gradients, Execution execution);

// One parameter tensor with its gradient and state; `average` (the moving average of the weights) may be null.
struct AdamWTensor {
  float* parameter;
  float* first_moment;
  float* second_moment;
  float* average;
  double lr, weight_decay;
  const float* gradient;
  double gradient_scale;  // multiplies the gradient of this tensor alone
};
// result = round(weight + sum of factor * values), from the updated weight.
struct Term {
  const void* values;
  Format format;
  float factor;
};
struct Combination {
  const float* weight;
  std::vector<Term> terms;
  void* result;
  Format format;
};
// Tensors of one size that are updated together because they share a gradient, and what is then made of them.
struct AdamWUnit {
  std::size_t size;
  std::vector<AdamWTensor> tensors;
  std::vector<Combination> combinations;
};
struct AdamWOptions {
  double beta1, beta2, epsilon;
  std::int64_t step;      // of this update, counted from 1
  double gradient_scale;  // multiplies every gradient; the clip factor
  double average_decay;
};
void adamw(const std::vector<AdamWUnit>& units, const AdamWOptions& options, Execution execution);

}  // namespace omnitrunk

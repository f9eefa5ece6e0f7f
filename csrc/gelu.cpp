// GELU in its exact form (Hendrycks, Gimpel: "Gaussian error linear units", 2016), and its backward pass, which computes it
// again.
//
// With u = |x|, q = Phi(-u) the lower tail of the normal distribution and phi its density:
//   gelu(x) = max(x, 0) - u q,   gelu'(x) = s for x < 0 and 1 - s otherwise, where s = q - u phi(u).
// No term cancels, so that the tails stay exact in relative terms too. q = exp(-u^2 / 2) R(u), where R, half the scaled
// complementary error function, is a polynomial in t = 1 / (1 + 0.3 u): the minimax fit over [0, 13] among those with
// R(0) = 1/2, of relative error 1.2e-7. Beyond 13 q is below 1e-37, and u counts as 13.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace omnitrunk {
namespace {

constexpr std::size_t piece_size = 16384;

OMNITRUNK_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

OMNITRUNK_INLINE float from_bits(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// |x|, at most 13. As integers: compilers turn a comparison of floats with a constant into two slow branches.
OMNITRUNK_INLINE float magnitude(float x) {
  constexpr std::int32_t thirteen = 0x41500000;
  return from_bits(static_cast<std::uint32_t>(std::min(static_cast<std::int32_t>(bits_of(std::fabs(x))), thirteen)));
}

// 2^x for -126 <= x <= 0, to a relative error of 2e-7: 2^n 2^f with n the nearest integer, which the addition of a
// large number leaves in the last bits. Polynomials are evaluated in pairs of terms, which do not wait for each other.
OMNITRUNK_INLINE float exp2_of(float x) {
  constexpr float large = 12582912.0f;  // 1.5 * 2^23
  const float shifted = x + large;
  const float f = x - (shifted - large), f2 = f * f;
  const float high = 1.32647366e-3f * f + 9.67151579e-3f, middle = 5.55073358e-2f * f + 2.40222424e-1f;
  const float power = (high * f2 + middle) * f2 + (6.93147004e-1f * f + 1.0f);
  return from_bits(bits_of(power) + (bits_of(shifted) << 23));
}

// R(u) = Phi(-u) exp(u^2 / 2).
OMNITRUNK_INLINE float scaled_tail(float u) {
  const float t = 1.0f / (1.0f + 0.3f * u), t2 = t * t;
  const float a = 3.62505168e-2f * t - 1.59583613e-1f, b = 2.10430548e-1f * t - 5.74203171e-2f;
  const float c = 1.30534157e-1f * t + 9.93157253e-2f, d = 1.20849974e-1f * t + 1.19623005e-1f;
  return ((a * t2 + b) * (t2 * t2) + (c * t2 + d)) * t;
}

// phi(u) / phi(0) = exp(-u^2 / 2).
OMNITRUNK_INLINE float bell(float u) {
  constexpr float half_log2_e = 0.721347520f;
  return exp2_of(-half_log2_e * (u * u));
}

// gelu(x) of u = |x| and the lower tail.
OMNITRUNK_INLINE float active_of(float x, float u, float tail) { return (x < 0 ? 0.0f : x) - u * tail; }

struct Forward {
  static OMNITRUNK_INLINE void run(const float* hidden, float* active, std::size_t size) {
#pragma GCC ivdep  // the two may be the same
    for (std::size_t i = 0; i < size; ++i) {
      const float x = hidden[i], u = magnitude(x);
      active[i] = active_of(x, u, bell(u) * scaled_tail(u));
    }
  }
};

struct Backward {
  static OMNITRUNK_INLINE void run(const float* hidden, float* gradient, float* active, std::size_t rows,
                                   std::size_t columns, float* __restrict sums) {
    constexpr float density_of_0 = 0.398942280f;
    std::fill_n(sums, columns, 0.0f);
    for (std::size_t row = 0; row < rows; ++row) {
      const float* __restrict in = hidden + row * columns;
      float* __restrict grad = gradient + row * columns;
      float* __restrict out = active + row * columns;
      for (std::size_t column = 0; column < columns; ++column) {
        const float x = in[column], u = magnitude(x);
        const float exp = bell(u), tail = exp * scaled_tail(u), s = tail - density_of_0 * u * exp;
        out[column] = active_of(x, u, tail);
        grad[column] *= x < 0 ? s : 1.0f - s;
        sums[column] += grad[column];
      }
    }
  }
};

}  // namespace

void gelu(const float* hidden, float* active, std::size_t size, Execution execution) {
  parallel_for(size, piece_size, execution.threads, [&](std::size_t begin, std::size_t end) {
    dispatch<Forward>(execution.isa, hidden + begin, active + begin, end - begin);
  });
}

void gelu_backward(const GeluGradient& gradient, Execution execution) {
  const std::size_t columns = gradient.columns;
  parallel_for(gradient.rows, gradient.rows_per_sum, execution.threads, [&](std::size_t begin, std::size_t end) {
    const std::size_t first = begin * columns;
    dispatch<Backward>(execution.isa, gradient.hidden + first, gradient.values + first, gradient.active + first,
                       end - begin, columns, gradient.sums + begin / gradient.rows_per_sum * columns);
  });
}

}  // namespace omnitrunk

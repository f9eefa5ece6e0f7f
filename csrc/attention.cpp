// Softmax attention of short sequences, one head at a time: its scores stay in the cache, and the backward pass
// computes them again instead of reading them from memory. Queries, keys, values and gradients are read and written
// where the projections have them. Products are built from tiles that stay in registers (Goto, van de Geijn: "Anatomy
// of high-performance matrix multiplication", ACM TOMS 2008).
#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace omnitrunk {
namespace {

// One vector of 16 numbers whatever the instruction set, which takes as many registers for it as it needs.
constexpr std::size_t lanes = 16;
constexpr std::size_t query_block = 64;
#if defined(__GNUC__)
// Vectors are passed to functions that are always inlined only, so how they would be passed is of no interest.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif
using Vector = float __attribute__((vector_size(64)));
using Integers = std::int32_t __attribute__((vector_size(64)));
using Half = float __attribute__((vector_size(32)));
using Quarter = float __attribute__((vector_size(16)));

OMNITRUNK_INLINE Vector load(const float* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

OMNITRUNK_INLINE void store(float* to, Vector x) { std::memcpy(to, &x, sizeof x); }

template <class To, class From>
OMNITRUNK_INLINE To same_bits(From x) {
  To y;
  static_assert(sizeof y == sizeof x);
  std::memcpy(&y, &x, sizeof y);
  return y;
}

// The left factor of a product, read number by number in any order.
struct Left {
  const float* data;
  std::size_t row_stride, column_stride;

  OMNITRUNK_INLINE Left from_row(std::size_t row) const { return {data + row * row_stride, row_stride, column_stride}; }
};

// The right factor and the result, read and written in vectors along the rows.
struct Right {
  const float* data;
  std::size_t row_stride;
};

struct Result {
  float* data;
  std::size_t row_stride;
};

template <int Rows, int Columns, bool Add>
OMNITRUNK_INLINE void multiply_tile(Left a, Right b, Result c, std::size_t inner) {
  Vector sums[Rows][Columns];
  for (int row = 0; row < Rows; ++row) {
    for (int column = 0; column < Columns; ++column) {
      sums[row][column] = Add ? load(c.data + row * c.row_stride + column * lanes) : Vector{};
    }
  }
  for (std::size_t i = 0; i < inner; ++i) {
    Vector values[Columns];
    for (int column = 0; column < Columns; ++column) values[column] = load(b.data + i * b.row_stride + column * lanes);
    for (int row = 0; row < Rows; ++row) {
      const float factor = a.data[row * a.row_stride + i * a.column_stride];
      for (int column = 0; column < Columns; ++column) sums[row][column] += factor * values[column];
    }
  }
  for (int row = 0; row < Rows; ++row) {
    for (int column = 0; column < Columns; ++column) {
      store(c.data + row * c.row_stride + column * lanes, sums[row][column]);
    }
  }
}

template <int Columns, bool Add>
OMNITRUNK_INLINE void multiply_columns(Left a, Right b, Result c, std::size_t rows, std::size_t inner) {
  const auto at = [&](std::size_t row) { return Result{c.data + row * c.row_stride, c.row_stride}; };
  std::size_t row = 0;
  for (; row + 8 <= rows; row += 8) multiply_tile<8, Columns, Add>(a.from_row(row), b, at(row), inner);
  for (; row + 4 <= rows; row += 4) multiply_tile<4, Columns, Add>(a.from_row(row), b, at(row), inner);
  for (; row < rows; ++row) multiply_tile<1, Columns, Add>(a.from_row(row), b, at(row), inner);
}

// c (rows, columns) = or += a (rows, inner) b (inner, columns), with columns a multiple of `lanes`.
template <bool Add>
OMNITRUNK_INLINE void multiply(Left a, Right b, Result c, std::size_t rows, std::size_t columns, std::size_t inner) {
  while (columns > 0) {
    // Three vectors a row keep the most sums in flight; four are better split evenly.
    const std::size_t taken = columns == 4 * lanes ? 2 * lanes : std::min(columns, 3 * lanes);
    if (taken == 3 * lanes) multiply_columns<3, Add>(a, b, c, rows, inner);
    if (taken == 2 * lanes) multiply_columns<2, Add>(a, b, c, rows, inner);
    if (taken == lanes) multiply_columns<1, Add>(a, b, c, rows, inner);
    b.data += taken;
    c.data += taken;
    columns -= taken;
  }
}

// from (rows, width) -> to (width, to_stride), with zeros in place of missing rows; width is a multiple of `lanes`.
OMNITRUNK_INLINE void transpose(Right from, std::size_t rows, std::size_t width, float* to, std::size_t to_stride) {
  for (std::size_t first = 0; first < to_stride; first += lanes) {
    for (std::size_t column = 0; column < width; column += lanes) {
      Vector block[lanes], zipped[lanes];
      for (std::size_t i = 0; i < lanes; ++i) {
        block[i] = first + i < rows ? load(from.data + (first + i) * from.row_stride + column) : Vector{};
      }
      // Zipping the upper with the lower half moves one bit of the row number into the column number.
      for (int bit = 0; bit < 4; ++bit) {
        for (std::size_t i = 0; i < lanes / 2; ++i) {
          const Vector a = block[i], b = block[i + lanes / 2];
          zipped[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
          zipped[2 * i + 1] =
              __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        std::copy(zipped, zipped + lanes, block);
      }
      for (std::size_t i = 0; i < lanes; ++i) store(to + (column + i) * to_stride + first, block[i]);
    }
  }
}

// One number out of sixteen, halved step by step so that no step waits for more than three others.
template <class Combine>
OMNITRUNK_INLINE float folded(Vector x, Combine combine) {
  const Half a = combine(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                         __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15));
  const Quarter b = combine(__builtin_shufflevector(a, a, 0, 1, 2, 3), __builtin_shufflevector(a, a, 4, 5, 6, 7));
  const Quarter c = combine(b, __builtin_shufflevector(b, b, 2, 3, 0, 1));
  return combine(c, __builtin_shufflevector(c, c, 1, 0, 3, 2))[0];
}

struct Larger {
  template <class V>
  OMNITRUNK_INLINE V operator()(V a, V b) const {
    return a > b ? a : b;
  }
};

struct Sum {
  template <class V>
  OMNITRUNK_INLINE V operator()(V a, V b) const {
    return a + b;
  }
};

// 2^x for x <= 0, within 2 units in the last place; 2^-126 for everything below. Split as 2^n 2^f with n the nearest
// integer, which the addition of a large number leaves in the last bits, and the Taylor polynomial of 2^f.
OMNITRUNK_INLINE Vector exp2_of(Vector x) {
  constexpr float large = 12582912.0f;  // 1.5 * 2^23
  const Vector lowest = Vector{} - 126.0f;
  x = x > lowest ? x : lowest;
  const Vector shifted = x + large;
  const Vector f = x - (shifted - large);
  Vector y = Vector{} + 1.5403530e-4f;
  for (const float coefficient : {1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    y = y * f + coefficient;
  }
  return same_bits<Vector>(same_bits<Integers>(y) + (same_bits<Integers>(shifted) << 23));
}

// Rows of scores become softmax(scale * scores); stride is `keys` rounded up, and what is beyond `keys` becomes ~0.
OMNITRUNK_INLINE void softmax(float* scores, std::size_t rows, std::size_t keys, std::size_t stride, float scale) {
  constexpr float log2_e = 1.44269504f;
  const Integers numbers = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const Integers inside = numbers < static_cast<std::int32_t>(keys + lanes - stride);
  const Vector nothing = Vector{} - std::numeric_limits<float>::infinity();
  const std::size_t whole = stride - lanes;
  float sums[query_block];
  for (std::size_t row = 0; row < rows; ++row) {
    float* x = scores + row * stride;
    const Vector last = inside ? load(x + whole) : nothing;
    Vector largest = last;
    for (std::size_t i = 0; i < whole; i += lanes) largest = Larger{}(largest, load(x + i));
    const float top = folded(largest, Larger{});
    const Vector last_exp = exp2_of((last - top) * (scale * log2_e));
    store(x + whole, last_exp);
    Vector sum = last_exp;
    for (std::size_t i = 0; i < whole; i += lanes) {
      const Vector exp = exp2_of((load(x + i) - top) * (scale * log2_e));
      store(x + i, exp);
      sum += exp;
    }
    sums[row] = folded(sum, Sum{});
  }
  // Loops of their own: here no row waits for the sum of its exponentials.
  for (std::size_t row = 0; row < rows; ++row) sums[row] = 1.0f / sums[row];
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t i = 0; i < stride; i += lanes) {
      store(scores + row * stride + i, load(scores + row * stride + i) * sums[row]);
    }
  }
}

// grads, the gradient of the probabilities, becomes that of the products of queries and keys.
OMNITRUNK_INLINE void softmax_backward(const float* probabilities, float* grads, std::size_t rows, std::size_t stride,
                                       float scale) {
  for (std::size_t row = 0; row < rows; ++row) {
    const float* p = probabilities + row * stride;
    float* g = grads + row * stride;
    Vector sum{};
    for (std::size_t i = 0; i < stride; i += lanes) sum += load(p + i) * load(g + i);
    const float along = folded(sum, Sum{});
    for (std::size_t i = 0; i < stride; i += lanes) store(g + i, load(p + i) * (load(g + i) - along) * scale);
  }
}

// The rows of one head of one sample, from a row on.
template <class T>
struct Rows {
  T* data;
  std::size_t stride;

  OMNITRUNK_INLINE Rows(Heads<T> heads, std::size_t sample, std::size_t head)
      : data(heads.data + sample * heads.batch_stride + head * heads.head_stride), stride(heads.row_stride) {}
  OMNITRUNK_INLINE T* from(std::size_t row) const { return data + row * stride; }
};

// Scores of one query take whole vectors.
OMNITRUNK_INLINE std::size_t padded(std::size_t keys) { return (keys + lanes - 1) / lanes * lanes; }

struct ForwardRange {
  static OMNITRUNK_INLINE void run(const Attention* x, Heads<float> out, float* scratch, std::size_t begin,
                                   std::size_t end) {
    const std::size_t width = x->width, keys = x->keys, stride = padded(keys);
    float *k_transposed = scratch, *p = k_transposed + width * stride;
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t sample = item / x->heads, head = item % x->heads;
      const Rows<const float> q(x->q, sample, head), k(x->k, sample, head), v(x->v, sample, head);
      const Rows<float> o(out, sample, head);
      transpose({k.data, k.stride}, keys, width, k_transposed, stride);
      for (std::size_t first = 0; first < x->queries; first += query_block) {
        const std::size_t rows = std::min(query_block, x->queries - first);
        multiply<false>({q.from(first), q.stride, 1}, {k_transposed, stride}, {p, stride}, rows, stride, width);
        softmax(p, rows, keys, stride, x->scale);
        multiply<false>({p, stride, 1}, {v.data, v.stride}, {o.from(first), o.stride}, rows, width, keys);
      }
    }
  }
};

template <bool Add>
OMNITRUNK_INLINE void add_key_gradients(Left p, Left ds, Right grad, Right q, Result dk, Result dv, std::size_t rows,
                                        std::size_t keys, std::size_t width) {
  multiply<Add>(p, grad, dv, keys, width, rows);
  multiply<Add>(ds, q, dk, keys, width, rows);
}

struct BackwardRange {
  static OMNITRUNK_INLINE void run(const Attention* x, Heads<const float> grads, const AttentionGradients* out,
                                   float* scratch, std::size_t begin, std::size_t end) {
    const std::size_t width = x->width, keys = x->keys, stride = padded(keys);
    float *k_transposed = scratch, *v_transposed = k_transposed + width * stride;
    float *p = v_transposed + width * stride, *ds = p + query_block * stride;
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t sample = item / x->heads, head = item % x->heads;
      const Rows<const float> q(x->q, sample, head), k(x->k, sample, head), v(x->v, sample, head);
      const Rows<const float> grad(grads, sample, head);
      const Rows<float> dq(out->q, sample, head), dk(out->k, sample, head), dv(out->v, sample, head);
      transpose({k.data, k.stride}, keys, width, k_transposed, stride);
      transpose({v.data, v.stride}, keys, width, v_transposed, stride);
      for (std::size_t first = 0; first < x->queries; first += query_block) {
        const std::size_t rows = std::min(query_block, x->queries - first);
        const Right q_rows{q.from(first), q.stride}, grad_rows{grad.from(first), grad.stride};
        multiply<false>({q_rows.data, q.stride, 1}, {k_transposed, stride}, {p, stride}, rows, stride, width);
        softmax(p, rows, keys, stride, x->scale);
        multiply<false>({grad_rows.data, grad.stride, 1}, {v_transposed, stride}, {ds, stride}, rows, stride, width);
        softmax_backward(p, ds, rows, stride, x->scale);
        multiply<false>({ds, stride, 1}, {k.data, k.stride}, {dq.from(first), dq.stride}, rows, width, keys);
        const Left p_transposed{p, 1, stride}, ds_transposed{ds, 1, stride};
        const Result dk_rows{dk.data, dk.stride}, dv_rows{dv.data, dv.stride};
        if (first == 0) {
          add_key_gradients<false>(p_transposed, ds_transposed, grad_rows, q_rows, dk_rows, dv_rows, rows, keys, width);
        } else {
          add_key_gradients<true>(p_transposed, ds_transposed, grad_rows, q_rows, dk_rows, dv_rows, rows, keys, width);
        }
      }
    }
  }
};

constexpr std::size_t heads_per_piece = 8;

}  // namespace

void attention(const Attention& x, Heads<float> out, Execution execution) {
  parallel_for(x.batch * x.heads, heads_per_piece, execution.threads, [&](std::size_t begin, std::size_t end) {
    std::vector<float> scratch((x.width + query_block) * padded(x.keys));
    dispatch<ForwardRange>(execution.isa, &x, out, scratch.data(), begin, end);
  });
}

void attention_backward(const Attention& x, Heads<const float> grad, const AttentionGradients& out,
                        Execution execution) {
  parallel_for(x.batch * x.heads, heads_per_piece, execution.threads, [&](std::size_t begin, std::size_t end) {
    std::vector<float> scratch(2 * (x.width + query_block) * padded(x.keys));
    dispatch<BackwardRange>(execution.isa, &x, grad, &out, scratch.data(), begin, end);
  });
}

}  // namespace omnitrunk

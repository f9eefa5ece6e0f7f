// AdamW (Loshchilov, Hutter: "Decoupled weight decay regularization", ICLR 2019) over many tensors in one pass, with
// gradient clipping, a moving average of the weights, and narrow copies folded in. Tensors are cut into pieces of fixed
// size and the pieces of all tensors share one parallel loop, so that hundreds of small tensors cost no more than one
// large one. Within a piece everything happens block by block: what several steps need is read from memory once.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "parallel.h"
#ifdef OMNITRUNK_X86
#include <emmintrin.h>
#endif

namespace omnitrunk {
namespace {

constexpr std::size_t piece_size = 16384, block_size = 2048;

struct Piece {
  std::size_t owner, begin, size;
};

template <class Owner>
std::vector<Piece> cut_into_pieces(const std::vector<Owner>& owners) {
  std::vector<Piece> pieces;
  for (std::size_t owner = 0; owner < owners.size(); ++owner) {
    const std::size_t size = owners[owner].size;
    for (std::size_t begin = 0; begin < size; begin += piece_size) {
      pieces.push_back({owner, begin, std::min(piece_size, size - begin)});
    }
  }
  return pieces;
}

template <class To, class From>
OMNITRUNK_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

// How numbers are stored: widened without loss, narrowed to the nearest, ties to even.
struct Float32 {
  using Stored = float;
  static OMNITRUNK_INLINE float widen(Stored value) { return value; }
  static OMNITRUNK_INLINE Stored narrow(float value) { return value; }
};

struct Bfloat16 {
  using Stored = std::uint16_t;
  static OMNITRUNK_INLINE float widen(Stored value) { return bits_as<float>(static_cast<std::uint32_t>(value) << 16); }
  static OMNITRUNK_INLINE Stored narrow(float value) {
    const auto bits = bits_as<std::uint32_t>(value);
    const std::uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const bool number = (bits & 0x7fffffff) <= 0x7f800000;
    return static_cast<Stored>(number ? rounded : 0x7fc0);
  }
};

struct Float16 {
  using Stored = std::uint16_t;
  // Multiplying by 2^112 moves the exponent into place, for subnormal numbers too; infinities and NaNs stay such.
  static OMNITRUNK_INLINE float widen(Stored value) {
    const std::uint32_t magnitude = value & 0x7fffu, sign = static_cast<std::uint32_t>(value & 0x8000u) << 16;
    const float scaled = bits_as<float>(magnitude << 13) * bits_as<float>(std::uint32_t{239} << 23);
    const std::uint32_t special = magnitude >= 0x7c00 ? 0x7f800000u : 0u;
    return bits_as<float>(bits_as<std::uint32_t>(scaled) | special | sign);
  }
  // Below 2^-14 the sum with 1/2 puts the rounded digits into the last bits of the sum.
  static OMNITRUNK_INLINE Stored narrow(float value) {
    const auto bits = bits_as<std::uint32_t>(value), magnitude = bits & 0x7fffffff;
    const std::uint32_t normal = (magnitude - (std::uint32_t{112} << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const auto subnormal = bits_as<std::uint32_t>(bits_as<float>(magnitude) + 0.5f) - bits_as<std::uint32_t>(0.5f);
    const std::uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
    const std::uint32_t finite = magnitude < (std::uint32_t{113} << 23) ? subnormal : normal;
    const std::uint32_t rounded = magnitude < (std::uint32_t{143} << 23) ? finite : special;
    return static_cast<Stored>(rounded | ((bits >> 16) & 0x8000));
  }
};

// Calls Kernel<Kind>::run for the kind that a format names.
template <template <class> class Kernel, class... Args>
void dispatch_format(Format format, Isa isa, Args... args) {
  if (format == Format::bfloat16) return dispatch<Kernel<Bfloat16>>(isa, args...);
  if (format == Format::float16) return dispatch<Kernel<Float16>>(isa, args...);
  dispatch<Kernel<Float32>>(isa, args...);
}

// The sum of the products of two tensors; of the squares of one, where both are the same.
template <class Kind>
struct SumOfProducts {
  static OMNITRUNK_INLINE void run(const float* left, const void* other, std::size_t begin, std::size_t size,
                                   double* result) {
    // A fixed number of running sums fixes the order of the additions, whatever the vector width.
    constexpr std::size_t lanes = 16;
    const float* values = left + begin;
    const auto* partners = static_cast<const typename Kind::Stored*>(other) + begin;
    std::array<double, lanes> sums{};
    const std::size_t whole = size / lanes * lanes;
    for (std::size_t i = 0; i < whole; i += lanes) {
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        sums[lane] += static_cast<double>(values[i + lane]) * Kind::widen(partners[i + lane]);
      }
    }
    for (std::size_t i = whole; i < size; ++i) {
      sums[i - whole] += static_cast<double>(values[i]) * Kind::widen(partners[i]);
    }
    double total = 0;
    for (const double sum : sums) total += sum;
    *result = total;
  }
};

// The factors of one tensor's update, computed once in double precision.
struct Factors {
  float gradient_scale, shrink, beta1_rest, beta2, beta2_rest, root_correction, epsilon, step_size, average_rest;
};

Factors factors_of(const AdamWTensor& tensor, const AdamWOptions& options) {
  const auto step = static_cast<double>(options.step);
  const double correction1 = 1 - std::pow(options.beta1, step), correction2 = 1 - std::pow(options.beta2, step);
  const auto single = [](double value) { return static_cast<float>(value); };
  return {single(options.gradient_scale * tensor.gradient_scale),
          single(1 - tensor.lr * tensor.weight_decay),
          single(1 - options.beta1),
          single(options.beta2),
          single(1 - options.beta2),
          single(std::sqrt(correction2)),
          single(options.epsilon),
          single(tensor.lr / correction1),
          single(1 - options.average_decay)};
}

template <bool WithAverage>
struct Update {
  static OMNITRUNK_INLINE void run(const AdamWTensor* tensor, const Factors* factors, std::size_t begin,
                                   std::size_t size) {
    const Factors f = *factors;
    float* __restrict parameter = tensor->parameter + begin;
    const float* __restrict gradient = tensor->gradient + begin;
    float* __restrict first = tensor->first_moment + begin;
    float* __restrict second = tensor->second_moment + begin;
    float* __restrict average = WithAverage ? tensor->average + begin : nullptr;
    for (std::size_t i = 0; i < size; ++i) {
      // The order of the operations is that of torch.optim.AdamW.
      const float g = gradient[i] * f.gradient_scale;
      const float m = first[i] + f.beta1_rest * (g - first[i]);
      const float v = second[i] * f.beta2 + f.beta2_rest * g * g;
      const float denominator = std::sqrt(v) / f.root_correction + f.epsilon;
      const float p = parameter[i] * f.shrink - f.step_size * m / denominator;
      first[i] = m;
      second[i] = v;
      parameter[i] = p;
      if constexpr (WithAverage) average[i] += f.average_rest * (p - average[i]);
    }
  }
};

template <class Kind>
struct AddTerm {
  static OMNITRUNK_INLINE void run(const Term* term, std::size_t begin, std::size_t size, float* __restrict total) {
    const auto* __restrict values = static_cast<const typename Kind::Stored*>(term->values) + begin;
    for (std::size_t i = 0; i < size; ++i) total[i] += term->factor * Kind::widen(values[i]);
  }
};

template <class Kind>
struct Narrow {
  static OMNITRUNK_INLINE void run(const float* __restrict values, std::size_t size, void* result) {
    auto* __restrict narrow = static_cast<typename Kind::Stored*>(result);
    for (std::size_t i = 0; i < size; ++i) narrow[i] = Kind::narrow(values[i]);
  }
};

// Copies past the caches where the processor can do that: they need not fetch what is about to be overwritten, and
// nobody reads a copy of the parameters before they are all written.
void stream(const char* from, std::size_t bytes, char* to) {
  std::size_t done = 0;
#ifdef OMNITRUNK_X86
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof(__m128i) == 0) {
    for (; done + sizeof(__m128i) <= bytes; done += sizeof(__m128i)) {
      const __m128i part = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + done));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + done), part);
    }
    _mm_sfence();
  }
#endif
  std::memcpy(to + done, from + done, bytes - done);
}

void combine(const Combination& combination, std::size_t begin, std::size_t size, Isa isa) {
  const float* values = combination.weight + begin;
  std::array<float, block_size> total;
  if (!combination.terms.empty()) {
    std::copy_n(values, size, total.begin());
    for (const Term& term : combination.terms) {
      dispatch_format<AddTerm>(term.format, isa, &term, begin, size, total.data());
    }
    values = total.data();
  }
  alignas(float) std::array<char, sizeof(float) * block_size> narrow;
  dispatch_format<Narrow>(combination.format, isa, values, size, static_cast<void*>(narrow.data()));
  const std::size_t width = combination.format == Format::float32 ? sizeof(float) : sizeof(std::uint16_t);
  stream(narrow.data(), size * width, static_cast<char*>(combination.result) + begin * width);
}

void update(const AdamWUnit& unit, const Factors* factors, std::size_t begin, std::size_t size, Isa isa) {
  for (const AdamWTensor& tensor : unit.tensors) {
    if (tensor.average != nullptr) {
      dispatch<Update<true>>(isa, &tensor, factors++, begin, size);
    } else {
      dispatch<Update<false>>(isa, &tensor, factors++, begin, size);
    }
  }
  for (const Combination& combination : unit.combinations) combine(combination, begin, size, isa);
}

}  // namespace

std::vector<std::vector<double>> gradient_products(const std::vector<Gradient>& gradients, Execution execution) {
  const auto pieces = cut_into_pieces(gradients);
  std::size_t columns = 1;
  for (const Gradient& gradient : gradients) columns = std::max(columns, 1 + gradient.partners.size());
  std::vector<double> shares(pieces.size() * columns);
  parallel_for(pieces.size(), 1, execution.threads, [&](std::size_t i, std::size_t) {
    const auto [owner, begin, size] = pieces[i];
    const Gradient& gradient = gradients[owner];
    double* share = &shares[i * columns];
    const void* itself = gradient.data;
    dispatch<SumOfProducts<Float32>>(execution.isa, gradient.data, itself, begin, size, share);
    for (const auto& [values, format] : gradient.partners) {
      dispatch_format<SumOfProducts>(format, execution.isa, gradient.data, values, begin, size, ++share);
    }
  });
  std::vector<std::vector<double>> totals;
  for (const Gradient& gradient : gradients) totals.emplace_back(1 + gradient.partners.size());
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    std::vector<double>& total = totals[pieces[i].owner];
    for (std::size_t column = 0; column < total.size(); ++column) total[column] += shares[i * columns + column];
  }
  return totals;
}

void adamw(const std::vector<AdamWUnit>& units, const AdamWOptions& options, Execution execution) {
  const auto pieces = cut_into_pieces(units);
  std::vector<std::vector<Factors>> factors(units.size());
  for (std::size_t i = 0; i < units.size(); ++i) {
    for (const AdamWTensor& tensor : units[i].tensors) factors[i].push_back(factors_of(tensor, options));
  }
  parallel_for(pieces.size(), 1, execution.threads, [&](std::size_t i, std::size_t) {
    const Piece piece = pieces[i];
    for (std::size_t begin = piece.begin; begin < piece.begin + piece.size; begin += block_size) {
      const std::size_t size = std::min(block_size, piece.begin + piece.size - begin);
      update(units[piece.owner], factors[piece.owner].data(), begin, size, execution.isa);
    }
  });
}

}  // namespace omnitrunk

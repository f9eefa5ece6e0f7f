// AdamW (Loshchilov, Hutter: "Decoupled weight decay regularization", ICLR 2019) over many tensors in one pass, with
// gradient clipping and a moving average of the weights folded in. Tensors are cut into pieces of fixed size and the
// pieces of all tensors share one parallel loop, so that hundreds of small tensors cost no more than one large one.
#include <algorithm>
#include <array>
#include <cmath>

#include "kernels.h"
#include "parallel.h"

namespace omnitrunk {
namespace {

constexpr std::size_t piece_size = 16384;

struct Piece {
  std::size_t tensor, begin, size;
};

template <class Tensor>
std::vector<Piece> cut_into_pieces(const std::vector<Tensor>& tensors) {
  std::vector<Piece> pieces;
  for (std::size_t tensor = 0; tensor < tensors.size(); ++tensor) {
    const std::size_t size = tensors[tensor].size;
    for (std::size_t begin = 0; begin < size; begin += piece_size) {
      pieces.push_back({tensor, begin, std::min(piece_size, size - begin)});
    }
  }
  return pieces;
}

struct SumOfSquares {
  static OMNITRUNK_INLINE void run(const float* __restrict values, std::size_t size, double* result) {
    // A fixed number of running sums fixes the order of the additions, whatever the vector width.
    constexpr std::size_t lanes = 16;
    std::array<double, lanes> sums{};
    const std::size_t whole = size / lanes * lanes;
    for (std::size_t i = 0; i < whole; i += lanes) {
      for (std::size_t lane = 0; lane < lanes; ++lane) {
        const double value = values[i + lane];
        sums[lane] += value * value;
      }
    }
    for (std::size_t i = whole; i < size; ++i) sums[i - whole] += static_cast<double>(values[i]) * values[i];
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
  return {single(options.gradient_scale), single(1 - tensor.lr * tensor.weight_decay),
          single(1 - options.beta1),      single(options.beta2),
          single(1 - options.beta2),      single(std::sqrt(correction2)),
          single(options.epsilon),        single(tensor.lr / correction1),
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

}  // namespace

double squared_norm(const std::vector<Values>& tensors, Execution execution) {
  const auto pieces = cut_into_pieces(tensors);
  std::vector<double> sums(pieces.size());
  parallel_for(pieces.size(), 1, execution.threads, [&](std::size_t i, std::size_t) {
    const Piece piece = pieces[i];
    dispatch<SumOfSquares>(execution.isa, tensors[piece.tensor].data + piece.begin, piece.size, &sums[i]);
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return total;
}

void adamw(const std::vector<AdamWTensor>& tensors, const AdamWOptions& options, Execution execution) {
  const auto pieces = cut_into_pieces(tensors);
  std::vector<Factors> factors(tensors.size());
  std::transform(tensors.begin(), tensors.end(), factors.begin(),
                 [&](const AdamWTensor& tensor) { return factors_of(tensor, options); });
  parallel_for(pieces.size(), 1, execution.threads, [&](std::size_t i, std::size_t) {
    const Piece piece = pieces[i];
    const AdamWTensor* tensor = &tensors[piece.tensor];
    if (tensor->average != nullptr) {
      dispatch<Update<true>>(execution.isa, tensor, &factors[piece.tensor], piece.begin, piece.size);
    } else {
      dispatch<Update<false>>(execution.isa, tensor, &factors[piece.tensor], piece.begin, piece.size);
    }
  });
}

}  // namespace omnitrunk

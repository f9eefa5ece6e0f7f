// The Python module omnitrunk.kernels._C. Arrays cross as addresses (tensor.data_ptr()): the cheapest crossing there
// is, and free of torch's headers. Types, shapes and contiguity are checked by kernels/native.py, the only caller.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "kernels.h"

namespace py = pybind11;

namespace omnitrunk {

void bind_points(py::module_& m, Isa isa);  // bind_points.cpp

namespace {

using Address = std::uintptr_t;
using Key = std::pair<std::uint32_t, std::uint32_t>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// OMNITRUNK_ISA names a narrower instruction set than the processor offers, to compare them or to rule one out.
Isa chosen_isa() {
  const Isa widest = widest_isa();
  const char* wanted = std::getenv("OMNITRUNK_ISA");
  if (wanted == nullptr) return widest;
  for (const Isa isa : {Isa::scalar, Isa::avx2, Isa::avx512}) {
    if (std::string(wanted) == name(isa) && isa <= widest) return isa;
  }
  throw std::invalid_argument("OMNITRUNK_ISA=" + std::string(wanted) +
                              " is not available; this processor's widest is " + name(widest));
}

std::string compiler() {
#if defined(__clang__)
  return __VERSION__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

constexpr bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}

py::tuple philox4x32(const std::array<std::uint32_t, 4>& counter, Key key) {
  const auto [a, b, c, d] = philox({{counter[0], counter[1], counter[2], counter[3]}}, {key.first, key.second}).word;
  return py::make_tuple(a, b, c, d);
}

void bind_facts(py::module_& m, Isa isa) {
  m.def("isa", [isa] { return name(isa); }, "Instruction set in use: avx512, avx2 or scalar.");
  m.def("compiler", &compiler, "Name and version of the compiler.");
  m.def("openmp", &has_openmp, "Whether loops are spread over threads.");
  m.def("philox4x32", &philox4x32, "One block of Philox4x32-10: (counter of four words, key of two) -> four words.");
}

void bind_masking(py::module_& m, Isa isa) {
  m.def("sample_mask", [isa](Address counts, std::vector<std::size_t> task_sizes, std::size_t keep, Key task_key,
                             Key fill_key, Address positions, std::size_t samples, Address ids_keep, Address mask,
                             int threads) {
    const py::gil_scoped_release released;
    const MaskSampling sampling{pointer<std::int32_t>(counts),
                                std::move(task_sizes),
                                keep,
                                {task_key.first, task_key.second},
                                {fill_key.first, fill_key.second},
                                pointer<std::int64_t>(positions),
                                pointer<std::int64_t>(ids_keep),
                                pointer<std::uint8_t>(mask)};
    sample_mask(sampling, samples, {isa, threads});
  });
}

// What both gathers take: (address of the pixels, images, height, width) and (address, length) of the index.
using Frames = std::tuple<Address, std::size_t, std::size_t, std::size_t>;
using Index = std::pair<Address, std::size_t>;

PatchGather patch_gather(const Frames& frames, std::size_t patch, const Index& index) {
  const auto [pixels, images, height, width] = frames;
  return {pointer<std::uint8_t>(pixels),       images,      height, width, patch,
          pointer<std::int64_t>(index.first), index.second};
}

void bind_patches(py::module_& m, Isa isa) {
  m.def("copy_patches", [isa](const Frames& frames, std::size_t pixel_bytes, std::size_t patch, const Index& index,
                              Address out, int threads) {
    const py::gil_scoped_release released;
    copy_patches(patch_gather(frames, patch, index), pixel_bytes, pointer<std::uint8_t>(out), {isa, threads});
  });
  m.def("normalize_patches", [isa](const Frames& frames, const std::vector<float>& scale,
                                   const std::vector<float>& shift, std::size_t patch, const Index& index, Address out,
                                   int threads) {
    const py::gil_scoped_release released;
    normalize_patches(patch_gather(frames, patch, index), scale, shift, pointer<float>(out), {isa, threads});
  });
}

// (address, format), (address, size, partners) and (address, format, factor); formats are numbered as in kernels.h.
using PartnerRow = std::pair<Address, int>;
using GradientRow = std::tuple<Address, std::size_t, std::vector<PartnerRow>>;
using TermRow = std::tuple<Address, int, float>;
// (weight, terms, result, format of the result)
using CombinationRow = std::tuple<Address, std::vector<TermRow>, Address, int>;
// (parameter, first moment, second moment, moving average or 0, learning rate, weight decay, gradient, its factor)
using TensorRow = std::tuple<Address, Address, Address, Address, double, double, Address, double>;
using UnitRow = std::tuple<std::size_t, std::vector<TensorRow>, std::vector<CombinationRow>>;

// A row for every row that the caller gave.
template <class To, class From, class Make>
std::vector<To> each(const std::vector<From>& rows, const Make& make) {
  std::vector<To> made;
  made.reserve(rows.size());
  for (const From& row : rows) made.push_back(std::apply(make, row));
  return made;
}

Gradient gradient(Address data, std::size_t size, const std::vector<PartnerRow>& partners) {
  return {pointer<float>(data), size, each<Partner>(partners, [](Address values, int format) {
            return Partner{pointer<void>(values), static_cast<Format>(format)};
          })};
}

AdamWTensor adamw_tensor(Address parameter, Address first_moment, Address second_moment, Address average, double lr,
                         double weight_decay, Address gradient, double gradient_scale) {
  return {pointer<float>(parameter), pointer<float>(first_moment), pointer<float>(second_moment),
          pointer<float>(average), lr, weight_decay, pointer<float>(gradient), gradient_scale};
}

Combination combination(Address weight, const std::vector<TermRow>& terms, Address result, int format) {
  const auto term = [](Address values, int format, float factor) {
    return Term{pointer<void>(values), static_cast<Format>(format), factor};
  };
  return {pointer<float>(weight), each<Term>(terms, term), pointer<void>(result), static_cast<Format>(format)};
}

AdamWUnit adamw_unit(std::size_t size, const std::vector<TensorRow>& tensors,
                     const std::vector<CombinationRow>& combinations) {
  return {size, each<AdamWTensor>(tensors, adamw_tensor), each<Combination>(combinations, combination)};
}

#ifdef OMNITRUNK_HAS_VECTORS
// (address, batch stride, row stride, head stride)
using HeadsTuple = std::tuple<Address, std::size_t, std::size_t, std::size_t>;

template <class T>
Heads<T> heads(const HeadsTuple& tuple) {
  const auto [address, batch_stride, row_stride, head_stride] = tuple;
  return {pointer<T>(address), batch_stride, row_stride, head_stride};
}

Attention attention_of(const std::array<std::size_t, 5>& sizes, float scale, const std::array<HeadsTuple, 3>& qkv) {
  const auto [batch, queries, keys, heads_, width] = sizes;
  return {batch, queries, keys, heads_, width, scale,
          heads<const float>(qkv[0]), heads<const float>(qkv[1]), heads<const float>(qkv[2])};
}

void bind_attention(py::module_& m, Isa isa) {
  m.def("attention", [isa](const std::array<std::size_t, 5>& sizes, float scale, const std::array<HeadsTuple, 3>& qkv,
                           const HeadsTuple& out, int threads) {
    const py::gil_scoped_release released;
    attention(attention_of(sizes, scale, qkv), heads<float>(out), {isa, threads});
  });
  m.def("attention_backward", [isa](const std::array<std::size_t, 5>& sizes, float scale,
                                    const std::array<HeadsTuple, 3>& qkv, const HeadsTuple& grad,
                                    const std::array<HeadsTuple, 3>& out, int threads) {
    const py::gil_scoped_release released;
    const AttentionGradients gradients{heads<float>(out[0]), heads<float>(out[1]), heads<float>(out[2])};
    attention_backward(attention_of(sizes, scale, qkv), heads<const float>(grad), gradients, {isa, threads});
  });
}
#endif

void bind_gelu(py::module_& m, Isa isa) {
  m.def("gelu", [isa](Address hidden, Address active, std::size_t size, int threads) {
    const py::gil_scoped_release released;
    gelu(pointer<float>(hidden), pointer<float>(active), size, {isa, threads});
  });
  m.def("gelu_backward", [isa](Address hidden, Address values, Address active, const std::array<std::size_t, 3>& sizes,
                               Address sums, int threads) {
    const py::gil_scoped_release released;
    const auto [rows, columns, rows_per_sum] = sizes;
    gelu_backward({pointer<float>(hidden), pointer<float>(values), pointer<float>(active), rows, columns, rows_per_sum,
                   pointer<float>(sums)}, {isa, threads});
  });
}

void bind_optimizer(py::module_& m, Isa isa) {
  m.def("gradient_products", [isa](const std::vector<GradientRow>& rows, int threads) {
    const py::gil_scoped_release released;
    return gradient_products(each<Gradient>(rows, gradient), {isa, threads});
  });
  m.def("adamw", [isa](const std::vector<UnitRow>& rows, std::pair<double, double> betas, double epsilon,
                       std::int64_t step, double gradient_scale, double average_decay, int threads) {
    const py::gil_scoped_release released;
    const AdamWOptions options{betas.first, betas.second, epsilon, step, gradient_scale, average_decay};
    adamw(each<AdamWUnit>(rows, adamw_unit), options, {isa, threads});
  });
}

}  // namespace
}  // namespace omnitrunk

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of omnitrunk; call them through omnitrunk.kernels.native.";
  const omnitrunk::Isa isa = omnitrunk::chosen_isa();
  omnitrunk::bind_facts(m, isa);
  omnitrunk::bind_masking(m, isa);
  omnitrunk::bind_patches(m, isa);
#ifdef OMNITRUNK_HAS_VECTORS
  omnitrunk::bind_attention(m, isa);
  omnitrunk::bind_points(m, isa);
#endif
  omnitrunk::bind_gelu(m, isa);
  omnitrunk::bind_optimizer(m, isa);
}

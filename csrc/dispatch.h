// Chooses the instruction set at run time, so that one build serves every processor of an architecture.
//
// A kernel is a struct with a force-inlined static `run`. Calling dispatch<Kernel>(isa, ...) enters one of three copies
// of it, compiled for AVX-512, for AVX2, or for the compiler's baseline (the only copy on other architectures).
// Copies differ in vector width only: contraction into fused multiply-adds is off, so all of them give the same bits.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define OMNITRUNK_X86 1
#endif

#if defined(__GNUC__) || defined(__clang__)
#define OMNITRUNK_INLINE inline __attribute__((always_inline))
#else
#define OMNITRUNK_INLINE inline
#endif

namespace omnitrunk {

enum class Isa { scalar, avx2, avx512 };

inline const char* name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "scalar";
}

// The widest set that this processor and its operating system offer.
inline Isa widest_isa() {
#ifdef OMNITRUNK_X86
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::scalar;
}

#ifdef OMNITRUNK_X86
template <class Kernel, class... Args>
__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,bmi2"))) void run_avx512(Args... args) {
  Kernel::run(args...);
}

template <class Kernel, class... Args>
__attribute__((target("avx2,bmi2"))) void run_avx2(Args... args) {
  Kernel::run(args...);
}
#endif

template <class Kernel, class... Args>
void dispatch(Isa isa, Args... args) {
#ifdef OMNITRUNK_X86
  if (isa == Isa::avx512) return run_avx512<Kernel>(args...);
  if (isa == Isa::avx2) return run_avx2<Kernel>(args...);
#endif
  (void)isa;
  Kernel::run(args...);
}

}  // namespace omnitrunk

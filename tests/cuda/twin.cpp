// The CUDA kernels on the host, for ctypes: the same algorithms, launched in the emulator. Every function returns null,
// or what went wrong.
#include <exception>
#include <string>

#include "chamfer.cuh"
#include "farthest_point_sample.cuh"
#include "nearest_neighbors.cuh"

namespace {

template <class Action>
const char* message_of(const Action& action) {
  static std::string message;
  try {
    action();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

}  // namespace

extern "C" {

const char* farthest_point_sample(const omnitrunk::Sampling* sampling, unsigned seed) {
  return message_of([&] { omnitrunk::sample(*sampling, emulator::Launcher{seed}); });
}

const char* nearest_neighbors(const omnitrunk::Neighbors* neighbors, unsigned seed) {
  return message_of([&] { omnitrunk::search(*neighbors, emulator::Launcher{seed}); });
}

const char* chamfer(const omnitrunk::Chamfer* chamfer, unsigned seed) {
  return message_of([&] { omnitrunk::compare_sets(*chamfer, emulator::Launcher{seed}); });
}
}

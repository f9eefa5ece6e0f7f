// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
// 1, 2, 3" (SC 2011). Bit-identical to kernels/philox.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.h"

namespace omnitrunk {

struct PhiloxKey {
  std::uint32_t low, high;
};

struct PhiloxBlock {
  std::uint32_t word[4];
};

OMNITRUNK_INLINE PhiloxBlock philox(PhiloxBlock counter, PhiloxKey key) {
  // Named words and an unrolled loop let the compiler run many blocks at once, one per vector lane.
  std::uint32_t a = counter.word[0], b = counter.word[1], c = counter.word[2], d = counter.word[3];
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53} * a;
    const std::uint64_t second = std::uint64_t{0xCD9E8D57} * c;
    a = static_cast<std::uint32_t>(second >> 32) ^ b ^ key.low;
    b = static_cast<std::uint32_t>(second);
    c = static_cast<std::uint32_t>(first >> 32) ^ d ^ key.high;
    d = static_cast<std::uint32_t>(first);
    key.low += 0x9E3779B9;
    key.high += 0xBB67AE85;
  }
  return {{a, b, c, d}};
}

// The words of one position: word i belongs to the block with counter (i / 4, position low, position high, 0).
// Writes whole blocks: `words` has room for `count` rounded up to a multiple of 4.
OMNITRUNK_INLINE void philox_fill(PhiloxKey key, std::uint64_t position, std::size_t count, std::uint32_t* words) {
  const auto low = static_cast<std::uint32_t>(position);
  const auto high = static_cast<std::uint32_t>(position >> 32);
  const std::size_t blocks = (count + 3) / 4;
  for (std::size_t block = 0; block < blocks; ++block) {
    const PhiloxBlock random = philox({{static_cast<std::uint32_t>(block), low, high, 0}}, key);
    for (std::size_t word = 0; word < 4; ++word) words[4 * block + word] = random.word[word];
  }
}

}  // namespace omnitrunk

// Mask sampling with a fixed number of visible tokens over several tasks (MultiMAE, Bachmann et al. 2022, section 3.2;
// one task gives MAE's random masking). kernels.h defines the result by an order; here nothing is sorted: a bisection
// over the noise values finds the threshold below which exactly the wanted number of them lies.
#include <algorithm>
#include <numeric>

#include "kernels.h"
#include "parallel.h"

namespace omnitrunk {
namespace {

OMNITRUNK_INLINE std::size_t count_below(const std::uint32_t* noise, std::size_t size, std::uint32_t threshold) {
  std::uint32_t below = 0;
  for (std::size_t i = 0; i < size; ++i) below += noise[i] < threshold;
  return below;
}

// Sets chosen[i] to 1 for the `wanted` smallest values and to 0 elsewhere; among equals the lower index wins.
OMNITRUNK_INLINE void choose_smallest(const std::uint32_t* noise, std::size_t size, std::size_t wanted,
                                      std::uint8_t* chosen) {
  if (wanted >= size) {
    std::fill_n(chosen, size, std::uint8_t{1});
    return;
  }
  // Always: `below` values, at most `wanted`, are less than `low`; more than `wanted` are less than `high`.
  std::uint64_t low = 0, high = std::uint64_t{1} << 32;
  std::size_t below = 0;
  while (below < wanted && high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    const std::size_t count = count_below(noise, size, static_cast<std::uint32_t>(middle));
    if (count <= wanted) {
      low = middle;
      below = count;
    } else {
      high = middle;
    }
  }
  const auto threshold = static_cast<std::uint32_t>(low);
  for (std::size_t i = 0; i < size; ++i) chosen[i] = noise[i] < threshold;
  for (std::size_t i = 0; below < wanted; ++i) {
    if (noise[i] == threshold) {
      chosen[i] = 1;
      ++below;
    }
  }
}

// Work space of one thread for samples of up to `tokens` tokens.
struct Scratch {
  explicit Scratch(std::size_t tokens)
      : noise(tokens + 3), candidate_noise(tokens + 1), ids(tokens + 1), visible(tokens), chosen(tokens) {}
  std::vector<std::uint32_t> noise, candidate_noise, ids;
  std::vector<std::uint8_t> visible, chosen;
};

// The wanted number of tokens of every task becomes visible; returns how many that makes together.
OMNITRUNK_INLINE std::size_t choose_per_task(const MaskSampling& sampling, const std::int32_t* counts,
                                             Scratch& scratch) {
  std::size_t offset = 0, total = 0;
  for (std::size_t task = 0; task < sampling.task_sizes.size(); ++task) {
    const std::size_t size = sampling.task_sizes[task];
    const std::size_t wanted = std::min(size, static_cast<std::size_t>(std::max(counts[task], 0)));
    choose_smallest(scratch.noise.data() + offset, size, wanted, scratch.visible.data() + offset);
    offset += size;
    total += wanted;
  }
  return total;
}

// Drops visible tokens at random, or adds masked ones, until exactly `keep` are visible.
OMNITRUNK_INLINE void correct_total(std::size_t total, std::size_t keep, Scratch& scratch) {
  const bool surplus = total > keep;
  const std::size_t tokens = scratch.visible.size();
  std::size_t candidates = 0;
  for (std::size_t i = 0; i < tokens; ++i) {
    scratch.ids[candidates] = static_cast<std::uint32_t>(i);
    scratch.candidate_noise[candidates] = scratch.noise[i];
    candidates += (scratch.visible[i] != 0) == surplus;
  }
  const std::size_t wanted = surplus ? keep : keep - total;
  choose_smallest(scratch.candidate_noise.data(), candidates, wanted, scratch.chosen.data());
  for (std::size_t i = 0; i < candidates; ++i) scratch.visible[scratch.ids[i]] = scratch.chosen[i];
}

OMNITRUNK_INLINE void write_sample(std::size_t keep, Scratch& scratch, std::int64_t* ids_keep, std::uint8_t* mask) {
  // Every token is written down and the cursor moves only past the visible ones: no branch to mispredict.
  std::size_t kept = 0;
  for (std::size_t i = 0; i < scratch.visible.size(); ++i) {
    scratch.ids[kept] = static_cast<std::uint32_t>(i);
    kept += scratch.visible[i];
  }
  for (std::size_t i = 0; i < keep; ++i) ids_keep[i] = scratch.ids[i];
  for (std::size_t i = 0; i < scratch.visible.size(); ++i) mask[i] = scratch.visible[i] ^ 1;
}

struct SampleRange {
  static OMNITRUNK_INLINE void run(const MaskSampling* sampling, std::size_t tokens, std::size_t begin,
                                   std::size_t end) {
    Scratch scratch(tokens);
    for (std::size_t sample = begin; sample < end; ++sample) {
      const auto position = static_cast<std::uint64_t>(sampling->positions[sample]);
      philox_fill(sampling->task_key, position, tokens, scratch.noise.data());
      const std::int32_t* counts = sampling->counts + sample * sampling->task_sizes.size();
      const std::size_t total = choose_per_task(*sampling, counts, scratch);
      if (total != sampling->keep) {
        philox_fill(sampling->fill_key, position, tokens, scratch.noise.data());
        correct_total(total, sampling->keep, scratch);
      }
      write_sample(sampling->keep, scratch, sampling->ids_keep + sample * sampling->keep,
                   sampling->mask + sample * tokens);
    }
  }
};

}  // namespace

void sample_mask(const MaskSampling& sampling, std::size_t samples, Execution execution) {
  const auto& sizes = sampling.task_sizes;
  const std::size_t tokens = std::accumulate(sizes.begin(), sizes.end(), std::size_t{0});
  parallel_for(samples, 64, execution.threads, [&](std::size_t begin, std::size_t end) {
    dispatch<SampleRange>(execution.isa, &sampling, tokens, begin, end);
  });
}

}  // namespace omnitrunk

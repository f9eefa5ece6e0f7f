// The primitives of csrc/cuda/simt.cuh on the host: every thread of a block is a coroutine that runs until it waits for
// others, at a barrier or where a warp exchanges values. Who runs next is drawn at random, so that a missing barrier
// changes results; shared memory is NaN at first, so that reading too early shows. Threads that wait for each other in
// different places, or for threads that have returned, raise an error.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define OMNITRUNK_DEVICE inline
#define OMNITRUNK_SHARED(type, name) type& name = emulator::running->shared<type>()
#define OMNITRUNK_UNROLL

namespace emulator {

// Where some threads wait until all of them have brought a value; then every one may read them all.
struct Meeting {
  explicit Meeting(int members) : missing(members), values{std::vector<std::uint64_t>(members), values[0]} {}

  int missing, held = 0;  // members still to come; meetings completed
  std::string purpose;
  std::vector<std::uint64_t> values[2];  // in turn: the next meeting may begin before all have read
};

struct Thread {
  ucontext_t context;
  std::vector<std::max_align_t> stack = std::vector<std::max_align_t>(2048);
  const Meeting* awaited = nullptr;
  int until = 0;  // that many meetings must have been held
  bool returned = false;

  bool ready() const { return !returned && (awaited == nullptr || awaited->held >= until); }
};

class Block;
inline Block* running = nullptr;

class Block {
 public:
  Block(int number, int threads, std::mt19937& random, std::function<void()> body)
      : number_(number), body_(std::move(body)), random_(random), team_(threads), everyone_(threads) {
    warps_.assign(threads / 32, Meeting(32));
    for (Thread& thread : team_) {
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.data();
      thread.context.uc_stack.ss_size = thread.stack.size() * sizeof(std::max_align_t);
      thread.context.uc_link = &scheduler_;
      makecontext(&thread.context, [] { running->run_thread(); }, 0);
    }
  }

  void run() {
    running = this;
    std::vector<int> order(team_.size());
    std::iota(order.begin(), order.end(), 0);
    std::uint32_t held_back = random_();  // these warps do not move for a while and fall behind
    for (bool waiting = true; waiting;) {
      bool progress = waiting = false;
      std::shuffle(order.begin(), order.end(), random_);
      for (const int thread : order) {
        if (team_[thread].ready() && (held_back >> (thread / 32) & 1) == 0) {
          progress = true;
          current_ = thread;
          swapcontext(&scheduler_, &team_[thread].context);
          if (error_) std::rethrow_exception(error_);
        }
        waiting = waiting || !team_[thread].returned;
      }
      if (waiting && !progress && held_back == 0) throw std::logic_error("threads wait for others that never come");
      if (!progress) held_back = 0;
      if (progress && random_() % 16 == 0) held_back = random_();
    }
  }

  int number() const { return number_; }
  int current() const { return current_; }

  const std::vector<std::uint64_t>& meet_warp(const char* purpose, std::uint64_t value) {
    return meet(warps_[current_ / 32], current_ % 32, purpose, value);
  }

  void meet_block() { meet(everyone_, current_, "block_barrier", 0); }

  template <class T>
  T& shared() {
    static const char place = 0;  // its address stands for T
    for (auto& [of, memory] : shared_) {
      if (of == &place) return *reinterpret_cast<T*>(memory.data());
    }
    shared_.emplace_back(&place, std::vector<std::max_align_t>(sizeof(T) / sizeof(std::max_align_t) + 1));
    std::memset(static_cast<void*>(shared_.back().second.data()), 0xff, sizeof(T));
    return *reinterpret_cast<T*>(shared_.back().second.data());
  }

 private:
  void run_thread() {
    try {
      body_();
    } catch (...) {
      error_ = std::current_exception();
    }
    team_[current_].returned = true;
  }

  const std::vector<std::uint64_t>& meet(Meeting& meeting, int member, const char* purpose, std::uint64_t value) {
    const int members = static_cast<int>(meeting.values[0].size());
    const int turn = meeting.held % 2;
    if (meeting.missing == members) meeting.purpose = purpose;
    if (meeting.purpose != purpose) throw std::logic_error(meeting.purpose + " meets " + purpose);
    meeting.values[turn][member] = value;
    Thread& thread = team_[current_];
    thread.awaited = &meeting;
    thread.until = meeting.held + 1;
    if (--meeting.missing == 0) {
      meeting.missing = members;
      ++meeting.held;
    }
    swapcontext(&thread.context, &scheduler_);
    return meeting.values[turn];
  }

  int number_, current_ = 0;
  std::function<void()> body_;
  std::mt19937& random_;
  std::vector<Thread> team_;
  Meeting everyone_;
  std::vector<Meeting> warps_;
  std::vector<std::pair<const void*, std::vector<std::max_align_t>>> shared_;
  ucontext_t scheduler_;
  std::exception_ptr error_;
};

// Stands in for the Launcher of launch.cuh.
struct Launcher {
  unsigned seed;

  template <class Kernel>
  void operator()(const Kernel& kernel, int blocks, int = 0) const {
    std::mt19937 random(seed);
    for (int block = 0; block < blocks; ++block) Block(block, Kernel::threads, random, [&] { kernel.run(); }).run();
  }
};

}  // namespace emulator

namespace omnitrunk::simt {

template <class To, class From>
To same_bits(From x) {
  To y{};
  std::memcpy(&y, &x, std::min(sizeof y, sizeof x));
  return y;
}

template <class T>
const std::vector<std::uint64_t>& meet_warp(const char* purpose, T value) {
  return emulator::running->meet_warp(purpose, same_bits<std::uint64_t>(value));
}

inline int thread() { return emulator::running->current(); }
inline int block() { return emulator::running->number(); }

template <class T>
T& dynamic_shared() {
  return emulator::running->shared<T>();
}

inline void block_barrier() { emulator::running->meet_block(); }
inline void warp_barrier() { meet_warp("warp_barrier", 0); }

// The lanes whose value is `value`, as bits.
inline unsigned lanes_with(const std::vector<std::uint64_t>& values, std::uint64_t value) {
  unsigned lanes = 0;
  for (int lane = 0; lane < 32; ++lane) lanes |= static_cast<unsigned>(values[lane] == value) << lane;
  return lanes;
}

inline unsigned ballot(bool vote) { return lanes_with(meet_warp("ballot", vote), 1); }
inline unsigned match(int value) { return lanes_with(meet_warp("match", value), same_bits<std::uint64_t>(value)); }

inline int greatest(int value) {
  for (const std::uint64_t other : meet_warp("greatest", value)) value = std::max(value, same_bits<int>(other));
  return value;
}

inline unsigned least(unsigned value) {
  for (const std::uint64_t other : meet_warp("least", value)) value = std::min(value, same_bits<unsigned>(other));
  return value;
}

template <class T>
T shuffle(T value, int from_lane) {
  return same_bits<T>(meet_warp("shuffle", value)[from_lane]);
}

template <class T>
T exchange(T value, int lane_distance) {
  return same_bits<T>(meet_warp("exchange", value)[emulator::running->current() % 32 ^ lane_distance]);
}

inline float add(float x, float y) { return x + y; }
inline float subtract(float x, float y) { return x - y; }
inline float multiply(float x, float y) { return x * y; }
inline float divide(float x, float y) { return x / y; }
inline float square_root(float x) { return std::sqrt(x); }

inline int bits(float x) { return same_bits<int>(x); }
inline float from_bits(int x) { return same_bits<float>(x); }
inline int count_bits(unsigned x) { return __builtin_popcount(x); }
inline int lowest_bit(unsigned x) { return __builtin_ctz(x); }

template <class T>
T read_only(const T* address) {
  return *address;
}

}  // namespace omnitrunk::simt

// Threads that walk through the phases of a step together.
//
// Work is handed out in small pieces, so that a thread whose core was taken away holds the others
// up by one piece at most; who waits spins for a few microseconds, then offers its core to others,
// then sleeps.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace greenroom {

class Team {
 public:
  explicit Team(int size) : size_(size) {}

  // Runs work(i) for i in [0, count), once each, in pieces of `piece`; returns when all are done.
  // Every thread of the team makes the same calls in the same order.
  template <typename Work>
  void share(int count, int piece, Work work) {
    if (size_ == 1) {
      for (int i = 0; i < count; ++i) work(i);
      return;
    }
    for (;;) {
      int begin = next_.fetch_add(piece, std::memory_order_relaxed);
      if (begin >= count) break;
      for (int i = begin, end = std::min(begin + piece, count); i < end; ++i) work(i);
    }
    wait();
  }

  int size() const { return size_; }

 private:
  static constexpr int kSpins = 200, kYields = 100;

  void wait() {
    uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    for (int i = 0; i < kSpins; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      _mm_pause();
    }
    for (int i = 0; i < kYields; ++i) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      sched_yield();  // the thread waited for may be queued on this very core
    }
    phase_.wait(phase, std::memory_order_acquire);
  }

  const int size_;
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
};

}  // namespace greenroom

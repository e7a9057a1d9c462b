// Threads that walk through the phases of a step together.
//
// Work is handed out in small pieces, so that a thread whose core was taken away holds the others
// up by one piece at most; who waits spins for a few microseconds, then offers its core to others,
// then sleeps.
#pragma once

#include <immintrin.h>
#include <linux/futex.h>
#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace greenroom {

class Team {
 public:
  explicit Team(int size) : size_(size) {}

  // Runs work(i) for i in [0, count), once each, in pieces of `piece`; returns when all are done.
  // Every thread of the team makes the same calls in the same order. Each has a run of its own, so
  // that what it asks memory for ahead is its own next work, and takes from others' at the end.
  template <typename Work>
  void share(int count, int piece, Work work) {
    if (size_ == 1) {
      for (int i = 0; i < count; ++i) work(i);
      return;
    }
    for (int r = 0; r < runs(); ++r) {
      const int run = (mine() + r) % runs(), end = begin_of(run + 1, count);
      for (;;) {
        int begin = begin_of(run, count) +
                    taken_[run].count.fetch_add(piece, std::memory_order_relaxed);
        if (begin >= end) break;
        for (int i = begin; i < std::min(begin + piece, end); ++i) work(i);
      }
    }
    wait();
  }

  // The same one by one, as work(i, then): `then` is the one this thread does next, or i itself.
  template <typename Work>
  void share_ahead(int count, Work work) {
    auto claim = [&] {
      for (int r = 0; r < runs(); ++r) {
        const int run = (mine() + r) % runs();
        int i = begin_of(run, count) + taken_[run].count.fetch_add(1, std::memory_order_relaxed);
        if (i < begin_of(run + 1, count)) return i;
      }
      return count;
    };
    for (int i = claim(); i < count;) {
      int then = claim();
      work(i, then < count ? then : i);
      i = then;
    }
    wait();
  }

  // What this thread begins with when `count` pieces of work are shared.
  int first_of(int count) const { return begin_of(mine(), count); }

  int size() const { return size_; }

 private:
  static constexpr int kSpins = 200, kYields = 100, kRuns = 32;

  struct alignas(64) Taken {
    std::atomic<int> count{0};
  };

  int runs() const { return std::min(size_, kRuns); }
  int mine() const { return omp_get_thread_num() % runs(); }
  int begin_of(int run, int count) const { return int64_t(count) * run / runs(); }

  void wait() {
    uint32_t phase = phase_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      for (Taken& run : taken_) run.count.store(0, std::memory_order_relaxed);
      // Sequentially consistent, as the sleepers' count is: with a plain store, the count could be
      // read before the new phase is seen, and somebody who falls asleep between is never woken.
      phase_.fetch_add(1, std::memory_order_seq_cst);
      if (sleepers_.load(std::memory_order_seq_cst)) futex(FUTEX_WAKE_PRIVATE, size_, nullptr);
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
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    const timespec nap{0, 2'000'000};
    while (phase_.load(std::memory_order_seq_cst) == phase) futex(FUTEX_WAIT_PRIVATE, phase, &nap);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

  // Sleeps while phase_ is `value`, or wakes `value` sleepers (futex(2)).
  void futex(int operation, uint32_t value, const timespec* limit) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&phase_), operation, value, limit, nullptr, 0);
  }

  const int size_;
  Taken taken_[kRuns];
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> phase_{0};
  alignas(64) std::atomic<int> sleepers_{0};
};

}  // namespace greenroom

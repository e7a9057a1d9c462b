// Threads that help with independent pieces of work, and are waited for only where they took one:
// a helper whose core is taken away before it began holds nobody up.
#pragma once

#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

namespace greenroom {

class Helpers {
 public:
  // Those of the process; never destroyed, as its threads are never joined.
  static Helpers& all() {
    static Helpers* const helpers = new Helpers;
    return *helpers;
  }

  // Runs work(i) for i in [0, count), once each, on this thread and on `threads` - 1 others or more.
  void share(int count, int threads, std::function<void(int)> work) {
    auto job = std::make_shared<Job>(count, std::move(work));
    {
      std::lock_guard lock(mutex_);
      for (; size_ < threads - 1; ++size_) std::thread([this] { help(); }).detach();
      job_ = job;
      ++turn_;
    }
    changed_.notify_all();
    job->run();
    while (job->done.load(std::memory_order_acquire) < count) sched_yield();
  }

 private:
  struct Job {
    Job(int count, std::function<void(int)> work) : count(count), work(std::move(work)) {}

    void run() {
      for (int i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        work(i);
        done.fetch_add(1, std::memory_order_release);
      }
    }

    const int count;
    const std::function<void(int)> work;
    std::atomic<int> next{0}, done{0};
  };

  [[noreturn]] void help() {
    for (uint64_t seen = 0;;) {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return turn_ != seen; });
      seen = turn_;
      std::shared_ptr<Job> job = job_;  // it may be over when this thread comes to run
      lock.unlock();
      job->run();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Job> job_;
  uint64_t turn_ = 0;
  int size_ = 0;
};

}  // namespace greenroom

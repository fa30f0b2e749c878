#include "threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

namespace splatsmith {
namespace {

struct Job {
    void (*task)(void*, int64_t);
    void* context;
    int64_t count;
    int seats;  // helpers still wanted; under the pool's mutex
    std::atomic<int64_t> next{0};
    std::atomic<int> helpers{0};  // helpers inside; only grows under the pool's mutex
    std::atomic<bool> out_of_memory{false};

    void work() {
        try {
            for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
        } catch (const std::bad_alloc&) {
            out_of_memory = true;
            next = count;
        }
    }
};

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// True when `ready` came true within a few microseconds: phases of one call follow each other closely, and a
// sleeping thread takes longer to wake than many phases last. Bounded, so that a busy machine is not kept busier.
template <class Ready>
bool spin(Ready ready) {
    auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(20);
    do {
        for (int i = 0; i < 32; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

class Pool {
  public:
    void run(int threads, Job& job) {
        int helpers = (int)std::min<int64_t>({threads - 1, MAX_THREADS - 1, job.count - 1});
        if (helpers > 0) {
            std::lock_guard<std::mutex> lock(mutex_);
            while (workers_ < helpers) {
                try {
                    std::thread([this] { loop(); }).detach();
                } catch (const std::exception&) {
                    break;  // the system allows no more threads: the ones there are do the work
                }
                ++workers_;
            }
            job.seats = helpers;
            open_.push_back(&job);
            posted_.fetch_add(1, std::memory_order_release);
            wake_.notify_all();
        }
        job.work();
        if (helpers > 0) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
                open_.erase(std::find(open_.begin(), open_.end(), &job));
            }
            auto finished = [&] { return job.helpers.load(std::memory_order_acquire) == 0; };
            if (!spin(finished)) {
                std::unique_lock<std::mutex> lock(mutex_);
                left_.wait(lock, finished);
            }
        }
    }

  private:
    void loop() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            auto it = std::find_if(open_.begin(), open_.end(), [](Job* j) { return j->seats > 0; });
            if (it == open_.end()) {
                uint64_t seen = posted_.load(std::memory_order_relaxed);
                lock.unlock();
                bool woken = spin([&] { return posted_.load(std::memory_order_acquire) != seen; });
                lock.lock();
                if (!woken) wake_.wait(lock, [&] { return posted_.load(std::memory_order_relaxed) != seen; });
                continue;
            }
            Job* job = *it;
            --job->seats;
            job->helpers.fetch_add(1, std::memory_order_relaxed);
            lock.unlock();
            job->work();
            lock.lock();
            job->helpers.fetch_sub(1, std::memory_order_release);
            left_.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, left_;
    std::vector<Job*> open_;
    std::atomic<uint64_t> posted_{0};
    int workers_ = 0;
};

// The threads of a pool do not survive fork(): a child process makes its own. Pools are never destroyed, because
// their threads may outlive static destructors.
Pool& pool() {
    static std::mutex mutex;
    static Pool* current = nullptr;
    static pid_t owner = 0;
    std::lock_guard<std::mutex> lock(mutex);
    if (!current || owner != getpid()) {
        current = new Pool;
        owner = getpid();
    }
    return *current;
}

}  // namespace

void run_tasks(int threads, int64_t count, void (*task)(void*, int64_t), void* context) {
    if (count <= 0) return;
    Job job{task, context, count, 0};
    if (threads <= 1 || count == 1)
        job.work();
    else
        pool().run(threads, job);
    if (job.out_of_memory) throw std::bad_alloc();
}

}  // namespace splatsmith

// A pool of threads that sleep when idle. Several callers may use it at once.
#pragma once

#include <cstdint>

namespace splatsmith {

constexpr int MAX_THREADS = 64;

void run_tasks(int threads, int64_t count, void (*task)(void*, int64_t), void* context);

// Calls body(i) for i in [0, count) on up to `threads` threads, the caller's among them; returns when all are done.
// The order is not defined, so results must not depend on it. Rethrows std::bad_alloc.
template <class F>
void parallel(int threads, int64_t count, F&& body) {
    run_tasks(threads, count, [](void* f, int64_t i) { (*static_cast<F*>(f))(i); }, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace splatsmith

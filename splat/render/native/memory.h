// Memory that grows, is never cleared and is kept for the next call: page faults would cost more than the kernels save.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#elif defined(_WIN32)
#include <malloc.h>
#endif

namespace splatsmith {

inline void* aligned_memory(size_t alignment, size_t bytes) {
#if defined(_WIN32)
    void* p = _aligned_malloc(bytes, alignment);
    if (!p) throw std::bad_alloc();
#else
    void* p = nullptr;
    if (posix_memalign(&p, alignment, bytes) != 0) throw std::bad_alloc();
#endif
    return p;
}

inline void release_memory(void* p) {
#if defined(_WIN32)
    _aligned_free(p);
#else
    std::free(p);
#endif
}

// Asks for large pages for memory that is written soon and may be new: a first write then costs a fault every 2 MiB.
inline void prefer_huge_pages(void* p, size_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t huge_page = uintptr_t(1) << 21;
    uintptr_t first = (reinterpret_cast<uintptr_t>(p) + huge_page - 1) & ~(huge_page - 1);
    uintptr_t end = (reinterpret_cast<uintptr_t>(p) + bytes) & ~(huge_page - 1);
    if (end > first) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#else
    (void)p, (void)bytes;
#endif
}

template <class T>
class Buffer {
  public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept { swap(other); }
    Buffer& operator=(Buffer&& other) noexcept {
        swap(other);
        return *this;
    }
    ~Buffer() { release_memory(data_); }

    // Room for `count` items, never null; what was there is lost when it has to grow.
    T* reserve(size_t count) {
        if (count > capacity_ || !data_) {
            release_memory(std::exchange(data_, nullptr));
            capacity_ = 0;
            allocate(count + count / 4 + 16);
        }
        return data_;
    }

    // Room for `count` items; the first `used` are kept.
    T* grow(size_t count, size_t used) {
        if (count > capacity_ || !data_) {
            Buffer bigger;
            bigger.allocate(count + count / 2 + 64);
            if (used) __builtin_memcpy(static_cast<void*>(bigger.data_), data_, used * sizeof(T));
            swap(bigger);
        }
        return data_;
    }

    T* data() const { return data_; }
    T& operator[](size_t i) const { return data_[i]; }
    size_t bytes() const { return capacity_ * sizeof(T); }

  private:
    void allocate(size_t count) {
        constexpr size_t huge_page = size_t(1) << 21;
        size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
        size_t alignment = bytes >= 2 * huge_page ? huge_page : 64;
        bytes = (bytes + alignment - 1) / alignment * alignment;
        void* p = aligned_memory(alignment, bytes);
        if (alignment == huge_page) prefer_huge_pages(p, bytes);
        data_ = static_cast<T*>(p);
        capacity_ = bytes / sizeof(T);
    }

    void swap(Buffer& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(capacity_, other.capacity_);
    }

    T* data_ = nullptr;
    size_t capacity_ = 0;
};

}  // namespace splatsmith

// The spans of keys that a sequence reads.
#pragma once

constexpr int SPAN = 256, PAGE = 64;

__device__ inline int first_key(int length, int window) {
    return window ? max(length - window, 0) : 0;
}

__device__ inline int span_count(int length, int window) {
    return (length + SPAN - 1) / SPAN - first_key(length, window) / SPAN;
}

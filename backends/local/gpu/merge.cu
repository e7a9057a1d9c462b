// Folds the spans of `decode.cu` into whole rows, and these into codes of 8 bits: the bits of
// `attention.merge_spans` and `rows.quantize_rows`.
//
// Given by the compiler's command: D (128 or 256), G (query heads, at most 16), SHARES (blocks of a
// sequence, which divide its heads).
#include "hopper.cuh"
#include "spans.cuh"

constexpr int THREADS = G * D / 4 / SHARES;
constexpr int DEEP = THREADS > 512 ? 8 : 16;  // spans that are asked for at once

// The largest of the numbers of a cluster's blocks, none of them negative, for every thread. All
// blocks must have met once before.
__device__ inline float largest_of_cluster(float x) {
    __shared__ float by_block[SHARES];
    x = largest_of_block(x);
    if (threadIdx.x < SHARES) tell(by_block + blockIdx.x % SHARES, threadIdx.x, x);
    arrive_in_cluster(), await_cluster();
    for (int block = 0; block < SHARES; ++block) x = fmaxf(x, by_block[block]);
    return x;
}

// A cluster a sequence, four dims a thread; a warp has one head.
extern "C" __global__ void __cluster_dims__(SHARES) __launch_bounds__(THREADS)
    merge_spans(const float* tops, const float* totals, const float* outs, const int* starts,
                const int* lengths,
                signed char* codes,  // [T, G * D], written
                float* row_scale,    // [T], written
                int window, int reads) {
    const int b = blockIdx.x / SHARES, lane = threadIdx.x % 32;
    const int column = 4 * (blockIdx.x % SHARES * THREADS + threadIdx.x), head = column / D;
    begin_next();
    arrive_in_cluster();
    const int row = starts[b], length = lengths[b];
    const bool one = starts[b + 1] - row == 1;
    await_previous();
    await_cluster();
    if (!one) return;
    const int count = span_count(length, window);
    const long long begin = (long long)b * reads * G + head;
    float top = NEVER, total = 0.0f;
    float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int chunk = 0; chunk < count; chunk += 32) {
        const int here = min(count - chunk, 32);
        const long long first = begin + (long long)chunk * G;
        float4 values[DEEP];
        const auto ask = [&](int some) {
#pragma unroll
            for (int i = 0; i < DEEP; ++i)
                if (some + i < here)
                    values[i] = __ldcg(
                        (const float4*)(outs + (first + (some + i) * G) * D + column % D));
        };
        // Lane i: what spans before and span i are multiplied with when it is folded in.
        const float new_top = lane < here ? __ldcg(tops + first + lane * G) : NEVER;
        const float new_total = lane < here ? __ldcg(totals + first + lane * G) : 0.0f;
        ask(0);
        float larger = new_top;
        for (int step = 1; step < 32; step *= 2) {
            const float other = __shfl_up_sync(~0u, larger, step);
            if (lane >= step) larger = fmaxf(larger, other);
        }
        larger = fmaxf(larger, top);
        float before = __shfl_up_sync(~0u, larger, 1);
        if (lane == 0) before = top;
        const float less = exp_below(fminf(before, new_top) - larger);
        const bool later = new_top > before;
        const float old_by = later ? less : 1.0f, new_by = later ? 1.0f : less;
        top = __shfl_sync(~0u, larger, 31);
        for (int some = 0; some < here; some += DEEP) {
            if (some) ask(some);
#pragma unroll
            for (int i = 0; i < DEEP; ++i) {
                const float old = __shfl_sync(~0u, old_by, some + i);
                const float by = __shfl_sync(~0u, new_by, some + i);
                const float more = __shfl_sync(~0u, new_total, some + i);
                if (some + i < here) {
                    total = total * old + more * by;
                    out.x = out.x * old + values[i].x * by;
                    out.y = out.y * old + values[i].y * by;
                    out.z = out.z * old + values[i].z * by;
                    out.w = out.w * old + values[i].w * by;
                }
            }
        }
    }
    out.x = __fdiv_rn(out.x, total), out.y = __fdiv_rn(out.y, total);
    out.z = __fdiv_rn(out.z, total), out.w = __fdiv_rn(out.w, total);
    const float largest = largest_of_cluster(largest_of(out));
    *(char4*)(codes + (long long)row * G * D + column) =
        bytes_of(codes_of(out, inverse_of(largest, 127.0f)));
    if (column == 0) row_scale[row] = largest * (float)(1.0 / 127);
}

// What happens to rows between two products, a block a row: the bits of `rows.add_and_norm`, with
// codes of 8 bits, and of `rows.quantize_rows`, which say what is computed.
//
// Given by the compiler's command: N (columns of the residual stream), SIZE (N, rounded up to a
// power of two, at least 512), INNER (columns of gated activations).
#include "hopper.cuh"

constexpr int THREADS = 512, WARPS = THREADS / 32;
constexpr int EACH = SIZE / THREADS;  // columns t, t + 512, ... of thread t
constexpr int AT_ONCE = EACH <= 4 ? 32 / EACH : EACH == 8 ? 4 : 2;  // splits that are asked for

// Adds the second half of the first COUNT numbers to the first half, and so on.
template <int COUNT>
__device__ inline void fold(float* x) {
    if constexpr (COUNT > 1) {
#pragma unroll
        for (int i = 0; i < COUNT / 2; ++i) x[i] += x[i + COUNT / 2];
        fold<COUNT / 2>(x);
    }
}

// The sum of a row by halves, for every thread.
__device__ inline float halves_sum(float (&x)[EACH]) {
    __shared__ float parts[THREADS];
    fold<EACH>(x);
    __syncthreads();  // the sum before was read
    parts[threadIdx.x] = x[0];
    __syncthreads();
    float sums[WARPS];
#pragma unroll
    for (int i = 0; i < WARPS; ++i) sums[i] = parts[threadIdx.x % 32 + 32 * i];
    fold<WARPS>(sums);
    for (int step = 16; step; step /= 2) sums[0] += __shfl_xor_sync(~0u, sums[0], step);
    return sums[0];
}

__device__ inline float inverse_rms(const float (&x)[EACH], float share, float eps) {
    float squares[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) squares[i] = x[i] * x[i];
    return __fdiv_rn(1.0f, __fsqrt_rn(halves_sum(squares) * share + eps));
}

extern "C" __global__ void __launch_bounds__(THREADS)
    add_and_norm(const int* sums,        // [splits, T, N]
                 const float* in_scale,  // [T]
                 const float* scale,     // [N]
                 const float* after,     // [N], or nothing
                 float* x,               // [T, N], read and, without `wanted`, written
                 const float* weight,    // [N]
                 const int* wanted,      // the rows to take, or nothing
                 signed char* codes,     // [T, N], written
                 float* row_scale,       // [T], written
                 int T, int splits, float share, float eps) {
    begin_next();
    const int row = wanted ? wanted[blockIdx.x] : blockIdx.x;
    float h[EACH], by[EACH], then[EACH], more[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int column = threadIdx.x + THREADS * i;
        const bool ok = column < N;
        by[i] = ok ? scale[column] : 0.0f, then[i] = ok ? weight[column] : 0.0f;
        more[i] = ok && after ? after[column] : 0.0f;
    }
    await_previous();
    const float by_row = __ldcg(in_scale + row);
    float values[EACH];
    int total[EACH] = {};
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int column = threadIdx.x + THREADS * i;
        values[i] = column < N ? __ldcg(x + (long long)row * N + column) : 0.0f;
    }
    for (int first = 0; first < splits; first += AT_ONCE) {
        int parts[AT_ONCE][EACH];
#pragma unroll
        for (int i = 0; i < AT_ONCE * EACH; ++i) {
            const int split = first + i / EACH, column = threadIdx.x + THREADS * (i % EACH);
            const bool ok = split < splits && column < N;
            const long long at = ((long long)split * T + row) * N + column;
            parts[i / EACH][i % EACH] = ok ? __ldcg(sums + at) : 0;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE * EACH; ++i) total[i % EACH] += parts[i / EACH][i % EACH];
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) h[i] = (float)total[i] * by_row * by[i];
    if (after) {
        const float inverse = inverse_rms(h, share, eps);
#pragma unroll
        for (int i = 0; i < EACH; ++i) h[i] = h[i] * inverse * more[i];
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int column = threadIdx.x + THREADS * i;
        values[i] += h[i];
        if (!wanted && column < N) x[(long long)row * N + column] = values[i];
    }
    const float inverse = inverse_rms(values, share, eps);
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        values[i] = values[i] * inverse * then[i];
        largest = fmaxf(largest, fabsf(values[i]));
    }
    largest = largest_of_block(largest);
    const float to_codes = inverse_of(largest, 127.0f);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int column = threadIdx.x + THREADS * i;
        if (column < N) codes[(long long)blockIdx.x * N + column] = code_of(values[i], to_codes);
    }
    if (threadIdx.x == 0) row_scale[blockIdx.x] = largest * (float)(1.0 / 127);
}

// How much wider a row's step is than its largest asks for, by the sum of the magnitudes of the
// codes that it asks for: `reference.activation_codes`.
__device__ inline float wider(int total, int max_code) {
    float by = 1.0f;
    long long even = 127ll * INNER;
    for (int code = max_code / 2; code >= 127; code /= 2) {
        even *= 2;
        if (32ll * total >= even) by *= 2.0f;
    }
    return by;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    quantize_gates(const float* x,       // [T, INNER]
                   signed char* digits,  // [2, T * INNER], written
                   float* row_scale,     // [T], written
                   long long plane, int max_code, float code_step) {
    constexpr int FOURS = (INNER / 4 + THREADS - 1) / THREADS;
    begin_next();
    const long long begin = (long long)blockIdx.x * INNER;
    await_previous();
    float4 values[FOURS];
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        const int column = 4 * (threadIdx.x + THREADS * i);
        values[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (column < INNER) values[i] = __ldcg((const float4*)(x + begin + column));
    }
#pragma unroll
    for (int i = 0; i < FOURS; ++i) largest = fmaxf(largest, largest_of(values[i]));
    largest = largest_of_block(largest);
    float inverse = inverse_of(largest, (float)max_code), by = 1.0f;
    if (max_code > 127) {
        int total = 0;
#pragma unroll
        for (int i = 0; i < FOURS; ++i) {
            const int4 code = codes_of(values[i], inverse);
            total += abs(code.x) + abs(code.y) + abs(code.z) + abs(code.w);
        }
        by = wider(sum_of_block(total), max_code);
        inverse *= 1.0f / by;
    }
#pragma unroll
    for (int i = 0; i < FOURS; ++i) {
        const int column = 4 * (threadIdx.x + THREADS * i);
        if (column >= INNER) continue;
        int4 code = codes_of(values[i], inverse);
        signed char* const at = digits + begin + column;
        if (max_code > 127) {
            *(char4*)at = make_char4(code.x >> 7, code.y >> 7, code.z >> 7, code.w >> 7);
            code = make_int4(code.x & 127, code.y & 127, code.z & 127, code.w & 127);
        }
        *(char4*)(at + plane) = bytes_of(code);
    }
    if (threadIdx.x == 0) row_scale[blockIdx.x] = largest * code_step * by;
}

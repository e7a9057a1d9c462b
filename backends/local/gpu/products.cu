// What is done with products of few rows: partial sums for a kernel that goes on with whole rows,
// as `gemm._linear`, or gated activations, as the first half of `rows.gate_rows`.
//
// Given by the compiler's command: DIGITS, and TANH: whether the gate is GELU, else SiLU.
#include "products.cuh"

extern "C" __global__ void __launch_bounds__(160, 1)
    sum_products(const __grid_constant__ Product product,
                 int* out,  // [splits, T, N], written
                 int T, int N) {
    begin_next();
    int sums[2][32];
    const int first = blockIdx.x * OUTPUTS;
    // What is written here was read by launches before.
    if (!multiply_rows(sums, product, first, first + 64, await_previous)) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = first_row() + 8 * r;
        if (row >= T) continue;
        int* const to = out + ((long long)blockIdx.y * T + row) * N;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const int* const two = sums[j / 8] + j % 8 * 4 + 2 * r;
            const int column = first + 8 * j + first_column();
            if (column < N) *(int2*)(to + column) = make_int2(two[0], two[1]);
        }
    }
}

// Whether any result is wrong, unless EXACT.
template <bool EXACT>
__device__ inline bool store_gated(const int (&sums)[2][32], const float2 (&scales)[2][8],
                                   const float (&by)[2], float* out, int T, int N, int first) {
    bool rare = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = first_row() + 8 * r;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int column = first + 8 * j + first_column(), at = 4 * j + 2 * r;
            const float2 x = scales[0][j], up = scales[1][j];
            const float2 both = make_float2(
                gate<TANH, EXACT>((float)sums[0][at] * by[r] * x.x,
                                  (float)sums[1][at] * by[r] * up.x, rare),
                gate<TANH, EXACT>((float)sums[0][at + 1] * by[r] * x.y,
                                  (float)sums[1][at + 1] * by[r] * up.y, rare));
            if (row < T && column < N) *(float2*)(out + (long long)row * N + column) = both;
        }
    }
    return rare;
}

// act(gate) * up: a block has 64 outputs of the gate and the 64 that they gate.
extern "C" __global__ void __launch_bounds__(160, 1)
    gate_products(const __grid_constant__ Product product,
                  const float* in_scale,  // [T]
                  const float* scale,     // [2 N], the gate first
                  float* out,             // [T, N], written
                  int T, int N) {
    begin_next();
    const int first = blockIdx.x * 64;
    float2 scales[2][8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
        const int column = min(first + 8 * j + first_column(), N - 2);
        scales[0][j] = *(const float2*)(scale + column);
        scales[1][j] = *(const float2*)(scale + N + column);
    }
    float by[2] = {};
    const auto scale_rows = [&] {
        await_previous();
#pragma unroll
        for (int r = 0; r < 2; ++r)
            if (first_row() + 8 * r < T) by[r] = __ldcg(in_scale + first_row() + 8 * r);
    };
    int sums[2][32];
    if (!multiply_rows(sums, product, first, N + first, scale_rows)) return;
    if (store_gated<false>(sums, scales, by, out, T, N, first))
        store_gated<true>(sums, scales, by, out, T, N, first);
}

// Gated activations out of products of few rows: the first half of `rows.gate_rows`.
//
// Given by the compiler's command: DIGITS as `products.cuh` has it, and TANH: whether the gate is
// GELU, else SiLU.
#define GROUPS 2
#include "products.cuh"

// Of 32 outputs of the gate and the 32 that they gate. Whether any result is wrong, unless EXACT.
template <bool EXACT>
__device__ inline bool store_gated(const int (&sums)[32], const float2 (&scales)[2][4],
                                   const float (&by)[2], float* out, int T, int N, int first) {
    bool rare = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = first_row() + 8 * r;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int column = first + 8 * j, at = 4 * j + 2 * r;
            const float2 x = scales[0][j], up = scales[1][j];
            const float2 both = make_float2(
                gate<TANH, EXACT>((float)sums[at] * by[r] * x.x,
                                  (float)sums[at + 16] * by[r] * up.x, rare),
                gate<TANH, EXACT>((float)sums[at + 1] * by[r] * x.y,
                                  (float)sums[at + 17] * by[r] * up.y, rare));
            if (row < T && column < N) *(float2*)(out + (long long)row * N + column) = both;
        }
    }
    return rare;
}

// act(gate) * up: a warpgroup has 32 outputs of the gate and the 32 that they gate.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gate_products(const __grid_constant__ Product product,
                  const float* in_scale,  // [T]
                  const float* scale,     // [2 N], the gate first
                  float* out,             // [T, N], written
                  int T, int N) {
    const auto begin_of = [&](int box) {
        return (int)blockIdx.x * (OUTPUTS / 2) + BOX * (box / 2) + (box % 2 ? N : 0);
    };
    const int first = begin_of(threadIdx.x / 128 * 2) + first_column();
    float2 scales[2][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const int column = min(first + 8 * j, N - 2);
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
    int sums[32];
    if (!multiply_rows(sums, product, begin_of, scale_rows)) return;
    begin_next();  // no earlier: few blocks find room beside these, and would crowd elsewhere
    if (store_gated<false>(sums, scales, by, out, T, N, first))
        store_gated<true>(sums, scales, by, out, T, N, first);
}

// Partial sums of products of few rows, for a kernel that goes on with whole rows, as
// `gemm._linear`.
//
// Given by the compiler's command: DIGITS and GROUPS as `products.cuh` has them.
#include "products.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    sum_products(const __grid_constant__ Product product,
                 int* out,  // [splits, T, N], written
                 int T, int N,
                 int early) {  // whether the next launch begins at once
    if (early) begin_next();
    const auto begin_of = [&](int box) { return (int)blockIdx.x * OUTPUTS + BOX * box; };
    const auto release = [] {
        await_previous();  // what is written here was read by launches before
        begin_next();
    };
    int sums[32];
    if (!multiply_rows(sums, product, begin_of, release)) return;
    const int first = begin_of(threadIdx.x / 128 * 2) + first_column();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        const int row = first_row() + 8 * r;
        if (row >= T) continue;
        int* const to = out + ((long long)blockIdx.y * T + row) * N;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const int column = first + 8 * j, at = 4 * j + 2 * r;
            if (column < N) *(int2*)(to + column) = make_int2(sums[at], sums[at + 1]);
        }
    }
}

// Norm and rotation of heads behind the product of queries, keys and values, a warp a head, a block
// a row: the bits of `rows.split_heads`, for heads of 128 numbers and one KV head.
#include "hopper.cuh"

constexpr int D = 128, PAGE = 64;
constexpr int MOST_SPLITS = 4;

// Of a row's first and second halves, four numbers in each lane, the sum by halves for every lane.
__device__ inline float halves_sum(float2 first, float2 second) {
    float2 sum = make_float2(first.x + second.x, first.y + second.y);
    for (int step = 16; step; step /= 2) {
        sum.x += __shfl_xor_sync(~0u, sum.x, step);
        sum.y += __shfl_xor_sync(~0u, sum.y, step);
    }
    return sum.x + sum.y;
}

extern "C" __global__ void split_heads(const int* sums,        // [splits, T, heads * D]
                                       const float* in_scale,  // [T]
                                       const float* scale,     // [heads * D]
                                       const float* norms,     // [heads, D], or nothing
                                       const float* cos,       // [positions, D / 2]
                                       const float* sin,
                                       const int* positions,   // [T]
                                       const int* owners,      // [T]
                                       const int* slots,       // [B, width]
                                       const int* first_page,  // [B]
                                       signed char* q_codes,   // [T, queries, D], written
                                       float* q_scale,         // [T, queries], written
                                       signed char* pages,     // the arena, written
                                       long long page_bytes, long long row_bytes, int splits,
                                       int width, int queries, float attention_scale, float eps) {
    begin_next();
    const int row = blockIdx.x, head = threadIdx.x / 32, column = threadIdx.x % 32 * 2;
    const int begin = head * D + column, N = blockDim.x / 32 * D;
    const bool turned = head <= queries;  // the last head is of values
    const int position = positions[row], owner = owners[row];
    const float2 by[2] = {*(const float2*)(scale + begin),
                          *(const float2*)(scale + begin + D / 2)};
    const long long turn = (long long)position * (D / 2) + column;
    const float2 c = *(const float2*)(cos + turn), s = *(const float2*)(sin + turn);
    float2 norm[2] = {};
    if (norms && turned)
        norm[0] = *(const float2*)(norms + begin),
        norm[1] = *(const float2*)(norms + begin + D / 2);
    signed char* page = nullptr;
    if (head >= queries && owner >= 0) {
        const int slot = slots[owner * width + position / PAGE - first_page[owner]];
        page = pages + slot * page_bytes + row_bytes;
    }
    await_previous();
    const float by_row = __ldcg(in_scale + row);
    int2 parts[MOST_SPLITS][2];
#pragma unroll
    for (int i = 0; i < 2 * MOST_SPLITS; ++i) {
        const long long at = ((long long)(i / 2) * gridDim.x + row) * N + begin + i % 2 * (D / 2);
        parts[i / 2][i % 2] = i / 2 < splits ? __ldcg((const int2*)(sums + at)) : make_int2(0, 0);
    }
    float2 x[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        int2 total = parts[0][half];
#pragma unroll
        for (int i = 1; i < MOST_SPLITS; ++i) {
            total.x += parts[i][half].x;
            total.y += parts[i][half].y;
        }
        x[half] = make_float2((float)total.x * by_row * by[half].x,
                              (float)total.y * by_row * by[half].y);
    }
    if (norms && turned) {
        const float mean = halves_sum(make_float2(x[0].x * x[0].x, x[0].y * x[0].y),
                                      make_float2(x[1].x * x[1].x, x[1].y * x[1].y)) *
                           (1.0f / D);
        const float inverse = __fdiv_rn(1.0f, __fsqrt_rn(mean + eps));
#pragma unroll
        for (int half = 0; half < 2; ++half)
            x[half] = make_float2(x[half].x * inverse * norm[half].x,
                                  x[half].y * inverse * norm[half].y);
    }
    if (turned) {
        const float2 first = x[0], second = x[1];
        x[0] = make_float2(first.x * c.x - second.x * s.x, first.y * c.y - second.y * s.y);
        x[1] = make_float2(second.x * c.x + first.x * s.x, second.y * c.y + first.y * s.y);
    }
    float largest = largest_of(make_float4(x[0].x, x[0].y, x[1].x, x[1].y));
    for (int step = 1; step < 32; step *= 2)
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
    const float share = largest * (float)(1.0 / 127);
    if (head < queries) {
        const long long to = (long long)row * queries + head;
        const float inverse = inverse_of(largest, 127.0f);
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *(char2*)(q_codes + to * D + half * (D / 2) + column) =
                make_char2(code_of(x[half].x, inverse), code_of(x[half].y, inverse));
        if (column == 0) q_scale[to] = share * attention_scale;
    } else if (page) {
        unsigned short rounded;
        float divisor;
        asm("{cvt.rn.f16.f32 %0, %2;\ncvt.f32.f16 %1, %0;}"
            : "=h"(rounded), "=f"(divisor)
            : "f"(fminf(share, 65504.0f)));
        const int value = !turned, token = position % PAGE;
        const auto code = [&](float one) {
            const float q = divisor > 0.0f ? __fdiv_rn(one, divisor) : 0.0f;
            // The scale may be smaller than the largest value / 127: cut to 127.
            return whole_bits(fminf(fmaxf(q, -127.0f), 127.0f)) - WHOLE_BITS;
        };
#pragma unroll
        for (int half = 0; half < 2; ++half)
            *(char2*)(page + (value * PAGE + token) * D + half * (D / 2) + column) =
                make_char2(code(x[half].x), code(x[half].y));
        if (column == 0)
            ((unsigned short*)(page + 2 * PAGE * D))[value * PAGE + token] = rounded;
    }
}

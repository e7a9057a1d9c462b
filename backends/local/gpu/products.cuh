// Products of at most 64 rows, int8 summed in int32, for layers whose weights pass by once. A
// block's weights begin to stream into shared memory before the rows exist, while the launch before
// ends.
//
// A block: 64 outputs for each of its warpgroups, a share of the inputs, all rows. One more warp
// asks the copy engine for what these multiply on the tensor cores (`wgmma`). Blocks begin at
// different inputs, since all want the same rows at once.
//
// Given by the compiler's command: DIGITS (of the rows' codes: 1 or 2), GROUPS (warpgroups).
#pragma once
#include "hopper.cuh"

constexpr int ROWS = 64, INPUTS = 128, OUTPUTS = 64 * GROUPS;
constexpr int WORKERS = 128 * GROUPS, THREADS = WORKERS + 32;
constexpr int BOX = 32;  // outputs that are asked for at once

// Sums by digit, or a lone warpgroup's in turns: a product waits for the one before on its sums.
constexpr int CHAINS = DIGITS == 2 || GROUPS == 1 ? 2 : 1;

struct alignas(1024) Stage {  // swizzled by the copy engine
    unsigned char weights[OUTPUTS * INPUTS];
    unsigned char rows[DIGITS][ROWS * INPUTS];
};

// How `wgmma` finds rows of 128 swizzled bytes: groups of 8 rows lie 1,024 bytes apart.
__device__ inline u64 described(const void* at) {
    return shared_address(at) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

// d [64 rows, 64 outputs] += 32 inputs of rows times weights.
__device__ inline void multiply(int (&d)[32], u64 rows, u64 weights) {
    asm volatile(
        "{.reg .pred add;\nsetp.eq.u32 add, 0, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k32.s32.s8.s8 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,"
        "%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,"
        "%24,%25,%26,%27,%28,%29,%30,%31"
        "}, %32, %33, add;\n}"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]),
          "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]),
          "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]),
          "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15]),
          "+r"(d[16]), "+r"(d[17]), "+r"(d[18]), "+r"(d[19]),
          "+r"(d[20]), "+r"(d[21]), "+r"(d[22]), "+r"(d[23]),
          "+r"(d[24]), "+r"(d[25]), "+r"(d[26]), "+r"(d[27]),
          "+r"(d[28]), "+r"(d[29]), "+r"(d[30]), "+r"(d[31])
        : "l"(rows), "l"(weights));
}

// What a product reads.
struct Product {
    TensorMap weights;    // int8 [N, K]
    TensorMap high, low;  // int8 [T, K]: digits of the rows
    int inputs;           // K
    int stages;           // that fit into shared memory
};

// The sums of all rows and of the warpgroup's 64 outputs, over the share of the inputs that is the
// block's y; `begin_of(i)` is where the i-th 32 outputs of the block begin. False for threads that
// have none. A thread has those of rows g and g + 8 of its warp's 16, columns 2c and 2c + 1 of
// every eight: `first_row`, `first_column`. These threads call `meanwhile` while the rows come.
template <typename Begin, typename Meanwhile>
__device__ inline bool multiply_rows(int (&out)[32], const Product& product, Begin begin_of,
                                     Meanwhile meanwhile) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Stage* const stage = (Stage*)memory;
    const int stages = product.stages;
    u64 *const there = (u64*)(stage + stages), *const free = there + stages;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int steps = (product.inputs + INPUTS - 1) / INPUTS;
    const int begin = steps * blockIdx.y / gridDim.y, end = steps * (blockIdx.y + 1) / gridDim.y;
    const int count = end - begin, turn = blockIdx.x % count;
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; ++i)
            make_barrier(there + i, 1), make_barrier(free + i, WORKERS / 32);
        barriers_are_made();
    }
    __syncthreads();
    if (warp == WORKERS / 32) {
        if (lane) return false;
        const u64 once = read_once(), often = read_often();
        const auto input = [&](int at) { return (begin + (at + turn) % count) * INPUTS; };
        const auto ask_weights = [&](int at, int i) {
            expect(there + i, sizeof(Stage));
#pragma unroll
            for (int box = 0; box < OUTPUTS / BOX; ++box)
                copy_box(stage[i].weights + box * BOX * INPUTS, &product.weights, input(at),
                         begin_of(box), there + i, once);
        };
        const auto ask_rows = [&](int at, int i) {
            const auto ask = [&](unsigned char* to, const TensorMap& digits) {
                copy_box(to, &digits, input(at), 0, there + i, often);
            };
            if (DIGITS == 2) ask(stage[i].rows[0], product.high);
            ask(stage[i].rows[DIGITS - 1], product.low);
            arrive(there + i);
        };
        const int filled = min(count, stages);
        for (int at = 0; at < filled; ++at) ask_weights(at, at);
        await_previous();
        for (int at = 0; at < filled; ++at) ask_rows(at, at);
        for (int at = filled, i = 0, phase = 0; at < count; ++at) {
            await(free + i, phase);
            ask_weights(at, i), ask_rows(at, i);
            if (++i == stages) i = 0, phase ^= 1;
        }
        return false;
    }
    meanwhile();
    const int group = threadIdx.x / 128;
    int sums[CHAINS][32] = {};
    for (int at = 0, i = 0, last = 0, phase = 0; at < count; ++at) {
        await(there + i, phase);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        const u64 weights = described(stage[i].weights + 64 * INPUTS * group);
#pragma unroll
        for (int k = 0; k < INPUTS / 32; ++k)
#pragma unroll
            for (int digit = 0; digit < DIGITS; ++digit)
                multiply(sums[DIGITS == 2 ? digit : k % CHAINS],
                         described(stage[i].rows[digit]) + 2 * k, weights + 2 * k);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (at && lane == 0) arrive(free + last);
        last = i;
        if (++i == stages) i = 0, phase ^= 1;
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int i = 0; i < CHAINS * 32; ++i)  // nothing of them is read earlier
        asm volatile("" : "+r"(sums[i / 32][i % 32])::"memory");
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        const int first = CHAINS == 2 ? sums[0][i] : 0;
        out[i] = first * (DIGITS == 2 ? 128 : 1) + sums[CHAINS - 1][i];
    }
    return true;
}

__device__ inline int first_row() { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }
__device__ inline int first_column() { return threadIdx.x % 4 * 2; }

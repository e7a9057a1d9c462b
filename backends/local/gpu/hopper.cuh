// What the CUDA kernels share: `arithmetic.py` in C++, barriers, copies, chained launches.
//
// Compiled by NVRTC with -fmad=false and no headers; sums and products are rounded one by one, but
// where `__fmaf_rn` stands, whose product alone would be exact.
#pragma once

using u32 = unsigned int;
using u64 = unsigned long long;

constexpr float WHOLE = 12582912.0f;  // 1.5 * 2**23: adding it rounds to whole numbers
constexpr int WHOLE_BITS = 0x4B400000;
#define NEVER __int_as_float(0xFF800000)  // minus infinity

// e to the x, for x <= 88.
__device__ inline float exp_below(float x) {
    const float shifted = x * (float)1.44269504 + WHOLE;
    const float n = shifted - WHOLE;
    const float r = __fmaf_rn(n, (float)-0.693359375, x) - n * (float)-2.12194440e-4;
    float y = r * (float)(1.0 / 720) + (float)(1.0 / 120);
    y = y * r + (float)(1.0 / 24);
    y = y * r + (float)(1.0 / 6);
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const int bits = __float_as_int(y) + (int)((u32)__float_as_int(shifted) << 23);
    return x < -86.0f ? 0.0f : __int_as_float(bits);
}

// What turns a row with this largest magnitude into codes; 0 for a row of zeros.
__device__ inline float inverse_of(float largest, float max_code) {
    return largest > 1e-30f ? __fdiv_rn(max_code, largest) : 0.0f;
}

// The bits of the whole number nearest to x, WHOLE_BITS higher.
__device__ inline int whole_bits(float x) { return __float_as_int(x + WHOLE); }

// The whole number nearest to x * inverse.
__device__ inline int code_of(float x, float inverse) {
    return whole_bits(x * inverse) - WHOLE_BITS;
}

// The largest magnitude.
__device__ inline float largest_of(float4 x) {
    return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
}

// The largest of a block's numbers, none of them negative, for every thread.
__device__ inline float largest_of_block(float x) {
    __shared__ float by_warp[32];
    for (int step = 1; step < 32; step *= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32] = x;
    __syncthreads();
    for (int warp = 0; warp < blockDim.x / 32; ++warp) x = fmaxf(x, by_warp[warp]);
    return x;
}

// The sum of a block's numbers, for every thread.
__device__ inline int sum_of_block(int x) {
    __shared__ int by_warp[32];
    for (int step = 1; step < 32; step *= 2) x += __shfl_xor_sync(~0u, x, step);
    if (threadIdx.x % 32 == 0) by_warp[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
    for (int warp = 0; warp < blockDim.x / 32; ++warp) x += by_warp[warp];
    return x;
}

__device__ inline int4 codes_of(float4 x, float inverse) {
    return make_int4(code_of(x.x, inverse), code_of(x.y, inverse), code_of(x.z, inverse),
                     code_of(x.w, inverse));
}

__device__ inline char4 bytes_of(int4 x) { return make_char4(x.x, x.y, x.z, x.w); }

// x / y, rounded to nearest, for 1 <= y: the steps that the compiler takes, without its branch for
// what these do not serve. That is a tiny x: then `rare` is set.
__device__ inline float quotient(float x, float y, bool& rare) {
    rare |= fabsf(x) < 0x1p-60f && x != 0.0f;
    const float by = y > 0x1p64f ? 0x1p-64f : 1.0f;  // keeps the inverse from being tiny
    y *= by;
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
    inverse = __fmaf_rn(inverse, __fmaf_rn(inverse, -y, 1.0f), inverse);
    float q = x * inverse;
    q = __fmaf_rn(inverse, __fmaf_rn(q, -y, x), q);
    q = __fmaf_rn(inverse, __fmaf_rn(q, -y, x), q);
    return q * by;
}

// act(x) * up, as `arithmetic.gate`; wrong where `rare` is set, unless EXACT.
template <bool GELU, bool EXACT>
__device__ inline float gate(float x, float up, bool& rare) {
    const float z = GELU ? (x + x * x * x * (float)0.044715) * (float)1.5957691216 : x;
    const float y = exp_below(fminf(-z, 88.0f)) + 1.0f;
    return (EXACT ? __fdiv_rn(x, y) : quotient(x, y, rare)) * up;
}

__device__ inline u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// Lets the next launch of a chain begin, once all blocks have come here. Where few have room yet,
// its blocks crowd on those multiprocessors and are slow: then this comes later in a kernel.
__device__ inline void begin_next() { asm volatile("griddepcontrol.launch_dependents;"); }

// Waits for the end of all launches before (see chain.py). A kernel does in all of its blocks.
__device__ inline void await_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Barriers in shared memory, in phases that alternate between 0 and 1.
__device__ inline void make_barrier(u64* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(arrivals));
}

// Lets the copy engine see new barriers.
__device__ inline void barriers_are_made() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Lets the phase end only when so many more bytes were copied.
__device__ inline void expect(u64* barrier, int bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;"
                 :
                 : "r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Waits for the end of a phase.
__device__ inline void await(u64* barrier, int phase) {
    asm volatile(
        "{\n.reg .pred done;\nagain:\n"
        "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
        "@!done bra again;\n}"
        :
        : "r"(shared_address(barrier)), "r"(phase)
        : "memory");
}

// Blocks of a cluster meet: all wait for what all did before they arrived.
__device__ inline void arrive_in_cluster() {
    asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

__device__ inline void await_cluster() {
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// Writes a number where `at` is in the shared memory of the cluster's `block`.
__device__ inline void tell(float* at, int block, float x) {
    asm volatile("{.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                 "st.shared::cluster.f32 [there], %2;}"
                 :
                 : "r"(shared_address(at)), "r"(block), "f"(x)
                 : "memory");
}

// How the copy engine treats the L2 cache: what is read once need not stay there.
__device__ inline u64 read_once() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

__device__ inline u64 read_often() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

// Bytes that lie side by side, by the copy engine.
__device__ inline void copy(void* to, const void* from, int bytes, u64* barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :
        : "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
}

struct alignas(64) TensorMap {
    u64 opaque[16];
};

// A box of a tensor of rows, from (column, row) on.
__device__ inline void copy_box(void* to, const TensorMap* map, int column, int row, u64* barrier,
                                u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
        ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;"
        :
        : "r"(shared_address(to)), "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)),
          "l"(policy)
        : "memory");
}

// Where the copy engine puts a byte that lies at `at` in rows of 128 bytes ("128-byte swizzle").
__device__ inline u32 swizzled(u32 at) { return at ^ (at >> 3 & 0x70); }

// [16 x 32] int8, rows, times [32 x 8] int8, columns, added to [16 x 8] int32 (`mma.m16n8k32`).
__device__ inline void multiply(int (&sums)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The same with rows of uint8.
__device__ inline void multiply_u8(int (&sums)[4], uint4 a, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}

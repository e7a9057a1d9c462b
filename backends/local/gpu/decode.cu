// Attention of sequences that have one new token, over pages of int8 KV with one KV head: each
// span's own result, the bits of `attention.decode_spans`, which says what is computed.
//
// Blocks stay; each takes the next span of 256 keys when it is done with one. A warp of each asks
// the copy engine for the keys of the next span while the others work on the softmax of this one,
// and for its values when they are done; several blocks a multiprocessor keep memory busy between
// them.
//
// Given by the compiler's command: D (128 or 256), G (query heads, at most 16), BLOCKS (on a
// multiprocessor).
#include "hopper.cuh"
#include "spans.cuh"

constexpr int WARPS = D / 32, ROWS = 16;  // a warp works on 32 dims of values
constexpr int KEYS = SPAN / WARPS, TILES = KEYS / 8;  // of a warp; 8 keys a tile
constexpr int PAGE_BYTES = PAGE * D, LINES = PAGE_BYTES / 128;  // of a page's keys, or values

struct Item {
    int span, low;
    int length;  // 0 behind the last
    int part;  // of the results: sequences times spans
};

struct alignas(1024) Shared {
    unsigned char k[SPAN * D];  // both swizzled by the copy engine
    unsigned char v[SPAN * D];
    unsigned short scales[4][2][PAGE];  // fp16, of a page's keys, then values
    signed char q[ROWS * D];
    float q_scale[ROWS];
    uint4 codes[SPAN / 32][32];  // of weights, as `multiply` wants them: by 32 keys and lane
    float tops[ROWS][WARPS];     // each warp's part of a row's
    float mosts[ROWS][WARPS];
    int totals[ROWS][WARPS];
    u64 k_there, k_free, v_there, v_free;
    Item item;
    int first[1];  // [sequences + 1]: spans of the sequences before
};

// Counts the spans of all sequences, by one warp.
__device__ inline void lay_spans(int* first, const int* starts, const int* lengths, int sequences,
                                 int window) {
    const int lane = threadIdx.x % 32;
    int before = 0;
    for (int begin = 0; begin < sequences; begin += 32) {
        const int b = begin + lane;
        int count = 0;
        if (b < sequences && starts[b + 1] - starts[b] == 1)
            count = span_count(lengths[b], window);
        int sum = count;
        for (int step = 1; step < 32; step *= 2) {
            const int other = __shfl_up_sync(~0u, sum, step);
            sum += lane >= step ? other : 0;
        }
        if (b < sequences) first[b] = before + sum - count;
        before += __shfl_sync(~0u, sum, 31);
    }
    if (lane == 0) first[sequences] = before;
}

// The largest b with first[b] <= item.
__device__ inline int owner_of(const int* first, int sequences, int item) {
    int b = 0;
    for (int step = 1 << (31 - __clz(sequences)); step; step /= 2)
        if (b + step < sequences && first[b + step] <= item) b += step;
    return b;
}

// Two fp16 numbers.
__device__ inline float2 halves(const unsigned short* at) {
    const u32 both = *(const u32*)at;
    float2 out;
    asm("{.reg .b16 x, y; mov.b32 {x, y}, %2; cvt.f32.f16 %0, x; cvt.f32.f16 %1, y;}"
        : "=f"(out.x), "=f"(out.y)
        : "r"(both));
    return out;
}

// The largest of all warps' parts.
__device__ inline float most_of(const float (&parts)[WARPS]) {
    float most = parts[0];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) most = fmaxf(most, parts[i]);
    return most;
}

// Waits for the warps that work.
__device__ inline void workers_meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory");
}

// The low bytes of four words.
__device__ inline u32 low_bytes(u32 a, u32 b, u32 c, u32 d) {
    return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// Byte t of each of four words becomes word t.
__device__ inline void turn(u32 (&out)[4], u32 a, u32 b, u32 c, u32 d) {
    const u32 ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
    const u32 AB = __byte_perm(a, b, 0x7362), CD = __byte_perm(c, d, 0x7362);
    out[0] = __byte_perm(ab, cd, 0x5410), out[1] = __byte_perm(ab, cd, 0x7632);
    out[2] = __byte_perm(AB, CD, 0x5410), out[3] = __byte_perm(AB, CD, 0x7632);
}

// Where keys and values lie.
struct Batch {
    const signed char* arena;
    const int *slots, *first_page;  // [B, width], [B]
    const int *starts, *lengths;    // [B + 1], [B]
    int sequences, width, page_lines, row_lines, window;  // lines: of 128 bytes
};

// One span of one sequence, and lane p < 4 has its page p.
struct Place {
    int b, row, low, length, span, part;
    int line;     // where the page's keys begin
    bool needed;  // not a page without a key that is seen

    __device__ Place(const Batch& batch, const int* first, int at) {
        b = owner_of(first, batch.sequences, at);
        row = batch.starts[b], length = batch.lengths[b];
        low = first_key(length, batch.window);
        part = at - first[b], span = low / SPAN + part;
        const int lane = threadIdx.x % 32, key = span * SPAN + lane * PAGE;
        needed = lane < 4 && key + PAGE > low && key < length;
        const int* const slot = batch.slots + b * batch.width + key / PAGE - batch.first_page[b];
        line = batch.row_lines + (needed ? *slot * batch.page_lines : 0);
    }
};

// What blocks have taken beyond their first spans, and how many blocks are done.
struct Taken {
    int spans, blocks;
};

// The last warp: takes spans, and copies what each needs.
__device__ void fetch(Shared& s, const TensorMap* map, const Batch& batch, Taken* taken,
                      const signed char* q_codes, const float* q_scale, int reads) {
    const int lane = threadIdx.x % 32, total = s.first[batch.sequences];
    const u64 policy = read_once();
    int phase = 0, next = 0;
    for (int at = blockIdx.x; at < total; at = next, phase ^= 1) {
        const Place place(batch, s.first, at);
        const int line = place.line, pages = __popc(__ballot_sync(~0u, place.needed));
        const auto ask_keys = [&] {
            await(&s.k_free, phase ^ 1);
            if (lane == 0) expect(&s.k_there, pages * (PAGE_BYTES + 4 * PAGE));
            __syncwarp();
            if (!place.needed) return;
            copy_box(s.k + lane * PAGE_BYTES, map, 0, line, &s.k_there, policy);
            copy(s.scales[lane], batch.arena + (line + 2 * LINES) * 128ll, 4 * PAGE, &s.k_there);
        };
        const auto ask_values = [&] {
            await(&s.v_free, phase ^ 1);
            if (lane == 0) expect(&s.v_there, pages * PAGE_BYTES);
            __syncwarp();
            if (place.needed)
                copy_box(s.v + lane * PAGE_BYTES, map, 0, line + LINES, &s.v_there, policy);
            __syncwarp();
            if (lane == 0) arrive(&s.v_there);
        };
        // The newest token's page is written by the launch before, and so are queries.
        const bool early = at == blockIdx.x && (place.span + 1) * SPAN < place.length;
        if (early) ask_keys(), ask_values();
        await_previous();
        if (!early) ask_keys();
        __syncwarp();
        if (lane == 0) {
            const long long row = place.row;
            expect(&s.k_there, G * D);
            copy(s.q, q_codes + row * G * D, G * D, &s.k_there);
        }
        if (lane < G) s.q_scale[lane] = __ldcg(q_scale + place.row * G + lane);
        __syncwarp();
        if (lane == 0) {
            s.item = Item{place.span, place.low, place.length, place.b * reads + place.part};
            arrive(&s.k_there);
        }
        if (!early) ask_values();
        // No earlier: another block may be done first.
        if (lane == 0) next = gridDim.x + atomicAdd(&taken->spans, 1);
        next = __shfl_sync(~0u, next, 0);
    }
    begin_next();
    if (lane) return;
    await(&s.k_free, phase ^ 1);
    s.item.length = 0;
    arrive(&s.k_there);
    await_previous();
    if (atomicAdd(&taken->blocks, 1) == gridDim.x - 1) *taken = Taken{0, 0};  // for the next launch
}

extern "C" __global__ void __launch_bounds__(WARPS * 32 + 32, BLOCKS)
    decode_spans(const __grid_constant__ TensorMap map,  // the arena in lines
                 const signed char* arena, const int* slots, const int* first_page,
                 const signed char* q_codes,  // [T, G, D]
                 const float* q_scale,        // [T, G]
                 const int* starts,           // [B + 1]
                 const int* lengths,          // [B]
                 float* tops,                 // [B, reads, G], written
                 float* totals,               // the same
                 float* outs,                 // [B, reads, G, D], written
                 Taken* taken,                // zeros, before and behind
                 int sequences, int width, int page_lines, int row_lines, int window, int reads) {
    extern __shared__ __align__(1024) unsigned char memory[];
    Shared& s = *(Shared*)memory;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp == WARPS) {
        lay_spans(s.first, starts, lengths, sequences, window);
    } else if (threadIdx.x == 0) {
        make_barrier(&s.k_there, 1), make_barrier(&s.v_there, 1);
        make_barrier(&s.k_free, WARPS), make_barrier(&s.v_free, WARPS);
        barriers_are_made();
    }
    __syncthreads();
    if (warp == WARPS) {
        const Batch batch{arena, slots, first_page, starts, lengths, sequences,
                          width, page_lines, row_lines, window};
        fetch(s, &map, batch, taken, q_codes, q_scale, reads);
        return;
    }
    await_previous();
    // A lane's place in the fragments of `multiply`: rows g and g + 8, columns 2c and 2c + 1. It
    // takes dims c * D / 4 and on for its inputs. Its dims of values are chosen so that lanes of a
    // row store what lies side by side.
    const int g = lane / 4, c = lane % 4;
    const int dim = 32 * warp + 4 * (g / 2 + g % 2 * 4);
    const u32 v_at[2] = {swizzled(2 * c * D + dim), swizzled((2 * c + 1) * D + dim)};
    u32 k_at[D / 64];
#pragma unroll
    for (int j = 0; j < D / 64; ++j)
        k_at[j] = swizzled(g * D + c * (D / 4) + 16 * j) + warp * KEYS * D;
    for (int phase = 0;; phase ^= 1) {
        await(&s.k_there, phase);
        const Item item = s.item;
        if (item.length == 0) break;
        const float by[2] = {s.q_scale[g], s.q_scale[g + 8]};
        int dots[TILES][4];
#pragma unroll
        for (int n = 0; n < TILES; ++n)
            for (int i = 0; i < 4; ++i) dots[n][i] = WHOLE_BITS;
#pragma unroll
        for (int j = 0; j < D / 64; ++j) {
            const uint4 q = *(const uint4*)(s.q + g * D + c * (D / 4) + 16 * j);
            const uint4 Q = *(const uint4*)(s.q + (g + 8) * D + c * (D / 4) + 16 * j);
#pragma unroll
            for (int n = 0; n < TILES; ++n) {
                const uint4 k = *(const uint4*)(s.k + k_at[j] + 8 * n * D);
                multiply(dots[n], q.x, Q.x, q.y, Q.y, k.x, k.y);
                multiply(dots[n], q.z, Q.z, q.w, Q.w, k.z, k.w);
            }
        }
        float scores[TILES][4];
        float2 v_scale[TILES];
        float top[2] = {NEVER, NEVER};
        const int key = item.span * SPAN + warp * KEYS + 2 * c;
        const auto& scales = s.scales[warp * KEYS / PAGE];
        const bool whole = item.span * SPAN >= item.low && (item.span + 1) * SPAN <= item.length;
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            const float2 k_scale = halves(&scales[0][key % PAGE + 8 * n]);
            v_scale[n] = halves(&scales[1][key % PAGE + 8 * n]);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                scores[n][i] = (__int_as_float(dots[n][i]) - WHOLE) * by[i / 2] *
                               (i % 2 ? k_scale.y : k_scale.x);
            if (!whole) {
                const int here = key + 8 * n;
                if (here < item.low || here >= item.length)
                    v_scale[n].x = 0.0f, scores[n][0] = scores[n][2] = NEVER;
                if (here + 1 < item.low || here + 1 >= item.length)
                    v_scale[n].y = 0.0f, scores[n][1] = scores[n][3] = NEVER;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) top[i / 2] = fmaxf(top[i / 2], scores[n][i]);
        }
        __syncwarp();
        if (lane == 0) arrive(&s.k_free);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
            if (c == 0) s.tops[g + 8 * r][warp] = top[r];
        }
        workers_meet();
        float base[2], most[2] = {0.0f, 0.0f};
        u32 counts[2] = {0, 0};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            top[r] = most_of(s.tops[g + 8 * r]);
            base[r] = top[r] == NEVER ? 0.0f : top[r];
        }
#pragma unroll
        for (int n = 0; n < TILES; ++n)
            for (int i = 0; i < 4; ++i) {
                const float weight = exp_below(scores[n][i] - base[i / 2]);
                counts[i / 2] += __float_as_int(__fmaf_rn(weight, 4194304.0f, WHOLE)) - WHOLE_BITS;
                scores[n][i] = weight * (i % 2 ? v_scale[n].y : v_scale[n].x);
                most[i / 2] = fmaxf(most[i / 2], scores[n][i]);
            }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            for (int step = 1; step < 4; step *= 2) {
                most[r] = fmaxf(most[r], __shfl_xor_sync(~0u, most[r], step));
                counts[r] += __shfl_xor_sync(~0u, counts[r], step);
            }
            if (c == 0) s.mosts[g + 8 * r][warp] = most[r], s.totals[g + 8 * r][warp] = counts[r];
        }
        workers_meet();
        float inverse[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            most[r] = most_of(s.mosts[g + 8 * r]);
            inverse[r] = inverse_of(most[r], 255.0f);
        }
#pragma unroll
        for (int half = 0; half < KEYS / 32; ++half) {
            u32 words[4];  // rows g, g + 8, and again of the next 16 keys
#pragma unroll
            for (int w = 0; w < 4; ++w) {
                const int n = 4 * half + w / 2 * 2, i = w % 2 * 2;
                words[w] = low_bytes(whole_bits(scores[n][i] * inverse[w % 2]),
                                     whole_bits(scores[n][i + 1] * inverse[w % 2]),
                                     whole_bits(scores[n + 1][i] * inverse[w % 2]),
                                     whole_bits(scores[n + 1][i + 1] * inverse[w % 2]));
            }
            s.codes[KEYS / 32 * warp + half][lane] =
                make_uint4(words[0], words[1], words[2], words[3]);
        }
        workers_meet();
        await(&s.v_there, phase);
        int sums[4][4] = {};
#pragma unroll
        for (int keys = 0; keys < SPAN / 32; ++keys) {
            const uint4 codes = s.codes[keys][lane];
            u32 x[8], b0[4], b1[4];
#pragma unroll
            for (int q = 0; q < 8; ++q)
                x[q] = *(const u32*)(s.v + v_at[q % 2] + (32 * keys + 8 * (q / 2)) * D);
            turn(b0, x[0], x[1], x[2], x[3]);
            turn(b1, x[4], x[5], x[6], x[7]);
#pragma unroll
            for (int t = 0; t < 4; ++t) multiply_u8(sums[t], codes, b0[t], b1[t]);
        }
        __syncwarp();
        if (lane == 0) arrive(&s.v_free);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int row = g + 8 * r;
            if (row >= G) continue;
            const long long to = (long long)item.part * G + row;
            const float step = most[r] * (float)(1.0 / 255);
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
                const int i = 2 * r + odd;
                *(float4*)(outs + to * D + 32 * warp + 16 * odd + 4 * c) =
                    make_float4((float)sums[0][i] * step, (float)sums[1][i] * step,
                                (float)sums[2][i] * step, (float)sums[3][i] * step);
            }
            if (warp == 0 && c == 0) {
                int count = 0;
                for (int i = 0; i < WARPS; ++i) count += s.totals[row][i];
                tops[to] = top[r];
                totals[to] = (float)count * (1.0f / 4194304);
            }
        }
    }
}

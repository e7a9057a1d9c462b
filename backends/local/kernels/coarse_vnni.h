// The first look on AVX-512 VNNI; see coarse.h.
#pragma once

namespace greenroom {

constexpr int kLooks = 4;  // up to so many rows a coarse look costs less than to read the head

inline int code_at(const uint8_t* codes, int i) { return int8_t(codes[i]); }

// A block's products of levels and of rests along directions with R rows, both lifted: sums, along.
// Returns what lies behind.
template <int R>
__attribute__((noinline)) const int8_t* look(const Coarse& c, const Linear& head,
                                             const int8_t* from, const Rows& x, const Sight* sight,
                                             int32_t (*sums)[kBlock], int32_t (*along)[kBlock]) {
  const int64_t stride = code_bytes(head);
  const __m512i half = _mm512_set1_epi8(15);
  __m512i sum[R][2], more[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = more[r] = _mm512_setzero_si512();
  auto level = [&](__m512i index, int group) __attribute__((always_inline)) {
    const auto* at = reinterpret_cast<const __m128i*>(c.levels + group * kLevels);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(at)), index);
  };
  for (int i = 0; i < head.k; i += 8, from += 64) {
    ask_ahead<_MM_HINT_NTA>(from);
    const __m512i both = _mm512_loadu_si512(from);
    const __m512i low = level(_mm512_and_si512(both, half), i / 4);
    const __m512i high = level(_mm512_and_si512(_mm512_srli_epi16(both, 4), half), i / 4 + 1);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      add_products(sum[r][0], low, x.codes + r * stride + i);
      add_products(sum[r][1], high, x.codes + r * stride + i + 4);
    }
  }
  for (int d = 0; d < kDirections; d += 4, from += 64) {
    ask_ahead<_MM_HINT_NTA>(from);
    const __m512i rests = _mm512_loadu_si512(from);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      add_products(more[r], rests, reinterpret_cast<const uint8_t*>(sight[r].along) + d);
  }
  ask_ahead<_MM_HINT_NTA>(from);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    _mm512_store_si512(sums[r], _mm512_add_epi32(sum[r][0], sum[r][1]));
    _mm512_store_si512(along[r], more[r]);
  }
  return from;
}

// Emits the logits of `found` blocks of the head; each asks memory for the next one.
template <typename Emit>
inline void read_blocks(const Linear& head, const Rows& x, const int* which, int found, Emit emit) {
  const int64_t bytes = int64_t(kBlock) * head.k;
  for (int i = 0; i < found; ++i) {
    const int64_t next = i + 1 < found ? (which[i + 1] - which[i]) * bytes : 0;
    blocks_of<1>(head, which[i], x, next, emit);
  }
}

}  // namespace greenroom

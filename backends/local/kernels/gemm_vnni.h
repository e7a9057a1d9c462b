// Products on AVX-512 VNNI: bytes, four inputs at a time (vpdpbusd).
//
// The instruction multiplies bytes without a sign by weights with one. So a code of 8 bits is
// stored 128 higher, and one of up to 14 bits 8,192 higher, as two digits of 7 bits: rows of their
// own to the product, which are put together at its end. What the higher codes add to a sum is the
// same for every row (`Linear::offset`) and taken off first. Sums may pass 32 bits on the way; what
// comes out does not (`quantize.max_code`), so they wrap back.
#pragma once

namespace greenroom {

constexpr int kTogether = 4;     // inputs of one output that lie together
constexpr int kUnitBlocks = 2;   // blocks of weights that a piece of work takes
constexpr int kTileRows = 12;    // rows of digits: with two blocks, 24 sums, two weights, a code
constexpr int kOnePass = 24;     // up to so many, weights are read once, one block at a time
constexpr int kFewRows = 4;      // up to so many, a row needs more sums than one

constexpr bool is_wide(int max_code) { return max_code > 127; }
inline int digits_of(const Linear& l) { return is_wide(l.max_code) ? 2 : 1; }
inline int64_t code_bytes(const Linear& l) { return int64_t(l.k) * digits_of(l); }

// How much higher than they are codes are stored.
constexpr int raised_by(int max_code) { return is_wide(max_code) ? 8192 : 128; }

// Writes one row of codes for `next`, high digits before low ones; returns its scale.
inline float quantize_for(const Linear& next, const float* x, uint8_t* codes) {
  int k = next.k;
  __m512 most = _mm512_setzero_ps();
  for (int i = 0; i < k; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  float largest = _mm512_reduce_max_ps(most);
  const __m512 inverse =
      _mm512_set1_ps(largest > kTiny ? float(next.max_code) / largest : 0.0f);
  auto code = [&](int i) __attribute__((always_inline)) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
  };
  auto store = [](uint8_t* at, __m512i bytes) __attribute__((always_inline)) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(bytes));
  };
  const __m512i up = _mm512_set1_epi32(raised_by(next.max_code));
  if (is_wide(next.max_code)) {
    const __m512i low = _mm512_set1_epi32(127);
    for (int i = 0; i < k; i += 16) {
      __m512i c = _mm512_add_epi32(code(i), up);
      store(codes + i, _mm512_srli_epi32(c, 7));
      store(codes + k + i, _mm512_and_si512(c, low));
    }
  } else {
    for (int i = 0; i < k; i += 16) store(codes + i, _mm512_add_epi32(code(i), up));
  }
  return largest * float(1.0 / next.max_code);
}

// Whole sums of R rows of digits against B blocks of weights, `blocks` bytes apart: out[b][r].
template <int R, int B>
__attribute__((noinline)) void tile(const uint8_t* x, int k, const int8_t* weight, int64_t blocks,
                                    int32_t (*out)[kOnePass][kBlock]) {
  __m512i sum[B][R];
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) sum[b][r] = _mm512_setzero_si512();
  for (int i = 0; i < k; i += kTogether, weight += kBlock * kTogether) {
    __m512i w[B];
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      ask_ahead<_MM_HINT_T1>(weight + b * blocks);  // the first level holds rows of codes
      w[b] = _mm512_loadu_si512(weight + b * blocks);
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
      __m512i code = broadcast_four(x + int64_t(r) * k + i);
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) sum[b][r] = _mm512_dpbusd_epi32(sum[b][r], code, w[b]);
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) _mm512_store_si512(out[b][r], sum[b][r]);
}

// The same for few rows and one block; the multiply-add takes several cycles, so with four sums.
template <int R>
__attribute__((noinline)) void narrow_tile(const uint8_t* x, int k, const int8_t* weight,
                                           int32_t (*out)[kOnePass][kBlock]) {
  constexpr int kSums = 4;
  __m512i sum[R][kSums];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) sum[r][s] = _mm512_setzero_si512();
  for (int i = 0; i < k; i += kSums * kTogether) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s, weight += kBlock * kTogether) {
      ask_ahead(weight);
      __m512i w = _mm512_loadu_si512(weight);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        sum[r][s] = _mm512_dpbusd_epi32(
            sum[r][s], broadcast_four(x + int64_t(r) * k + i + s * kTogether), w);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    _mm512_store_si512(out[0][r], _mm512_add_epi32(_mm512_add_epi32(sum[r][0], sum[r][1]),
                                                   _mm512_add_epi32(sum[r][2], sum[r][3])));
}

template <int B, int R>
inline void tile_of(int rows, const uint8_t* x, int k, const int8_t* weight, int64_t blocks,
                    int32_t (*out)[kOnePass][kBlock]) {
  if constexpr (R > 1) {
    if (rows < R) return tile_of<B, R - 1>(rows, x, k, weight, blocks, out);
  }
  if constexpr (R <= kFewRows) {
    for (int b = 0; b < B; ++b) narrow_tile<R>(x, k, weight + b * blocks, out + b);
  } else if constexpr (R <= kTileRows) {
    tile<R, B>(x, k, weight, blocks, out);
  } else {
    for (int b = 0; b < B; ++b) tile<R, 1>(x, k, weight + b * blocks, blocks, out + b);
  }
}

// Calls emit(block, first row, rows, results) for B blocks from `index` on, tile by tile.
template <int B, typename Emit>
inline void blocks_of(const Linear& linear, int index, const Rows& x, Emit emit) {
  const int64_t block_bytes = int64_t(kBlock) * linear.k;
  const int8_t* weight = linear.weight + index * block_bytes;
  const int digits = digits_of(linear);
  const int most = (x.count * digits <= kOnePass ? kOnePass : kTileRows) / digits;
  alignas(64) int32_t sums[B][kOnePass][kBlock];
  alignas(64) float out[kOnePass][kBlock];
  int tiles = (x.count + most - 1) / most;
  for (int t = 0; t < tiles; ++t) {
    int begin = int64_t(x.count) * t / tiles, rows = int64_t(x.count) * (t + 1) / tiles - begin;
    tile_of<B, kOnePass>(rows * digits, x.codes + begin * code_bytes(linear), linear.k, weight,
                         block_bytes, sums);
    for (int b = 0; b < B; ++b) {
      const __m512i offset = _mm512_loadu_si512(linear.offset + (index + b) * kBlock);
      const __m512 scale = _mm512_loadu_ps(linear.scale + (index + b) * kBlock);
      for (int r = 0; r < rows; ++r) {
        __m512i sum = _mm512_load_si512(sums[b][r * digits]);
        if (digits == 2)
          sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 7), _mm512_load_si512(sums[b][r * 2 + 1]));
        __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, offset));
        __m512 by = _mm512_set1_ps(x.scale[begin + r]);
        _mm512_store_ps(out[r], _mm512_mul_ps(_mm512_mul_ps(whole, by), scale));
      }
      emit(index + b, begin, rows, out);
    }
  }
}

// The same for up to kUnitBlocks blocks from `index` on, as many as there are.
template <typename Emit>
inline void blocks(const Linear& linear, int index, const Rows& x, Emit emit) {
  if (index + kUnitBlocks <= padded(linear.n) / kBlock)
    blocks_of<kUnitBlocks>(linear, index, x, emit);
  else
    blocks_of<1>(linear, index, x, emit);
}

}  // namespace greenroom

// int8 weights times 16-bit activation codes, exact in int32.
//
// Weights lie in blocks of 16 outputs, pairs of inputs together: [N / 16][K / 2][16][2] int8, so
// that one multiply-add of pairs (vpmaddwd, or vpdpwssd with VNNI) feeds 16 outputs and no sum
// crosses lanes. A tile is R rows of activations against one block.
#pragma once

#include "vector.h"

namespace greenroom {

constexpr int kBlock = 16;
constexpr int kAhead = 1024;  // bytes of weights between what is read and what is asked for

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int kTileRows = 16;
#else
constexpr int kTileRows = 6;
#endif

// The running sums of R rows against one block. A struct in a struct, not an array: GCC keeps its
// members in registers.
template <int R>
struct Sums {
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  Sums<R - 1> rest;
  __m512i sum = _mm512_setzero_si512();

  GREENROOM_INLINE void add(const int16_t* x, int64_t stride, __m512i weight) {
    rest.add(x, stride, weight);
    add_pair_products(sum, weight, x + (R - 1) * stride);
  }

  GREENROOM_INLINE void add(const Sums& other) {
    rest.add(other.rest);
    sum = _mm512_add_epi32(sum, other.sum);
  }

  GREENROOM_INLINE void scaled(const float* row_scale, const float* scale,
                               float (*out)[kBlock]) const {
    rest.scaled(row_scale, scale, out);
    __m512 by = _mm512_set1_ps(row_scale[R - 1]);
    _mm512_storeu_ps(out[R - 1], _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), by),
                                               _mm512_loadu_ps(scale)));
  }
#else
  Sums<R - 1> rest;
  __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();

  GREENROOM_INLINE void add(const int16_t* x, int64_t stride, __m256i w0, __m256i w1) {
    rest.add(x, stride, w0, w1);
    __m256i pairs = broadcast_pair(x + (R - 1) * stride);
    add_products(low, w0, pairs);
    add_products(high, w1, pairs);
  }

  GREENROOM_INLINE void scaled(const float* row_scale, const float* scale,
                               float (*out)[kBlock]) const {
    rest.scaled(row_scale, scale, out);
    __m256 by = _mm256_set1_ps(row_scale[R - 1]);
    float* to = out[R - 1];
    _mm256_storeu_ps(to, _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(low), by),
                                       _mm256_loadu_ps(scale)));
    _mm256_storeu_ps(to + 8, _mm256_mul_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(high), by),
                                           _mm256_loadu_ps(scale + 8)));
  }
#endif
};

template <>
struct Sums<0> {
  template <typename... Any>
  GREENROOM_INLINE void add(Any...) {}
  template <typename... Any>
  GREENROOM_INLINE void scaled(Any...) const {}
};

// Weights are read once, in order, faster than the hardware asks for them by itself.
GREENROOM_INLINE void ask_ahead(const int8_t* weight) {
  _mm_prefetch(reinterpret_cast<const char*>(weight) + kAhead, _MM_HINT_T0);
}

// The float results of R rows against one block of weights: out[r][0..15]. K is a multiple of 16.
template <int R>
__attribute__((noinline)) void tile(const int16_t* x, int64_t stride, const int8_t* weight,
                                    int pairs, const float* row_scale, const float* scale,
                                    float (*out)[kBlock]) {
  Sums<R> sums;
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  auto next = [&](Sums<R>& into) __attribute__((always_inline)) {
    into.add(x, stride, _mm512_cvtepi8_epi16(
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight))));
    x += 2;
    weight += 2 * kBlock;
  };
  if constexpr (R <= 4) {
    // vpdpwssd takes several cycles: few rows need more sums than one each.
    Sums<R> second, third, fourth;
    for (int p = 0; p < pairs; p += 4) {
      ask_ahead(weight);
      next(sums);
      next(second);
      ask_ahead(weight);
      next(third);
      next(fourth);
    }
    sums.add(second);
    third.add(fourth);
    sums.add(third);
  } else {
    for (int p = 0; p < pairs; p += 2) {
      ask_ahead(weight);
      next(sums);
      next(sums);
    }
  }
#else
  auto next = [&] __attribute__((always_inline)) {
    auto at = reinterpret_cast<const __m128i*>(weight);
    sums.add(x, stride, _mm256_cvtepi8_epi16(_mm_loadu_si128(at)),
             _mm256_cvtepi8_epi16(_mm_loadu_si128(at + 1)));
    x += 2;
    weight += 2 * kBlock;
  };
  for (int p = 0; p < pairs; p += 2) {
    ask_ahead(weight);
    next();
    next();
  }
#endif
  sums.scaled(row_scale, scale, out);
}

template <int R>
inline void tile_of(int rows, const int16_t* x, int64_t stride, const int8_t* weight, int pairs,
                    const float* row_scale, const float* scale, float (*out)[kBlock]) {
  if constexpr (R > 1) {
    if (rows < R) return tile_of<R - 1>(rows, x, stride, weight, pairs, row_scale, scale, out);
  }
  tile<R>(x, stride, weight, pairs, row_scale, scale, out);
}

// One linear layer. `n` outputs and `k` inputs, k padded to 16; scale is padded to whole blocks.
struct Linear {
  const int8_t* weight;
  const float* scale;
  int32_t n, k, max_code;
};

inline int padded(int n) { return (n + kBlock - 1) / kBlock * kBlock; }

// Rows of activation codes: [rows, stride] int16 with one scale a row.
struct Rows {
  const int16_t* codes;
  const float* scale;
  int64_t stride;
  int count;
};

// Calls emit(first row, rows, results) for one block of weights, tile by tile.
template <typename Emit>
inline void block(const Linear& linear, int index, const Rows& x, Emit emit) {
  const int8_t* weight = linear.weight + int64_t(index) * kBlock * linear.k;
  alignas(64) float out[kTileRows][kBlock];
  int tiles = (x.count + kTileRows - 1) / kTileRows;
  for (int t = 0; t < tiles; ++t) {
    int begin = int64_t(x.count) * t / tiles, end = int64_t(x.count) * (t + 1) / tiles;
    tile_of<kTileRows>(end - begin, x.codes + begin * x.stride, x.stride, weight, linear.k / 2,
                       x.scale + begin, linear.scale + index * kBlock, out);
    emit(begin, end - begin, out);
  }
}

}  // namespace greenroom

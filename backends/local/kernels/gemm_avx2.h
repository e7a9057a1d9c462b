// Products on AVX2: 16-bit codes, pairs of inputs (vpmaddwd). A tile is R rows against one block.
//
// Codes of 8 bits go the same way: without VNNI, multiplying bytes (vpmaddubsw) takes as many
// instructions once its 16-bit sums are widened.
#pragma once

namespace greenroom {

constexpr int kTogether = 2;     // inputs of one output that lie together
constexpr int kUnitBlocks = 1;   // blocks of weights that a piece of work takes
constexpr int kTileRows = 6;

inline int64_t code_bytes(const Linear& l) { return int64_t(l.k) * 2; }

constexpr int kRaised = 0;       // how much higher than they are weights are stored

// Writes one row of codes for `next`; returns its scale.
inline float quantize_for(const Linear& next, const float* x, uint8_t* codes) {
  auto to = reinterpret_cast<int16_t*>(codes);
  float scale = quantize_row(x, next.k, next.max_code, to);
  if (!is_wide(next)) return scale;
  int32_t total = 0;
  for (int i = 0; i < next.k; ++i) total += std::abs(int32_t(to[i]));
  float wider = widened(total, next);
  return wider > 1.0f ? quantize_row(x, next.k, next.max_code, to, wider) : scale;
}

// The running sums of R rows against one block. A struct in a struct, not an array: GCC keeps its
// members in registers.
template <int R>
struct Sums {
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
};

template <>
struct Sums<0> {
  template <typename... Any>
  GREENROOM_INLINE void add(Any...) {}
  template <typename... Any>
  GREENROOM_INLINE void scaled(Any...) const {}
};

// The float results of R rows against one block of weights: out[r][0..15]. K is a multiple of 16.
template <int R>
__attribute__((noinline)) void tile(const int16_t* x, int64_t stride, const int8_t* weight,
                                    int pairs, const float* row_scale, const float* scale,
                                    float (*out)[kBlock]) {
  Sums<R> sums;
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

// Calls emit(block, first row, rows, results) for block `index`, tile by tile.
template <typename Emit>
inline void blocks(const Linear& linear, int index, const Rows& x, Emit emit) {
  const int8_t* weight = linear.weight + int64_t(index) * kBlock * linear.k;
  auto codes = reinterpret_cast<const int16_t*>(x.codes);
  alignas(64) float out[kTileRows][kBlock];
  int tiles = (x.count + kTileRows - 1) / kTileRows;
  for (int t = 0; t < tiles; ++t) {
    int begin = int64_t(x.count) * t / tiles, end = int64_t(x.count) * (t + 1) / tiles;
    tile_of<kTileRows>(end - begin, codes + int64_t(begin) * linear.k, linear.k, weight,
                       linear.k / 2, x.scale + begin, linear.scale + index * kBlock, out);
    emit(index, begin, end - begin, out);
  }
}

}  // namespace greenroom

// The insides of a span on AVX-512 VNNI: bytes, four at a time (vpdpbusd).
//
// Keys are turned so that four dimensions of 16 keys make a register, and values so that four keys of
// 16 dimensions do: then no sum crosses lanes. For many queries a page is turned in memory, for few
// a few keys in registers, and less far. The instruction multiplies bytes without a sign by bytes
// with one. For scores the keys are taken 128 higher, which adds the same to all dots of a query; for
// the mix the weights have no sign anyway.
#pragma once

namespace greenroom {

using QueryCode = int8_t;
using WeightCode = uint8_t;

constexpr int kAtOnce = 6;  // queries whose sums stay in registers, four each
constexpr int kFew = 4;     // up to so many queries, nothing is turned in memory

// Codes of one query head; returns their scale.
inline float quantize_query(const float* x, int dim, QueryCode* codes) {
  float largest = largest_abs(x, dim);
  const __m512 inverse =
      _mm512_set1_ps(largest > kTiny ? float(kQueryCode) / largest : 0.0f);
  for (int i = 0; i < dim; i += 16)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i),
                     _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(
                         _mm512_mul_ps(_mm512_loadu_ps(x + i), inverse))));
  return largest * float(1.0 / kQueryCode);
}

// The bytes [d, d + 64) of a row of `dim`, zeros behind its end.
GREENROOM_INLINE __m512i load_row(const int8_t* row, int d, int dim) {
  if (dim - d >= 64) return _mm512_loadu_si512(row + d);
  return _mm512_maskz_loadu_epi8((uint64_t(1) << (dim - d)) - 1, row + d);
}

// Four keys, 128 higher, side by side: column[j] holds, in its quarter q, column 4 q + j of each.
struct FourKeys {
  __m512i column[4];

  GREENROOM_INLINE FourKeys(const int8_t* keys, int64_t stride, int d, int dim) {
    const __m512i up = _mm512_set1_epi8(int8_t(0x80));
    __m512i r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) r[i] = _mm512_xor_si512(load_row(keys + i * stride, d, dim), up);
    __m512i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    __m512i c = _mm512_unpacklo_epi32(r[2], r[3]), e = _mm512_unpackhi_epi32(r[2], r[3]);
    column[0] = _mm512_unpacklo_epi64(a, c);
    column[1] = _mm512_unpackhi_epi64(a, c);
    column[2] = _mm512_unpacklo_epi64(b, e);
    column[3] = _mm512_unpackhi_epi64(b, e);
  }
};

// 16 keys, 128 higher, to columns: turned[d / 4 * 64 + key] holds four dimensions of a key.
inline void turn_keys(const int8_t* keys, int64_t stride, int dim, int32_t* turned, Ahead& ahead) {
  for (int d = 0; d < dim; d += 64) {
    ahead.ask(4);
    const FourKeys a(keys, stride, d, dim), b(keys + 4 * stride, stride, d, dim);
    const FourKeys c(keys + 8 * stride, stride, d, dim), e(keys + 12 * stride, stride, d, dim);
    int32_t* to = turned + d / 4 * kPage;
    auto store = [&](int column, __m512i x) __attribute__((always_inline)) {
      if (d + column * 4 < dim) _mm512_store_si512(to + column * kPage, x);
    };
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      __m512i even = _mm512_shuffle_i32x4(a.column[j], b.column[j], 0x88);
      __m512i odd = _mm512_shuffle_i32x4(a.column[j], b.column[j], 0xdd);
      __m512i even_too = _mm512_shuffle_i32x4(c.column[j], e.column[j], 0x88);
      __m512i odd_too = _mm512_shuffle_i32x4(c.column[j], e.column[j], 0xdd);
      store(j, _mm512_shuffle_i32x4(even, even_too, 0x88));
      store(8 + j, _mm512_shuffle_i32x4(even, even_too, 0xdd));
      store(4 + j, _mm512_shuffle_i32x4(odd, odd_too, 0x88));
      store(12 + j, _mm512_shuffle_i32x4(odd, odd_too, 0xdd));
    }
  }
}

// What keys that are 128 higher add to the dots of a query.
inline int32_t surplus_of(const QueryCode* q, int dim) {
  __m512i sum = _mm512_setzero_si512();
  for (int d = 0; d < dim; d += 64)
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), load_row(q, d, dim));
  return _mm512_reduce_add_epi32(sum) * 128;
}

// Dots of N queries with the turned keys of a page, 16 G keys from `turned` on.
template <int N, int G>
__attribute__((noinline)) void dots(const QueryCode* const* q, int dim, const int32_t* turned,
                                    float (*out)[kSpan], int at, Ahead& ahead) {
  __m512i sum[N][G];
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[n][g] = _mm512_set1_epi32(-surplus_of(q[n], dim));
  for (int d = 0; d < dim; d += 4, turned += kPage) {
    __m512i key[G];
    ahead.ask(3);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) key[g] = _mm512_load_si512(turned + g * 16);
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) {
      __m512i four = broadcast_four(reinterpret_cast<const uint8_t*>(q[n] + d));
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) sum[n][g] = _mm512_dpbusd_epi32(sum[n][g], key[g], four);
    }
  }
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g)
      _mm512_store_ps(out[n] + at + g * 16, _mm512_cvtepi32_ps(sum[n][g]));
}

template <int G, int N = kAtOnce>
inline void dots_of(int count, const QueryCode* const* q, int dim, const int32_t* turned,
                    float (*out)[kSpan], int at, Ahead& ahead) {
  if constexpr (N > 1) {
    if (count < N) return dots_of<G, N - 1>(count, q, dim, turned, out, at, ahead);
  }
  dots<N, G>(q, dim, turned, out, at, ahead);
}

// Dots of N queries with 16 keys from `keys` on. A sum's quarters are columns of their own until all
// four keys' worth are there.
template <int N>
__attribute__((noinline)) void few_dots(const QueryCode* const* q, int dim, const int8_t* keys,
                                        int64_t stride, float (*out)[kSpan], int at,
                                        Ahead& ahead) {
  __m512i sum[N][4];
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[n][i] = _mm512_setzero_si512();
  for (int d = 0; d < dim; d += 64) {
    __m512i mine[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) mine[n] = load_row(q[n], d, dim);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      ahead.ask(4);
      FourKeys four(keys + i * 4 * stride, stride, d, dim);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        auto times = [&](int j, __m512i same) __attribute__((always_inline)) {
          sum[n][i] = _mm512_dpbusd_epi32(sum[n][i], four.column[j], same);
        };
        times(0, _mm512_shuffle_epi32(mine[n], _MM_PERM_AAAA));
        times(1, _mm512_shuffle_epi32(mine[n], _MM_PERM_BBBB));
        times(2, _mm512_shuffle_epi32(mine[n], _MM_PERM_CCCC));
        times(3, _mm512_shuffle_epi32(mine[n], _MM_PERM_DDDD));
      }
    }
  }
  auto halved = [](__m512i a, __m512i b) __attribute__((always_inline)) {  // quarters 0 + 1, 2 + 3
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
  };
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) {
    __m512i all = halved(halved(sum[n][0], sum[n][1]), halved(sum[n][2], sum[n][3]));
    all = _mm512_sub_epi32(all, _mm512_set1_epi32(surplus_of(q[n], dim)));
    _mm512_store_ps(out[n] + at, _mm512_cvtepi32_ps(all));
  }
}

template <int N = kFew>
inline void few_dots_of(int count, const QueryCode* const* q, int dim, const int8_t* keys,
                        int64_t stride, float (*out)[kSpan], int at, Ahead& ahead) {
  if constexpr (N > 1) {
    if (count < N) return few_dots_of<N - 1>(count, q, dim, keys, stride, out, at, ahead);
  }
  few_dots<N>(q, dim, keys, stride, out, at, ahead);
}

// Whole-number dots of all queries with keys [begin, end) of page p of a span, and some beside them.
inline void score_page(const QueryCode* const* q, int count, int dim, const PageView& page, int p,
                       int begin, int end, float (*out)[kSpan], Ahead& ahead) {
  int first = begin / 16, last = (end + 15) / 16;
  if (count <= kFew) {
    for (int g = first; g < last; ++g)
      few_dots_of(count, q, dim, page.k + g * 16 * page.stride, page.stride, out,
                  p * kPage + g * 16, ahead);
    return;
  }
  alignas(64) int32_t turned[kMaxDim / 4 * kPage];
  for (int g = first; g < last; ++g)
    turn_keys(page.k + g * 16 * page.stride, page.stride, dim, turned + g * 16, ahead);
  for (int i = 0; i < count; i += kAtOnce) {
    int rows = std::min(kAtOnce, count - i);
    if (last - first == 4) {
      dots_of<4>(rows, q + i, dim, turned, out + i, p * kPage, ahead);
    } else {
      for (int g = first; g < last; ++g)
        dots_of<1>(rows, q + i, dim, turned + g * 16, out + i, p * kPage + g * 16, ahead);
    }
  }
}

// 64 dimensions of the values of four keys, interleaved: in its quarter q, mixed[j] holds the
// dimensions 16 q + 4 j and on.
struct FourValues {
  __m512i mixed[4];

  GREENROOM_INLINE FourValues(const int8_t* values, int64_t stride, int d, int dim) {
    __m512i a = load_row(values, d, dim), b = load_row(values + stride, d, dim);
    __m512i c = load_row(values + 2 * stride, d, dim), e = load_row(values + 3 * stride, d, dim);
    __m512i ab = _mm512_unpacklo_epi8(a, b), ce = _mm512_unpacklo_epi8(c, e);
    mixed[0] = _mm512_unpacklo_epi16(ab, ce);
    mixed[1] = _mm512_unpackhi_epi16(ab, ce);
    ab = _mm512_unpackhi_epi8(a, b), ce = _mm512_unpackhi_epi8(c, e);
    mixed[2] = _mm512_unpacklo_epi16(ab, ce);
    mixed[3] = _mm512_unpackhi_epi16(ab, ce);
  }
};

// Whole sums of N queries over keys [begin, end) of a span: weights times values.
template <int N>
__attribute__((noinline)) void few_values(const WeightCode (*weights)[kSpan], int dim,
                                          const PageView* pages, int begin, int end,
                                          int32_t (*sums)[kMaxDim], Ahead& ahead) {
  for (int d = 0; d < dim; d += 64) {
    __m512i sum[N][4];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[n][j] = _mm512_setzero_si512();
    for (int s = begin & ~3; s < end; s += 4) {
      ahead.ask(2);
      const PageView& page = pages[s / kPage];
      FourValues four(page.v + s % kPage * page.stride, page.stride, d, dim);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        __m512i by = broadcast_four(weights[n] + s);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sum[n][j] = _mm512_dpbusd_epi32(sum[n][j], by, four.mixed[j]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) _mm512_store_si512(sums[n] + d + j * 16, sum[n][j]);
  }
}

template <int N = kFew>
inline void few_values_of(int count, const WeightCode (*weights)[kSpan], int dim,
                          const PageView* pages, int begin, int end, int32_t (*sums)[kMaxDim],
                          Ahead& ahead) {
  if constexpr (N > 1) {
    if (count < N) return few_values_of<N - 1>(count, weights, dim, pages, begin, end, sums, ahead);
  }
  few_values<N>(weights, dim, pages, begin, end, sums, ahead);
}

// Adds weights times `fours` times four turned values to whole sums of N queries, in 64 dimensions.
template <int N>
__attribute__((noinline)) void add_values(const WeightCode (*weights)[kSpan], int at, int fours,
                                          const int8_t* turned, int32_t* sums, int64_t stride,
                                    Ahead& ahead) {
  __m512i sum[N][4];
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) sum[n][j] = _mm512_load_si512(sums + n * stride + j * 16);
  for (int i = 0; i < fours; ++i, turned += 256) {
    __m512i value[4];
    ahead.ask(3);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) value[j] = _mm512_load_si512(turned + j * 64);
#pragma GCC unroll 6
    for (int n = 0; n < N; ++n) {
      __m512i four = broadcast_four(weights[n] + at + i * 4);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) sum[n][j] = _mm512_dpbusd_epi32(sum[n][j], four, value[j]);
    }
  }
#pragma GCC unroll 6
  for (int n = 0; n < N; ++n)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_store_si512(sums + n * stride + j * 16, sum[n][j]);
}

template <int N = kAtOnce>
inline void add_values_of(int count, const WeightCode (*weights)[kSpan], int at, int fours,
                          const int8_t* turned, int32_t* sums, int64_t stride, Ahead& ahead) {
  if constexpr (N > 1) {
    if (count < N)
      return add_values_of<N - 1>(count, weights, at, fours, turned, sums, stride, ahead);
  }
  add_values<N>(weights, at, fours, turned, sums, stride, ahead);
}

// The same for any number of queries, whose values are turned a page at a time.
inline void many_values(const WeightCode (*weights)[kSpan], int count, int dim,
                        const PageView* pages, int begin, int end, int32_t (*sums)[kMaxDim],
                        Ahead& ahead) {
  constexpr int kChunk = 64, kChunkBytes = kPage * kChunk;
  alignas(64) int8_t turned[kMaxDim / kChunk * kChunkBytes];
  const int padded_dim = (dim + kChunk - 1) / kChunk * kChunk;
  for (int i = 0; i < count; ++i) std::memset(sums[i], 0, sizeof(int32_t) * padded_dim);
  for (int p = begin / kPage; p * kPage < end; ++p) {
    int first = first_of(p, begin) & ~3, fours = (end_of(p, end) - first + 3) / 4;
    const int64_t stride = pages[p].stride;
    for (int i = 0; i < fours; ++i)
      for (int d = 0; d < dim; d += kChunk) {
        FourValues four(pages[p].v + (first + i * 4) * stride, stride, d, dim);
        for (int j = 0; j < 4; ++j)
          _mm512_store_si512(turned + i * 256 + d / kChunk * kChunkBytes + j * 64, four.mixed[j]);
      }
    for (int i = 0; i < count; i += kAtOnce)
      for (int d = 0; d < dim; d += kChunk)
        add_values_of(std::min(kAtOnce, count - i), weights + i, p * kPage + first, fours,
                      turned + d / kChunk * kChunkBytes, sums[i] + d, kMaxDim, ahead);
  }
}

// The weighted sum of values over keys [begin, end) of a span: out [count, dim].
inline void mix_span(const WeightCode (*weights)[kSpan], const float* step, int count, int dim,
                     const PageView* pages, int begin, int end, float* out, Ahead& ahead) {
  alignas(64) int32_t sums[kQueries][kMaxDim];
  if (count <= kFew) {
    few_values_of(count, weights, dim, pages, begin, end, sums, ahead);
  } else {
    many_values(weights, count, dim, pages, begin, end, sums, ahead);
  }
  for (int i = 0; i < count; ++i) {
    const __m128 by = _mm_set1_ps(step[i]);
    float* row = out + int64_t(i) * dim;
    for (int d = 0; d < dim; d += 4) {  // from register d / 4 % 4, quarter d / 16 % 4
      const int32_t* from = sums[i] + d / 64 * 64 + d / 4 % 4 * 16 + d / 16 % 4 * 4;
      __m128i whole = _mm_load_si128(reinterpret_cast<const __m128i*>(from));
      _mm_storeu_ps(row + d, _mm_mul_ps(_mm_cvtepi32_ps(whole), by));
    }
  }
}

// From dots to weights of one query that sees keys [from, to) of a span; `score` has [begin, end),
// multiples of 16, and is written over. Returns the codes' step.
inline float weigh(float* score, float scale, const float* k_scale, const float* v_scale, int from,
                   int to, int begin, int end, WeightCode* codes, float* largest, float* sum,
                   Ahead& ahead) {
  auto seen = [&](int s) __attribute__((always_inline)) {
    uint32_t below = to - s >= 16 ? 0xffff : to <= s ? 0 : (1u << (to - s)) - 1;
    uint32_t before = from <= s ? 0 : from - s >= 16 ? 0xffff : (1u << (from - s)) - 1;
    return __mmask16(below & ~before);
  };
  const __m512 by = _mm512_set1_ps(scale), nothing = _mm512_set1_ps(-INFINITY);
  __m512 top = nothing;
  for (int s = begin; s < end; s += 16) {
    __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(score + s), by),
                             _mm512_load_ps(k_scale + s));
    x = _mm512_mask_mov_ps(nothing, seen(s), x);
    _mm512_store_ps(score + s, x);
    top = _mm512_max_ps(top, x);
  }
  *largest = _mm512_reduce_max_ps(top);
  top = _mm512_set1_ps(*largest);
  const __m512 steps = _mm512_set1_ps(4194304.0f);
  __m512 widest = _mm512_setzero_ps();
  __m512i total = _mm512_setzero_si512();
  for (int s = begin; s < end; s += 16) {
    __mmask16 here = seen(s);
    ahead.ask(4);
    __m512 weight = exp16(_mm512_sub_ps(_mm512_load_ps(score + s), top), here);
    total = _mm512_add_epi32(total, _mm512_cvtps_epi32(_mm512_mul_ps(weight, steps)));
    weight = _mm512_maskz_mul_ps(here, weight, _mm512_load_ps(v_scale + s));
    _mm512_store_ps(score + s, weight);
    widest = _mm512_max_ps(widest, weight);
  }
  *sum = float(_mm512_reduce_add_epi32(total)) * (1.0f / 4194304.0f);
  float most = _mm512_reduce_max_ps(widest);
  const __m512 inverse = _mm512_set1_ps(most > kTiny ? float(kWeightCode) / most : 0.0f);
  for (int s = begin; s < end; s += 16)
    _mm_store_si128(reinterpret_cast<__m128i*>(codes + s),
                    _mm512_cvtusepi32_epi8(_mm512_cvtps_epi32(
                        _mm512_mul_ps(_mm512_load_ps(score + s), inverse))));
  return most * float(1.0 / kWeightCode);
}

}  // namespace greenroom

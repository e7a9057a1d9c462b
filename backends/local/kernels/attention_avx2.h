// The insides of a span on AVX2: queries and weights in 16 bits (vpmaddwd).
#pragma once

namespace greenroom {

using QueryCode = int16_t;
using WeightCode = int16_t;

// Codes of one query head; returns their scale.
inline float quantize_query(const float* x, int dim, QueryCode* codes) {
  return quantize_row(x, dim, kQueryCode, codes);
}

// Running sums of N queries with four keys. A struct in a struct, as in gemm.h.
template <int N>
struct Dots {
  Dots<N - 1> rest;
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;

  GREENROOM_INLINE void add(const int16_t* const* q, int at, __m256i k0, __m256i k1, __m256i k2,
                            __m256i k3) {
    rest.add(q, at, k0, k1, k2, k3);
    __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q[N - 1] + at));
    add_products(a, k0, x);
    add_products(b, k1, x);
    add_products(c, k2, x);
    add_products(d, k3, x);
  }

  GREENROOM_INLINE void store(float (*out)[kSpan], int s) const {
    rest.store(out, s);
    __m256i h = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    __m128i total = _mm_add_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    _mm_storeu_ps(out[N - 1] + s, _mm_cvtepi32_ps(total));
  }
};

template <>
struct Dots<0> {
  template <typename... Any>
  GREENROOM_INLINE void add(Any...) {}
  GREENROOM_INLINE void store(float (*)[kSpan], int) const {}
};

// Whole-number dots of N queries with keys [begin, end) of a page, four keys at a time; the first
// key of the page has place `at`.
template <int N>
__attribute__((noinline)) void dots(const int16_t* const* q, int dim, const PageView& page,
                                    int begin, int end, float (*out)[kSpan], int at) {
  const int64_t stride = page.stride;
  auto wide = [](const int8_t* at) __attribute__((always_inline)) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  };
  for (int s = begin; s < end; s += 4) {
    const int8_t* key = page.k + s * stride;
    Dots<N> sums;
    for (int d = 0; d < dim; d += 16, key += 16)
      sums.add(q, d, wide(key), wide(key + stride), wide(key + 2 * stride),
               wide(key + 3 * stride));
    sums.store(out, at + s);
  }
}

// Running sums of sixteen values for N queries: weights times values, two keys at a time.
template <int N>
struct Mixed {
  Mixed<N - 1> rest;
  __m256i low = _mm256_setzero_si256(), high = low;

  GREENROOM_INLINE void add(const int16_t (*weights)[kSpan], int s, __m256i v0, __m256i v1) {
    rest.add(weights, s, v0, v1);
    __m256i pair = broadcast_pair(weights[N - 1] + s);
    add_products(low, v0, pair);
    add_products(high, v1, pair);
  }

  GREENROOM_INLINE void store(const float* step, float* out, int dim) const {
    rest.store(step, out, dim);
    __m256 by = _mm256_set1_ps(step[N - 1]);
    float* at = out + int64_t(N - 1) * dim;
    _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_cvtepi32_ps(low), by));
    _mm256_storeu_ps(at + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high), by));
  }
};

template <>
struct Mixed<0> {
  template <typename... Any>
  GREENROOM_INLINE void add(Any...) {}
  template <typename... Any>
  GREENROOM_INLINE void store(Any...) const {}
};

// Whole-number dots of all queries with keys [begin, end) of page p of a span.
inline void score_page(const QueryCode* const* q, int count, int dim, const PageView& page, int p,
                       int begin, int end, float (*out)[kSpan], Ahead& ahead) {
  ahead.ask_for_page();
  int i = 0;
  begin &= ~3;
  end = (end + 3) & ~3;
  for (; i + 2 <= count; i += 2) dots<2>(q + i, dim, page, begin, end, out + i, p * kPage);
  if (i < count) dots<1>(q + i, dim, page, begin, end, out + i, p * kPage);
}

// The weighted sum of values over keys [begin, end) of a span, both even, for N queries.
template <int N>
__attribute__((noinline)) void mix(const WeightCode (*weights)[kSpan], const float* step, int dim,
                                   const PageView* pages, int begin, int end, float* out) {
  for (int d = 0; d < dim; d += 16) {
    Mixed<N> sums;
    for (int p = begin / kPage; p * kPage < end; ++p) {
      int s = first_of(p, begin), last = end_of(p, end);
      const int64_t stride = pages[p].stride;
      for (const int8_t* v = pages[p].v + s * stride + d; s < last; s += 2, v += 2 * stride) {
        __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v));
        __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(v + stride));
        sums.add(weights, p * kPage + s, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)),
                 _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)));
      }
    }
    sums.store(step, out + d, dim);
  }
}

// The same for any number of queries.
inline void mix_span(const WeightCode (*weights)[kSpan], const float* step, int count, int dim,
                     const PageView* pages, int begin, int end, float* out, Ahead&) {
  begin &= ~1;
  end = (end + 1) & ~1;
  int i = 0;
  for (; i + 4 <= count; i += 4)
    mix<4>(weights + i, step + i, dim, pages, begin, end, out + int64_t(i) * dim);
  float* rest = out + int64_t(i) * dim;
  switch (count - i) {
    case 3: mix<3>(weights + i, step + i, dim, pages, begin, end, rest); break;
    case 2: mix<2>(weights + i, step + i, dim, pages, begin, end, rest); break;
    case 1: mix<1>(weights + i, step + i, dim, pages, begin, end, rest); break;
  }
}

// From dots to weights of one query that sees keys [from, to) of a span; `score` has [begin, end),
// multiples of 16, and is written over. Returns the codes' step.
inline float weigh(float* score, float scale, const float* k_scale, const float* v_scale, int from,
                   int to, int begin, int end, WeightCode* codes, float* largest, float* sum,
                   Ahead&) {
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i low = _mm256_set1_epi32(from), high = _mm256_set1_epi32(to);
  auto seen = [&](int s) __attribute__((always_inline)) {
    __m256i at = _mm256_add_epi32(lanes, _mm256_set1_epi32(s));
    return _mm256_castsi256_ps(
        _mm256_andnot_si256(_mm256_cmpgt_epi32(low, at), _mm256_cmpgt_epi32(high, at)));
  };
  const __m256 by = _mm256_set1_ps(scale), nothing = _mm256_set1_ps(-INFINITY);
  __m256 top = nothing;
  for (int s = begin; s < end; s += 8) {
    __m256 x = _mm256_mul_ps(_mm256_mul_ps(_mm256_load_ps(score + s), by),
                             _mm256_load_ps(k_scale + s));
    x = _mm256_blendv_ps(nothing, x, seen(s));
    _mm256_store_ps(score + s, x);
    top = _mm256_max_ps(top, x);
  }
  *largest = max_lane(top);
  top = _mm256_set1_ps(*largest);
  const __m256 steps = _mm256_set1_ps(4194304.0f);
  __m256 widest = _mm256_setzero_ps();
  __m256i total = _mm256_setzero_si256();
  for (int s = begin; s < end; s += 8) {
    __m256 here = seen(s);
    __m256 weight = _mm256_and_ps(exp8(_mm256_sub_ps(_mm256_load_ps(score + s), top)), here);
    total = _mm256_add_epi32(total, _mm256_cvtps_epi32(_mm256_mul_ps(weight, steps)));
    weight = _mm256_and_ps(_mm256_mul_ps(weight, _mm256_load_ps(v_scale + s)), here);
    _mm256_store_ps(score + s, weight);
    widest = _mm256_max_ps(widest, weight);
  }
  *sum = float(add_lanes(total)) * (1.0f / 4194304.0f);
  float most = max_lane(widest);
  const __m256 inverse = _mm256_set1_ps(most > kTiny ? float(kWeightCode) / most : 0.0f);
  for (int s = begin; s < end; s += 16)
    _mm256_store_si256(reinterpret_cast<__m256i*>(codes + s),
                       to_codes(_mm256_mul_ps(_mm256_load_ps(score + s), inverse),
                                _mm256_mul_ps(_mm256_load_ps(score + s + 8), inverse)));
  return most * float(1.0 / kWeightCode);
}

}  // namespace greenroom

// Float arithmetic of the int8 engine, on AVX2 unless more is there, each operation as in
// reference.py and in its order.
// Compiled without contraction: a multiply and an add are two roundings here as in PyTorch.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace greenroom {

constexpr int kPage = 64;        // tokens of a KV page
// The widest codes of queries, and of attention weights, which have no sign.
constexpr int kQueryCode = 127, kWeightCode = 255;
constexpr float kTiny = 1e-30f;  // rows no larger than this are zeros

#define GREENROOM_INLINE inline __attribute__((always_inline))

// sum += a * b, pairs of 16-bit products added. In assembly because GCC gives the new sum another
// register than the old one, and then has too few.
GREENROOM_INLINE void add_products(__m256i& sum, __m256i a, __m256i b) {
  __m256i product;
  asm("vpmaddwd %[a], %[b], %[product]\n\tvpaddd %[product], %[sum], %[sum]"
      : [sum] "+x"(sum), [product] "=&x"(product)
      : [a] "x"(a), [b] "x"(b));
}

// Two 16-bit codes in every 32-bit lane. Volatile, or GCC loads ahead until registers run out.
GREENROOM_INLINE __m256i broadcast_pair(const int16_t* pair) {
  typedef int32_t __attribute__((may_alias)) Pair;
  __m256i out;
  asm volatile("vpbroadcastd %1, %0" : "=x"(out) : "m"(*reinterpret_cast<const Pair*>(pair)));
  return out;
}

inline __m256 exp8(__m256 x) {
  const __m256 low = _mm256_set1_ps(-86.0f);
  __m256 cut = _mm256_min_ps(_mm256_max_ps(x, low), _mm256_set1_ps(88.0f));
  __m256 n = _mm256_round_ps(_mm256_mul_ps(cut, _mm256_set1_ps(1.44269504f)),
                             _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_sub_ps(
      _mm256_sub_ps(cut, _mm256_mul_ps(n, _mm256_set1_ps(0.693359375f))),
      _mm256_mul_ps(n, _mm256_set1_ps(-2.12194440e-4f)));
  __m256 y = _mm256_add_ps(_mm256_mul_ps(r, _mm256_set1_ps(float(1.0 / 720))),
                           _mm256_set1_ps(float(1.0 / 120)));
  for (float c : {float(1.0 / 24), float(1.0 / 6), 0.5f, 1.0f, 1.0f})
    y = _mm256_add_ps(_mm256_mul_ps(y, r), _mm256_set1_ps(c));
  __m256i power = _mm256_slli_epi32(
      _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  y = _mm256_mul_ps(y, _mm256_castsi256_ps(power));
  return _mm256_andnot_ps(_mm256_cmp_ps(x, low, _CMP_LT_OQ), y);
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
// e to the x where x is at most 0, as exp8, and 0 elsewhere than in `where`.
GREENROOM_INLINE __m512 exp16(__m512 x, __mmask16 where) {
  const __m512 low = _mm512_set1_ps(-86.0f);
  __m512 cut = _mm512_max_ps(x, low);
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(cut, _mm512_set1_ps(1.44269504f)),
                                  _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_sub_ps(
      _mm512_sub_ps(cut, _mm512_mul_ps(n, _mm512_set1_ps(0.693359375f))),
      _mm512_mul_ps(n, _mm512_set1_ps(-2.12194440e-4f)));
  __m512 y = _mm512_add_ps(_mm512_mul_ps(r, _mm512_set1_ps(float(1.0 / 720))),
                           _mm512_set1_ps(float(1.0 / 120)));
  for (float c : {float(1.0 / 24), float(1.0 / 6), 0.5f, 1.0f, 1.0f})
    y = _mm512_add_ps(_mm512_mul_ps(y, r), _mm512_set1_ps(c));
  return _mm512_maskz_scalef_ps(_mm512_mask_cmp_ps_mask(where, x, low, _CMP_NLT_UQ), y, n);
}

// Four bytes in every 32-bit lane.
GREENROOM_INLINE __m512i broadcast_four(const uint8_t* at) {
  int32_t four;
  std::memcpy(&four, at, 4);
  return _mm512_set1_epi32(four);
}
#endif

inline float exp1(float x) { return _mm256_cvtss_f32(exp8(_mm256_set1_ps(x))); }

inline __m256 abs8(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }

inline float max_lane(__m256 x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

// Writes `count` of a block of 16 logits, past the caches: nobody reads most of them again. Returns
// the largest, or a NaN where one is. The caller fences.
inline float store_logits(const float* block, int count, float* to) {
  __m256 low = _mm256_load_ps(block), high = _mm256_load_ps(block + 8);
  if (count < 16) {
    float largest = block[0];
    for (int i = 0; i < count; ++i) {
      to[i] = block[i];
      if (!(block[i] <= largest) && largest == largest) largest = block[i];
    }
    return largest;
  }
  if (reinterpret_cast<uintptr_t>(to) % 32 == 0) {
    _mm256_stream_ps(to, low);
    _mm256_stream_ps(to + 8, high);
  } else {
    _mm256_storeu_ps(to, low);
    _mm256_storeu_ps(to + 8, high);
  }
  bool strange = _mm256_movemask_ps(_mm256_cmp_ps(low, high, _CMP_UNORD_Q));
  return strange ? NAN : max_lane(_mm256_max_ps(low, high));
}

// The last three steps of halves_sum: lane i + lane i + 4, then 2, then 1.
inline float halves8(__m256 x) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}

inline int32_t add_lanes(__m256i x) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  s = _mm_add_epi32(s, _mm_unpackhi_epi64(s, s));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 1)));
}

inline int power_of_two(int n) {
  int size = 1;
  while (size < n) size *= 2;
  return size;
}

// halves_sum of x * x; n is a multiple of 8; `work` has room for n floats.
inline float sum_of_squares(const float* x, int n, float* work) {
  int size = power_of_two(n);
  for (int i = 0; i < n; i += 8) {
    __m256 v = _mm256_loadu_ps(x + i);
    _mm256_storeu_ps(work + i, _mm256_mul_ps(v, v));
  }
  for (int half = size / 2, count = n; half >= 8; half /= 2) {
    for (int i = 0; i + half < count; i += 8)
      _mm256_storeu_ps(work + i, _mm256_add_ps(_mm256_loadu_ps(work + i),
                                               _mm256_loadu_ps(work + i + half)));
    if (count > half) count = half;
  }
  return halves8(_mm256_loadu_ps(work));
}

// out = x / rms(x) * weight; out may be x.
inline void rms_norm(const float* x, const float* weight, float* out, int n, float eps,
                     float* work) {
  float mean = sum_of_squares(x, n, work) * float(1.0 / n);
  __m256 inverse = _mm256_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean + eps))));
  for (int i = 0; i < n; i += 8)
    _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse),
                                            _mm256_loadu_ps(weight + i)));
}

inline float largest_abs(const float* x, int n) {
  __m256 m = _mm256_setzero_ps();
  for (int i = 0; i < n; i += 8) m = _mm256_max_ps(m, abs8(_mm256_loadu_ps(x + i)));
  return max_lane(m);
}

// Sixteen floats to int16: round half to even.
inline __m256i to_codes(__m256 a, __m256 b) {
  __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
  return _mm256_permute4x64_epi64(packed, 0xD8);
}

// Codes of one row, `wider` times smaller than its largest asks for (a power of two); returns its
// scale. n is a multiple of 16.
inline float quantize_row(const float* x, int n, int max_code, int16_t* codes,
                          float wider = 1.0f) {
  float largest = largest_abs(x, n);
  __m256 inverse =
      _mm256_set1_ps(largest > kTiny ? float(max_code) / largest / wider : 0.0f);
  for (int i = 0; i < n; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i),
                        to_codes(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse),
                                 _mm256_mul_ps(_mm256_loadu_ps(x + i + 8), inverse)));
  return largest * float(1.0 / max_code) * wider;
}

// int8 codes and the fp16 scale of one head of a key or value. n is a multiple of 16.
inline uint16_t quantize_kv(const float* x, int n, int8_t* codes) {
  float ideal = largest_abs(x, n) * float(1.0 / 127);
  uint16_t half = _cvtss_sh(ideal < 65504.0f ? ideal : 65504.0f, _MM_FROUND_TO_NEAREST_INT);
  float scale = _cvtsh_ss(half);
  if (scale == 0.0f) {
    std::memset(codes, 0, n);
    return half;
  }
  const __m256 s = _mm256_set1_ps(scale);
  const __m256i top = _mm256_set1_epi16(127), bottom = _mm256_set1_epi16(-127);
  for (int i = 0; i < n; i += 16) {
    __m256i c = to_codes(_mm256_div_ps(_mm256_loadu_ps(x + i), s),
                         _mm256_div_ps(_mm256_loadu_ps(x + i + 8), s));
    c = _mm256_max_epi16(_mm256_min_epi16(c, top), bottom);
    c = _mm256_permute4x64_epi64(_mm256_packs_epi16(c, c), 0xD8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), _mm256_castsi256_si128(c));
  }
  return half;
}

// Rotates the two halves of one head in place. dim is a multiple of 16.
inline void rope(float* x, const float* cos, const float* sin, int dim) {
  int half = dim / 2;
  for (int i = 0; i < half; i += 8) {
    __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + half + i);
    __m256 c = _mm256_loadu_ps(cos + i), s = _mm256_loadu_ps(sin + i);
    _mm256_storeu_ps(x + i, _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, s)));
    _mm256_storeu_ps(x + half + i, _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, s)));
  }
}

// act(x) * up; gelu says tanh-GELU, else SiLU.
inline __m256 gate8(__m256 x, __m256 up, bool gelu) {
  __m256 z = x;
  if (gelu) {
    __m256 cube = _mm256_mul_ps(_mm256_mul_ps(_mm256_mul_ps(x, x), x), _mm256_set1_ps(0.044715f));
    z = _mm256_mul_ps(_mm256_add_ps(x, cube), _mm256_set1_ps(1.5957691216f));
  }
  __m256 e = exp8(_mm256_xor_ps(z, _mm256_set1_ps(-0.0f)));
  return _mm256_mul_ps(_mm256_div_ps(x, _mm256_add_ps(e, _mm256_set1_ps(1.0f))), up);
}

}  // namespace greenroom

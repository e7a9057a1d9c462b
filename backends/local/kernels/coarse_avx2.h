// The first look on AVX2; see coarse.h. Bytes with a sign are multiplied as their magnitudes with
// others that take it over (vpmaddubsw): two products of 127 times 127 fit in 16 bits.
#pragma once

namespace greenroom {

constexpr int kLooks = 1;  // up to so many rows a coarse look costs less than to read the head

inline int code_at(const uint8_t* codes, int i) {
  return reinterpret_cast<const int16_t*>(codes)[i];
}

// sum += bytes, four to a lane, times four bytes that are the same in all lanes.
GREENROOM_INLINE void add_four(__m256i& sum, __m256i bytes, __m256i four, __m256i magnitude) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(bytes, four));
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// A block's products of levels and of rests along directions with R rows, both lifted: sums, along.
// Returns what lies behind.
template <int R>
__attribute__((noinline)) const int8_t* look(const Coarse& c, const Linear& head,
                                             const int8_t* from, const Rows& x, const Sight* sight,
                                             int32_t (*sums)[kBlock], int32_t (*along)[kBlock]) {
  const auto* codes = reinterpret_cast<const int16_t*>(x.codes);
  const __m256i half = _mm256_set1_epi8(15), lift = _mm256_set1_epi8(int8_t(kLifted));
  __m256i sum[R][2], more[R][2];
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) {
      sum[r][h] = _mm256_set1_epi32(sight[r].codes_lift);
      more[r][h] = _mm256_set1_epi32(sight[r].along_lift);
    }
  auto part = [&](int h) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from) + h); };
  auto table = [&](int group) __attribute__((always_inline)) {
    const auto* at = reinterpret_cast<const __m128i*>(c.levels + group * kLevels);
    return _mm256_xor_si256(_mm256_broadcastsi128_si256(_mm_loadu_si128(at)), lift);
  };
  for (int i = 0; i < head.k; i += 8, from += 64) {
    ask_ahead<_MM_HINT_NTA>(from);
    const __m256i low = table(i / 4), high = table(i / 4 + 1);
    for (int r = 0; r < R; ++r) {
      const auto* at = reinterpret_cast<const __m128i*>(codes + int64_t(r) * head.k + i);
      const __m128i eight = _mm_packs_epi16(_mm_loadu_si128(at), _mm_setzero_si128());
      const __m256i first = _mm256_broadcastd_epi32(eight);
      const __m256i second = _mm256_broadcastd_epi32(_mm_srli_si128(eight, 4));
      const __m256i a = _mm256_abs_epi8(first), b = _mm256_abs_epi8(second);
      for (int h = 0; h < 2; ++h) {
        const __m256i both = part(h);
        const __m256i top = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
        add_four(sum[r][h], _mm256_shuffle_epi8(low, _mm256_and_si256(both, half)), first, a);
        add_four(sum[r][h], _mm256_shuffle_epi8(high, top), second, b);
      }
    }
  }
  for (int d = 0; d < kDirections; d += 4, from += 64) {
    ask_ahead<_MM_HINT_NTA>(from);
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, sight[r].along + d, 4);
      const __m256i bytes = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(bytes);
      for (int h = 0; h < 2; ++h)
        add_four(more[r][h], _mm256_xor_si256(part(h), lift), bytes, magnitude);
    }
  }
  ask_ahead<_MM_HINT_NTA>(from);
  for (int r = 0; r < R; ++r)
    for (int h = 0; h < 2; ++h) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums[r]) + h, sum[r][h]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(along[r]) + h, more[r][h]);
    }
  return from;
}

// Emits the logits of `found` blocks of the head.
template <typename Emit>
inline void read_blocks(const Linear& head, const Rows& x, const int* which, int found, Emit emit) {
  for (int i = 0; i < found; ++i) blocks(head, which[i], x, emit);
}

}  // namespace greenroom

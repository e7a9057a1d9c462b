// The token of a row of logits: what backends/local/sampling.py calls `draw`, the same token always.
//
// A row is read once for its largest logit, unless whoever made it says what the largest are, and
// once more for the sum of all weights where top-p or the draw asks for that. Candidates come from
// the groups whose largest logit says that they have some: the likeliest few first. Where these do
// not suffice, weights are summed in bins by how far below the best they lie, and the one bin that
// holds the token is looked at. No vocabulary is sorted.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "vector.h"

namespace greenroom {

// Mirrors sampling.ROW.
struct Ask {
  double uniform, top_p;
  float temperature, penalty, floor;
  int32_t top_k, begin, masked, end, wanted;
};

constexpr int32_t kNoToken = -1;  // no finite logit, or nothing was asked
constexpr int kKnown = 16;        // logits of which the largest may be known

class Draw {
 public:
  // `row` has `count` logits and is used up; the ask points into `ids`. `known`: the largest logit
  // of every kKnown, NaN where one is; or null.
  Draw(const Ask& ask, float* row, int count, const int32_t* ids, const float* known)
      : ask_(ask),
        row_(row),
        ids_(ids),
        known_(known),
        known_count_((count + kKnown - 1) / kKnown),
        largest_((count + kGroup - 1) / kGroup),
        whole_(count / kGroup) {
    for (int i = ask.begin; i < ask.masked; ++i) {
      float& x = row[ids[i]];
      x = x > 0 ? x / ask.penalty : x * ask.penalty;
    }
    for (int i = ask.masked; i < ask.end; ++i) row[ids[i]] = -INFINITY;
    std::fill(rest_, rest_ + kGroup, -INFINITY);
    std::copy(row + whole_ * kGroup, row + count, rest_);
  }

  int32_t token() {
    if (!find_best()) return kNoToken;
    if (ask_.temperature == 0) return first_best();
    if (ask_.top_k) {
      least_ = kLeast;
      collect(floor_of(ask_.top_k));
      return pick(true);
    }
    least_ = std::max(kLeast, ask_.floor);
    if (ask_.top_p < 1 || least_ == kLeast) total_ = weigh();
    float floor = floor_of(kFew);
    collect(floor);
    int32_t token = pick(scaled(floor) < least_);
    return token == kUnsure ? pick_far() : token;
  }

 private:
  static constexpr int kGroup = 64, kFew = 256, kSorted = 32;
  static constexpr int32_t kUnsure = -2;
  static constexpr float kLeast = -21.0f;  // below, a weight is less than 2**-30: nothing
  static constexpr int kBins = 1024, kAnyBin = -1;

  struct Candidate {
    float logit;
    int32_t id, weight;
    bool operator<(const Candidate& other) const {
      return logit != other.logit ? logit > other.logit : id < other.id;
    }
  };

  const float* group(size_t g) const { return g < whole_ ? row_ + g * kGroup : rest_; }

  float scaled(float logit) const { return (logit - best_) / ask_.temperature; }

  __m256 scaled(__m256 logits) const {
    return _mm256_div_ps(_mm256_sub_ps(logits, _mm256_set1_ps(best_)),
                         _mm256_set1_ps(ask_.temperature));
  }

  static __m256i weights(__m256 scaled) {
    return _mm256_cvttps_epi32(_mm256_mul_ps(exp8(scaled), _mm256_set1_ps(1 << 30)));
  }

  // How far below the best: the next bin follows in the order of candidates.
  static __m256i bins(__m256 scaled) {
    return _mm256_cvttps_epi32(_mm256_mul_ps(scaled, _mm256_set1_ps((kBins - 1) / kLeast)));
  }

  // The largest logit of each group and of all; whether that is finite, and no logit is a NaN.
  bool find_best() {
    bool strange = false;
    if (known_ && fold_known()) {
      for (int i = ask_.begin; i < ask_.end; ++i) strange |= look_at(ids_[i] / kGroup);
    } else {
      for (size_t g = 0; g < largest_.size(); ++g) strange |= look_at(g);
    }
    best_ = *std::max_element(largest_.begin(), largest_.end());
    return std::isfinite(best_) && !strange;
  }

  // The largest logit of each group from those of its four blocks; whether there is no NaN, or else
  // the row says whether that was masked.
  bool fold_known() {
    static_assert(kGroup == 4 * kKnown);
    __m128 strange = _mm_setzero_ps();
    size_t g = 0;
    for (; (g + 4) * 4 <= known_count_; g += 4) {
      __m128 x[4];
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm_loadu_ps(known_ + (g + i) * 4);
        strange = _mm_or_ps(strange, _mm_cmpunord_ps(x[i], x[i]));
      }
      _MM_TRANSPOSE4_PS(x[0], x[1], x[2], x[3]);
      _mm_storeu_ps(&largest_[g], _mm_max_ps(_mm_max_ps(x[0], x[1]), _mm_max_ps(x[2], x[3])));
    }
    bool any = _mm_movemask_ps(strange);
    std::fill(largest_.begin() + g, largest_.end(), -INFINITY);
    for (size_t i = g * 4; i < known_count_; ++i) {
      largest_[i / 4] = std::max(largest_[i / 4], known_[i]);
      any |= std::isnan(known_[i]);
    }
    return !any;
  }

  // Finds the largest logit of a group; whether there is a NaN.
  bool look_at(size_t g) {
    const float* x = group(g);
    __m256 strange = _mm256_setzero_ps(), most = _mm256_set1_ps(-INFINITY);
    for (int i = 0; i < kGroup; i += 8) {
      __m256 v = _mm256_loadu_ps(x + i);
      most = _mm256_max_ps(v, most);
      strange = _mm256_or_ps(strange, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    }
    largest_[g] = max_lane(most);
    return _mm256_movemask_ps(strange);
  }

  int32_t first_best() const {
    size_t g = std::find(largest_.begin(), largest_.end(), best_) - largest_.begin();
    return int32_t(g * kGroup + (std::find(group(g), group(g) + kGroup, best_) - group(g)));
  }

  // The sum of all weights.
  int64_t weigh() const {
    __m256i sum = _mm256_setzero_si256(), low = _mm256_set1_epi64x(0xffffffff);
    for (size_t g = 0; g < largest_.size(); ++g) {
      if (scaled(largest_[g]) < kLeast) continue;
      for (int i = 0; i < kGroup; i += 8) {
        __m256i w = weights(scaled(_mm256_loadu_ps(group(g) + i)));
        sum = _mm256_add_epi64(sum, _mm256_and_si256(w, low));
        sum = _mm256_add_epi64(sum, _mm256_srli_epi64(w, 32));
      }
    }
    alignas(32) int64_t lanes[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum);
    return lanes[0] + lanes[1] + lanes[2] + lanes[3];
  }

  // A logit that `count` entries reach, and seldom many more: so many groups have one.
  float floor_of(size_t count) const {
    if (count >= largest_.size()) return -INFINITY;
    std::vector<float> order = largest_;
    std::nth_element(order.begin(), order.begin() + count, order.end(), std::greater<float>());
    return order[count];
  }

  // Makes `candidates_` all entries that reach `floor` and `least_`, or those of one bin.
  void collect(float floor, int bin = kAnyBin) {
    candidates_.clear();
    __m256 floors = _mm256_set1_ps(floor), leasts = _mm256_set1_ps(least_);
    for (size_t g = 0; g < largest_.size(); ++g) {
      if (largest_[g] < floor || scaled(largest_[g]) < least_) continue;
      for (int i = 0; i < kGroup; i += 8) {
        const float* x = group(g) + i;
        __m256 logits = _mm256_loadu_ps(x), s = scaled(logits);
        __m256 held = _mm256_and_ps(_mm256_cmp_ps(logits, floors, _CMP_GE_OQ),
                                    _mm256_cmp_ps(s, leasts, _CMP_GE_OQ));
        if (bin != kAnyBin) {
          __m256i same = _mm256_cmpeq_epi32(bins(s), _mm256_set1_epi32(bin));
          held = _mm256_and_ps(held, _mm256_castsi256_ps(same));
        }
        int lanes = _mm256_movemask_ps(held);
        if (!lanes) continue;
        alignas(32) int32_t w[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(w), weights(s));
        for (; lanes; lanes &= lanes - 1) {
          int at = __builtin_ctz(lanes);
          candidates_.push_back({x[at], int32_t(g * kGroup + i + at), w[at]});
        }
      }
    }
  }

  // The token, or kUnsure where it may lie beyond the candidates. `whole`: whoever is none of them
  // weighs nothing or is dropped by top-k or min-p.
  int32_t pick(bool whole) {
    auto& all = candidates_;
    if (ask_.top_k) {
      size_t count = std::min(all.size(), size_t(ask_.top_k));
      std::nth_element(all.begin(), all.begin() + (count - 1), all.end());
      all.resize(count);
      total_ = mass(0, count);
      auto dropped = [&](const Candidate& c) { return scaled(c.logit) < ask_.floor; };
      all.erase(std::remove_if(all.begin(), all.end(), dropped), all.end());
    }
    int64_t here = mass(0, all.size()), kept = whole ? here : total_;
    if (ask_.top_p < 1) {
      double needed = ask_.top_p * double(total_);
      if (double(here) >= needed) {
        kept = mass(0, holder(last_before(needed)) + 1);
      } else if (!whole) {
        return kUnsure;
      }
    } else if (!whole && least_ > kLeast) {
      return kUnsure;  // how much min-p keeps is not known
    }
    int64_t at = drawn(kept);
    return at < here ? all[holder(at)].id : kUnsure;
  }

  // The token when many may be it: only those as likely as it are looked at one by one.
  int32_t pick_far() {
    std::vector<int64_t> masses = spread();
    int64_t kept = std::accumulate(masses.begin(), masses.end(), int64_t(0));
    double needed = ask_.top_p * double(total_);
    if (ask_.top_p < 1 && double(kept) >= needed) {
      int64_t before = enter(masses, last_before(needed));
      kept = before + mass(0, holder(last_before(needed) - before) + 1);
    }
    int64_t at = drawn(kept);
    int64_t before = enter(masses, at);
    return candidates_[holder(at - before)].id;
  }

  // The weights of all that reach `least_`, by bin.
  std::vector<int64_t> spread() const {
    std::vector<int64_t> masses(kBins);
    __m256 leasts = _mm256_set1_ps(least_);
    for (size_t g = 0; g < largest_.size(); ++g) {
      if (scaled(largest_[g]) < least_) continue;
      for (int i = 0; i < kGroup; i += 8) {
        __m256 s = scaled(_mm256_loadu_ps(group(g) + i));
        __m256i held = _mm256_castps_si256(_mm256_cmp_ps(s, leasts, _CMP_GE_OQ));
        alignas(32) int32_t w[8], to[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(w), _mm256_and_si256(weights(s), held));
        _mm256_store_si256(reinterpret_cast<__m256i*>(to), bins(_mm256_max_ps(s, leasts)));
        for (int j = 0; j < 8; ++j) masses[to[j]] += w[j];
      }
    }
    return masses;
  }

  // Makes `candidates_` those of the bin that holds `at` of the whole mass; what comes before it.
  int64_t enter(const std::vector<int64_t>& masses, int64_t at) {
    int64_t before = 0;
    int bin = 0;
    while (at - before >= masses[bin]) before += masses[bin++];
    collect(-INFINITY, bin);
    return before;
  }

  // The place in the mass that the nucleus ends with.
  static int64_t last_before(double needed) { return int64_t(std::ceil(needed)) - 1; }

  // The place that the uniform number names; the product may be rounded up to the whole.
  int64_t drawn(int64_t kept) const {
    return std::min(int64_t(ask_.uniform * double(kept)), kept - 1);
  }

  int64_t mass(size_t begin, size_t end) const {
    int64_t sum = 0;
    for (size_t i = begin; i < end; ++i) sum += candidates_[i].weight;
    return sum;
  }

  // Moves candidates until whose share of the whole mass holds `at`, in their order, stands in its
  // place, with all that come before it before it; returns the place.
  size_t holder(int64_t at) {
    auto first = candidates_.begin();
    size_t begin = 0, end = candidates_.size();
    while (end - begin > kSorted) {
      size_t middle = begin + (end - begin) / 2;
      std::nth_element(first + begin, first + middle, first + end);
      int64_t half = mass(begin, middle);
      if (at < half) {
        end = middle;
      } else {
        at -= half;
        begin = middle;
      }
    }
    std::sort(first + begin, first + end);
    while (at >= first[begin].weight) at -= first[begin++].weight;
    return begin;
  }

  const Ask& ask_;
  float* const row_;
  const int32_t* const ids_;
  const float* const known_;
  const size_t known_count_;
  std::vector<float> largest_;  // by group
  const size_t whole_;          // groups that lie in the row itself
  float rest_[kGroup];          // the last one
  float best_ = 0, least_ = 0;
  int64_t total_ = 0;
  std::vector<Candidate> candidates_;
};

// The first of the largest of `count` logits, as a greedy draw gives it. `known`: as for `Draw`.
inline int32_t greedy_token(const float* row, int count, const float* known) {
  const int blocks = (count + kKnown - 1) / kKnown, whole = blocks / 8 * 8;
  __m256 strange = _mm256_setzero_ps(), most = _mm256_set1_ps(-INFINITY);
  for (int b = 0; b < whole; b += 8) {
    __m256 x = _mm256_loadu_ps(known + b);
    strange = _mm256_or_ps(strange, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    most = _mm256_max_ps(most, x);
  }
  bool any = _mm256_movemask_ps(strange);
  float best = max_lane(most);
  for (int b = whole; b < blocks; ++b) {
    any |= std::isnan(known[b]);
    best = std::max(best, known[b]);
  }
  if (any || !std::isfinite(best)) return kNoToken;
  const int begin = int(std::find(known, known + blocks, best) - known) * kKnown;
  return int32_t(std::find(row + begin, row + count, best) - row);
}

}  // namespace greenroom

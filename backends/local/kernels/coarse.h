// The output head's first look, in 4 bits: which blocks may hold a row's largest logit.
//
// coarse.py says what makes that exact. A block of 16 outputs is, in lines of 64 bytes: for every 8
// inputs a line, [16 outputs][4 inputs], the first four's levels in the low halves of its bytes and
// the other four's in the high ones; what the outputs' rests have along the directions,
// [kDirections / 4][16][4], 128 higher than it is; and [16] floats, how long the rests are across.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "gemm.h"
#include "team.h"

namespace greenroom {

constexpr int kDirections = 16, kLevels = 16;
constexpr int kRuns = 64;     // of blocks: the most promising of each is read first
constexpr int kFloors = 8;    // largest logits found so, each in as many runs
constexpr int kLifted = 128;  // how much higher than they are levels and rests' bytes are stored

// Mirrored in structs.py.
struct Coarse {
  const int8_t* blocks;   // null where there are none
  const uint8_t* levels;  // [K / 4][kLevels], lifted
  const float *inputs;    // [K][kDirections]: directions, of an input's codes
  const float* weights;   // [K]: what each code of an input counts across them
  float step;             // of what rests have along directions
  float along, lost, longest;  // the most of any output: along them, not kept of it, of its codes
};

inline int64_t coarse_bytes(int k) { return int64_t(kBlock) * (k / 2 + kDirections) + 64; }

// What a row of codes is to the bound of its products.
struct Sight {
  alignas(64) int8_t along[kDirections];
  int32_t codes_lift, along_lift;  // what lifted bytes add to its sums
  float step;                      // of its sums along directions
  float across, slack;
};

}  // namespace greenroom

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "coarse_vnni.h"
#else
#include "coarse_avx2.h"
#endif

namespace greenroom {

// What sums of `k` floats may lose, as a share of the lengths that they are made of; with room.
inline double margin_of(int k) { return k * 0x1p-20; }

// The sight of a row of codes for the head. Floats here need not be exact: what they may lose is in
// `across` and `slack`.
inline Sight sight_of(const Coarse& c, const Linear& head, const uint8_t* codes) {
  float y[kDirections] = {};
  double weighed = 0, plain = 0;
  uint32_t total = 0;  // wraps where rows are no numbers, as sums do
  for (int i = 0; i < head.k; ++i) {
    const int code = code_at(codes, i);
    const float w = code * c.weights[i];
    for (int d = 0; d < kDirections; ++d) y[d] += code * c.inputs[i * kDirections + d];
    total += code;
    weighed += double(w) * w;
    plain += double(code) * code;
  }
  float most = 0;
  for (float each : y) most = std::max(most, std::abs(each));
  const float step = most > 0 ? most / 127 : 1.0f;
  const double margin = margin_of(head.k);
  Sight s;
  double length = 0, left = 0;
  int32_t along = 0;
  for (int d = 0; d < kDirections; ++d) {
    s.along[d] = int8_t(std::lrint(y[d] / step));
    along += s.along[d];
    length += double(y[d]) * y[d];
    const double lacks = double(y[d]) - double(step) * s.along[d];
    left += lacks * lacks;
  }
  s.codes_lift = int32_t(total * kLifted);
  s.along_lift = along * kLifted;
  s.step = step * c.step;
  s.across = float(std::sqrt(std::max(0.0, weighed * (1 + margin) - length)));
  s.slack = float(c.along * (std::sqrt(left) + margin * std::sqrt(weighed)) +
                  c.lost * std::sqrt(length) + 1e-5 * c.longest * std::sqrt(plain));
  return s;
}

// The largest that any logit of a block can be, for R rows of codes; infinite where that is no
// number.
template <int R = kLooks>
inline void most_of(const Coarse& c, const Linear& head, int block, const Rows& x,
                    const Sight* sight, float* out) {
  if constexpr (R > 1) {
    if (x.count < R) return most_of<R - 1>(c, head, block, x, sight, out);
  }
  alignas(64) int32_t sums[R][kBlock], along[R][kBlock];
  const int8_t* from = c.blocks + block * coarse_bytes(head.k);
  from = look<R>(c, head, from, x, sight, sums, along);
  const auto* across = reinterpret_cast<const float*>(from);
  const float* scale = head.scale + block * kBlock;
  for (int r = 0; r < R; ++r) {
    const Sight& s = sight[r];
    __m256 strange = _mm256_setzero_ps(), most = _mm256_set1_ps(-INFINITY);
    for (int n = 0; n < kBlock; n += 8) {
      auto whole = [n](const int32_t* of, int32_t lift) {
        __m256i at = _mm256_load_si256(reinterpret_cast<const __m256i*>(of + n));
        return _mm256_cvtepi32_ps(_mm256_sub_epi32(at, _mm256_set1_epi32(lift)));
      };
      __m256 rest = _mm256_mul_ps(_mm256_loadu_ps(across + n), _mm256_set1_ps(s.across));
      __m256 more = _mm256_mul_ps(whole(along[r], s.along_lift), _mm256_set1_ps(s.step));
      __m256 bound = _mm256_add_ps(_mm256_add_ps(rest, _mm256_set1_ps(s.slack)), more);
      bound = _mm256_add_ps(bound, whole(sums[r], s.codes_lift));
      // In the order of products: rounding never turns two numbers around.
      bound = _mm256_mul_ps(_mm256_mul_ps(bound, _mm256_set1_ps(x.scale[r])),
                            _mm256_loadu_ps(scale + n));
      strange = _mm256_or_ps(strange, _mm256_cmp_ps(bound, bound, _CMP_UNORD_Q));
      most = _mm256_max_ps(most, bound);
    }
    out[r] = _mm256_movemask_ps(strange) ? INFINITY : max_lane(most);
  }
}

// Makes a block of the head coarse. nearest: [K / 4][256], the level of every code, lifted.
// weights, directions: of the rests, as `Coarse` has them of inputs. Writes the block's halves;
// along: [16][kDirections], the rests along the directions, and squares: [16], of their lengths.
inline void make_coarse(const Linear& head, int block, const uint8_t* nearest,
                        const uint8_t* levels, const float* weights, const float* directions,
                        int8_t* to, float* along, float* squares) {
  const int8_t* from = head.weight + int64_t(block) * kBlock * head.k;
  alignas(64) float y[kBlock][kDirections] = {};
  std::fill_n(squares, kBlock, 0.0f);
  std::memset(to, 0, kBlock * head.k / 2);
  for (int i = 0; i < head.k; ++i) {
    const int group = i / 4;
    for (int n = 0; n < kBlock; ++n) {
      const int8_t stored = from[(i / kTogether * kBlock + n) * kTogether + i % kTogether];
      const uint8_t code = uint8_t(stored - kRaised + kLifted);
      const uint8_t level = nearest[group * 256 + code];
      to[(group / 2 * kBlock + n) * 4 + i % 4] |= int8_t(level << group % 2 * 4);
      const float rest = int(code) - int(levels[group * kLevels + level]);
      const float w = rest * weights[i];
      for (int d = 0; d < kDirections; ++d) y[n][d] += rest * directions[i * kDirections + d];
      squares[n] += w * w;
    }
  }
  std::memcpy(along, y, sizeof y);
}

// The largest logits of up to kLooks rows, for all threads of a team: emit(block, first row, rows,
// logits) for every block that may hold one, and skip(block) for all others.
//
// Every block is looked at coarsely; of every run of blocks the one that promises most is read,
// which gives the rows' floors; then so is whatever promises as much. `largest`: [rows][blocks],
// and `floors`: [rows][kFloors], are overwritten. Adds how many blocks were read to `read`.
template <typename Emit, typename Skip>
inline void likeliest(Team& team, const Coarse& c, const Linear& head, const Rows& x,
                      float* largest, float* floors, int32_t* read, Emit emit, Skip skip) {
  constexpr int kPiece = 64;  // blocks that a piece of work takes
  const int64_t count = padded(head.n) / kBlock, stride = code_bytes(head);
  auto add_read = [&](int found) {
    std::atomic_ref<int32_t>(*read).fetch_add(found, std::memory_order_relaxed);
  };
  Sight sight[kLooks];
  for (int r = 0; r < x.count; ++r) sight[r] = sight_of(c, head, x.codes + r * stride);
  team.share(count, std::clamp(int(count) / (team.size() * 8), 1, kPiece), [&](int b) {
    float most[kLooks];
    most_of(c, head, b, x, sight, most);
    for (int r = 0; r < x.count; ++r) largest[r * count + b] = most[r];
  });
  team.share(x.count * kFloors, 1, [&](int i) {
    constexpr int kFew = kRuns / kFloors;
    const int row = i / kFloors;
    const float* all = largest + row * count;
    int best[kFew], found = 0;
    for (int run = i % kFloors * kFew; run < (i % kFloors + 1) * kFew; ++run) {
      const float *begin = all + count * run / kRuns, *end = all + count * (run + 1) / kRuns;
      if (begin < end) best[found++] = int(std::max_element(begin, end) - all);
    }
    float& floor = floors[i];
    floor = -INFINITY;
    read_blocks(head, {x.codes + row * stride, x.scale + row, 1}, best, found,
                [&](int b, int, int, float(*out)[kBlock]) {
                  for (int n = 0; n < std::min(kBlock, head.n - b * kBlock); ++n)
                    floor = std::max(floor, out[0][n]);  // a NaN leaves it as it is
                });
    add_read(found);
  });
  float floor[kLooks];
  for (int r = 0; r < x.count; ++r) {
    floor[r] = *std::max_element(floors + r * kFloors, floors + (r + 1) * kFloors);
  }
  team.share((count + kPiece - 1) / kPiece, 1, [&](int piece) {
    int likely[kPiece], found = 0;
    for (int b = piece * kPiece; b < std::min(int(count), (piece + 1) * kPiece); ++b) {
      bool may = false;
      for (int r = 0; r < x.count; ++r) may |= !(largest[r * count + b] < floor[r]);
      if (may)
        likely[found++] = b;
      else
        skip(b);
    }
    read_blocks(head, x, likely, found, emit);
    add_read(found);
  });
}

}  // namespace greenroom

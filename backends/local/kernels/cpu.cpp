// One step of the int8 decoder over a mixed batch of prefill chunks and decodes.
//
// Equal to the pure PyTorch path of backends/local/model.py bit for bit: integers are summed as
// integers, floats in the order that reference.py fixes, so neither threads nor batch nor chunking
// changes a result. Sizes are checked by cpu.py; nothing here allocates.

#include <omp.h>

#include <optional>

#include "attention.h"
#include "gemm.h"
#include "team.h"

namespace greenroom {

// These structs are mirrored, field by field, in cpu.py.
struct Layer {
  Linear qkv, out, gate_up, down;
  const float *before_attention, *before_mlp;
  const float *qk_norm, *after_attention, *after_mlp;  // null where the model has none
  int32_t owns, group, row, window, rope;              // window 0: global
};

struct Model {
  Linear embedding, head;
  const float* norm;
  const Layer* layers;
  int32_t layer_count, hidden, q_heads, kv_heads, head_dim, inner, vocab, gelu;
  float eps, embed_scale, attention_scale;
};

struct Group {
  uint8_t* pages;
  const int32_t *slots, *first_page;
  int64_t page_bytes;
  int32_t width;  // entries of `slots` for one sequence
};

struct Batch {
  const int32_t *ids, *positions, *starts, *lengths, *wanted_rows;
  const Group* groups;
  const float *const *cos, *const *sin;  // by rope: [positions, D / 2]
  float* logits;                         // [wanted, vocab]
  uint8_t* scratch;
  int64_t scratch_bytes;
  int32_t tokens, sequences, wanted, threads, pages;  // pages: the most of any sequence and group
};

namespace {

constexpr int kSplitItems = 4;  // per thread: with fewer, attention is split by page as well
constexpr int kRowChunk = 96;   // rows whose activations stay in the second level cache

struct Buffers {
  float *x, *wide, *mixed, *gated, *row_scale, *q_scale, *partial, *work;
  int16_t *codes, *q_codes;
  int32_t *sequence, *first_item;
  int64_t bytes;
};

class Carver {
 public:
  explicit Carver(uint8_t* at) : begin_(at), at_(at) {}
  template <typename T>
  void take(T*& out, int64_t count) {
    out = reinterpret_cast<T*>(at_);
    at_ += (count * int64_t(sizeof(T)) + 127) / 64 * 64;
  }
  int64_t taken() const { return at_ - begin_; }

 private:
  uint8_t *begin_, *at_;
};

int longest_row(const Model& m) {
  return std::max({m.hidden, m.inner, m.q_heads * m.head_dim});
}

int group_tiles(const Model& m, int count) {
  return (count * (m.q_heads / m.kv_heads) + kQueries - 1) / kQueries;
}

bool splits(const Model& m, const Batch& b) {
  int items = b.sequences * m.kv_heads * group_tiles(m, 1);
  return b.tokens == b.sequences && items < kSplitItems * b.threads;
}

Buffers carve(const Model& m, const Batch& b) {
  Buffers s;
  Carver carver(b.scratch);
  int64_t rows = std::max(b.tokens, b.wanted), heads = m.q_heads + 2 * m.kv_heads;
  carver.take(s.x, rows * m.hidden);
  carver.take(s.wide, rows * std::max<int64_t>(heads * m.head_dim, m.hidden));
  carver.take(s.mixed, rows * m.q_heads * m.head_dim);
  carver.take(s.gated, rows * m.inner);
  carver.take(s.row_scale, rows);
  carver.take(s.q_scale, rows * m.q_heads);
  carver.take(s.codes, rows * longest_row(m));
  carver.take(s.q_codes, rows * m.q_heads * m.head_dim);
  carver.take(s.sequence, rows);
  carver.take(s.first_item, b.sequences + 1);
  carver.take(s.work, int64_t(b.threads) * 2 * power_of_two(longest_row(m)));
  int64_t partials = splits(m, b) ? int64_t(b.sequences) * m.q_heads * b.pages : 0;
  carver.take(s.partial, partials * (m.head_dim + 2));
  s.bytes = carver.taken();
  return s;
}

// Everything below is run by all threads of a team at once; each `share` is one phase.
class Step {
 public:
  Step(const Model& model, const Batch& batch)
      : m_(model), b_(batch), s_(carve(model, batch)), split_(splits(model, batch)) {
    s_.first_item[0] = 0;
    for (int q = 0; q < b_.sequences; ++q) {
      int count = b_.starts[q + 1] - b_.starts[q];
      for (int t = b_.starts[q]; t < b_.starts[q + 1]; ++t) s_.sequence[t] = q;
      s_.first_item[q + 1] = s_.first_item[q] + group_tiles(m_, count) * m_.kv_heads;
    }
  }

  void run(Team& team, int thread) const {
    float* work = s_.work + int64_t(thread) * 2 * power_of_two(longest_row(m_));
    team.share(b_.tokens, 1, [&](int t) {
      embed(t);
      normalise(t, s_.x + int64_t(t) * m_.hidden, m_.layers[0].before_attention,
                m_.layers[0].qkv, work);
    });
    for (int i = 0; i < m_.layer_count; ++i) layer(team, i, work);
    team.share(b_.wanted, 1, [&](int i) {
      normalise(i, s_.x + int64_t(b_.wanted_rows[i]) * m_.hidden, m_.norm, m_.head, work);
    });
    matmul(team, m_.head, b_.wanted, [&](int n, int r, int rows, float (*out)[kBlock]) {
      int valid = std::min(kBlock, m_.vocab - n);
      for (int i = 0; i < rows; ++i)
        std::memcpy(b_.logits + int64_t(r + i) * m_.vocab + n, out[i], valid * sizeof(float));
    });
  }

 private:
  void embed(int t) const {
    const Linear& e = m_.embedding;
    int id = b_.ids[t];
    const int8_t* block = e.weight + int64_t(id / kBlock) * kBlock * e.k + id % kBlock * 2;
    float* x = s_.x + int64_t(t) * m_.hidden;
    for (int d = 0; d < m_.hidden; ++d)
      x[d] = float(block[d / 2 * 32 + d % 2]) * e.scale[id] * m_.embed_scale;
  }

  // Row t of the activation codes: norm, then quantise for `next`.
  void normalise(int t, const float* x, const float* weight, const Linear& next,
                 float* work) const {
    float* out = work + power_of_two(m_.hidden);
    rms_norm(x, weight, out, m_.hidden, m_.eps, work);
    quantise(t, out, next);
  }

  void quantise(int t, const float* x, const Linear& next) const {
    s_.row_scale[t] = quantize_row(x, next.k, next.max_code, s_.codes + int64_t(t) * next.k);
  }

  // emit(first output, first row, rows, results) for every block of outputs and tile of rows.
  template <typename Emit>
  void matmul(Team& team, const Linear& linear, int count, Emit emit) const {
    int blocks = padded(linear.n) / kBlock, chunks = (count + kRowChunk - 1) / kRowChunk;
    int piece = std::clamp(blocks / (team.size() * 8), 1, 64);
    team.share(blocks * chunks, piece, [&](int u) {
      int i = u % blocks, row = u / blocks * kRowChunk;
      Rows x{s_.codes + int64_t(row) * linear.k, s_.row_scale + row, linear.k,
             std::min(kRowChunk, count - row)};
      block(linear, i, x, [&](int first, int rows, float (*out)[kBlock]) {
        emit(i * kBlock, row + first, rows, out);
      });
    });
  }

  void matmul_to(Team& team, const Linear& linear, float* to, int64_t stride) const {
    matmul(team, linear, b_.tokens, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        std::memcpy(to + (r + i) * stride + n, out[i], sizeof(out[i]));
    });
  }

  void layer(Team& team, int index, float* work) const {
    const Layer& l = m_.layers[index];
    int heads = m_.q_heads + (l.owns ? 2 * m_.kv_heads : 0), mixed = m_.q_heads * m_.head_dim;
    matmul_to(team, l.qkv, s_.wide, int64_t(heads) * m_.head_dim);
    team.share(b_.tokens * heads, 4, [&](int i) { head(l, i / heads, i % heads, heads, work); });
    if (split_)
      attend_by_page(team, l);
    else
      attend(team, l);
    team.share(b_.tokens, 1, [&](int t) { quantise(t, s_.mixed + int64_t(t) * mixed, l.out); });
    matmul_to(team, l.out, s_.wide, m_.hidden);
    team.share(b_.tokens, 1, [&](int t) {
      add(t, l.after_attention, work);
      normalise(t, s_.x + int64_t(t) * m_.hidden, l.before_mlp, l.gate_up, work);
    });
    // Blocks of gate_up hold eight gates and their eight ups.
    matmul(team, l.gate_up, b_.tokens, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        _mm256_storeu_ps(s_.gated + int64_t(r + i) * m_.inner + n / 2,
                         gate8(_mm256_load_ps(out[i]), _mm256_load_ps(out[i] + 8), m_.gelu));
    });
    team.share(b_.tokens, 1, [&](int t) {
      quantise(t, s_.gated + int64_t(t) * m_.inner, l.down);
    });
    matmul_to(team, l.down, s_.wide, m_.hidden);
    const Layer* next = index + 1 < m_.layer_count ? &l + 1 : nullptr;
    team.share(b_.tokens, 1, [&](int t) {
      add(t, l.after_mlp, work);
      if (next)
        normalise(t, s_.x + int64_t(t) * m_.hidden, next->before_attention, next->qkv, work);
    });
  }

  // x += h, or x += norm(h).
  void add(int t, const float* norm, float* work) const {
    float* h = s_.wide + int64_t(t) * m_.hidden;
    float* x = s_.x + int64_t(t) * m_.hidden;
    if (norm) rms_norm(h, norm, h, m_.hidden, m_.eps, work);
    for (int d = 0; d < m_.hidden; ++d) x[d] = x[d] + h[d];
  }

  uint8_t* page(const Layer& l, int sequence, int64_t position) const {
    const Group& g = b_.groups[l.group];
    int at = int(position / kPage) - g.first_page[sequence];
    return g.pages + g.slots[int64_t(sequence) * g.width + at] * g.page_bytes;
  }

  // One head of one row of qkv: norm, rotate, then queries to codes, keys and values to a page.
  void head(const Layer& l, int t, int h, int heads, float* work) const {
    int dim = m_.head_dim, keys_end = m_.q_heads + m_.kv_heads;
    float* x = s_.wide + (int64_t(t) * heads + h) * dim;
    int64_t position = b_.positions[t];
    if (h < keys_end) {
      if (l.qk_norm) rms_norm(x, l.qk_norm + h * dim, x, dim, m_.eps, work);
      int64_t at = position * (dim / 2);
      rope(x, b_.cos[l.rope] + at, b_.sin[l.rope] + at, dim);
    }
    if (h < m_.q_heads) {
      int64_t at = int64_t(t) * m_.q_heads + h;
      s_.q_scale[at] = quantize_row(x, dim, kWide, s_.q_codes + at * dim) * m_.attention_scale;
      return;
    }
    bool value = h >= keys_end;
    PageView view = page_view(page(l, s_.sequence[t], position), l.row, m_.kv_heads, dim,
                              h - (value ? keys_end : m_.q_heads));
    int64_t token = position % kPage;
    auto codes = const_cast<int8_t*>(value ? view.v : view.k) + token * view.stride;
    auto scale = const_cast<uint16_t*>(value ? view.v_scale : view.k_scale);
    scale[token * m_.kv_heads] = quantize_kv(x, dim, codes);
  }

  // The queries of work item `item`; queries count token by token, head by head of the group.
  struct Item {
    Queries q;
    int sequence, kv_head;
    int64_t at[kQueries];  // row * Hq + head
    int64_t first_page, last_page;
  };

  void find(int item, const Layer& l, Item& out) const {
    int q = 0;
    while (s_.first_item[q + 1] <= item) ++q;
    item -= s_.first_item[q];
    int group = m_.q_heads / m_.kv_heads, count = b_.starts[q + 1] - b_.starts[q];
    int begin = item / m_.kv_heads * kQueries, end = std::min(begin + kQueries, count * group);
    out.sequence = q;
    out.kv_head = item % m_.kv_heads;
    out.q.count = end - begin;
    out.q.dim = m_.head_dim;
    for (int i = 0; i < end - begin; ++i) {
      int row = b_.starts[q] + (begin + i) / group;
      out.at[i] = int64_t(row) * m_.q_heads + out.kv_head * group + (begin + i) % group;
      out.q.codes[i] = s_.q_codes + out.at[i] * m_.head_dim;
      out.q.scale[i] = s_.q_scale[out.at[i]];
      out.q.high[i] = int64_t(b_.positions[row]) + 1;
      out.q.low[i] = l.window ? std::max<int64_t>(0, out.q.high[i] - l.window) : 0;
    }
    out.first_page = out.q.low[0] / kPage;
    out.last_page = (out.q.high[out.q.count - 1] - 1) / kPage;
  }

  PageView view(const Layer& l, const Item& item, int64_t index) const {
    return page_view(page(l, item.sequence, index * kPage), l.row, m_.kv_heads, m_.head_dim,
                     item.kv_head);
  }

  void attend(Team& team, const Layer& l) const {
    int dim = m_.head_dim;
    team.share(s_.first_item[b_.sequences], 1, [&](int i) {
      Item item;
      find(i, l, item);
      alignas(64) float out[kQueries * kMaxDim], page_out[kQueries * kMaxDim];
      float largest[kQueries], sum[kQueries], page_largest[kQueries], page_sum[kQueries];
      for (int q = 0; q < item.q.count; ++q) {
        largest[q] = -INFINITY;
        sum[q] = 0.0f;
      }
      std::memset(out, 0, sizeof(float) * item.q.count * dim);
      for (int64_t p = item.first_page; p <= item.last_page; ++p) {
        int which[kQueries], count = 0;
        for (int q = 0; q < item.q.count; ++q)
          if (item.q.low[q] < (p + 1) * kPage && item.q.high[q] > p * kPage) which[count++] = q;
        attend_page(item.q, which, count, view(l, item, p), p * kPage,
                    {page_largest, page_sum, page_out});
        for (int j = 0; j < count; ++j)
          merge(largest + which[j], sum + which[j], out + which[j] * dim, page_largest[j],
                page_sum[j], page_out + j * dim, dim);
      }
      for (int q = 0; q < item.q.count; ++q)
        divide(out + q * dim, sum[q], s_.mixed + item.at[q] * dim, dim);
    });
  }

  // Decodes of few sequences: every page is a piece of work, then every head is.
  void attend_by_page(Team& team, const Layer& l) const {
    int dim = m_.head_dim, items = s_.first_item[b_.sequences];
    int64_t record = dim + 2, one = b_.pages * record;  // partials of one query head
    team.share(items * b_.pages, 1, [&](int u) {
      Item item;
      find(u / b_.pages, l, item);
      int64_t p = item.first_page + u % b_.pages;
      if (p > item.last_page) return;
      int which[kQueries];
      alignas(64) float page_out[kQueries * kMaxDim];
      float largest[kQueries], sum[kQueries];
      for (int q = 0; q < item.q.count; ++q) which[q] = q;
      attend_page(item.q, which, item.q.count, view(l, item, p), p * kPage,
                  {largest, sum, page_out});
      for (int q = 0; q < item.q.count; ++q) {
        float* to = s_.partial + item.at[q] * one + u % b_.pages * record;
        to[0] = largest[q];
        to[1] = sum[q];
        std::memcpy(to + 2, page_out + q * dim, sizeof(float) * dim);
      }
    });
    team.share(b_.tokens * m_.q_heads, 1, [&](int h) {
      int64_t high = int64_t(b_.positions[h / m_.q_heads]) + 1;
      int64_t low = l.window ? std::max<int64_t>(0, high - l.window) : 0;
      const float* from = s_.partial + h * one;
      float largest = -INFINITY, sum = 0.0f;
      alignas(64) float out[kMaxDim] = {};
      for (int64_t p = low / kPage; p <= (high - 1) / kPage; ++p, from += record)
        merge(&largest, &sum, out, from[0], from[1], from + 2, dim);
      divide(out, sum, s_.mixed + int64_t(h) * dim, dim);
    });
  }

  const Model& m_;
  const Batch& b_;
  const Buffers s_;
  const bool split_;
};

}  // namespace
}  // namespace greenroom

// Bytes of scratch that a batch of this shape needs.
extern "C" int64_t greenroom_scratch_bytes(const greenroom::Model* model,
                                           const greenroom::Batch* batch) {
  return greenroom::carve(*model, *batch).bytes;
}

// Runs the batch; writes its KV and its logits. Returns 0, or 1 when the scratch is too small.
extern "C" int32_t greenroom_forward(const greenroom::Model* model,
                                     const greenroom::Batch* batch) {
  using namespace greenroom;
  if (greenroom_scratch_bytes(model, batch) > batch->scratch_bytes) return 1;
  Step step(*model, *batch);
  std::optional<Team> team;
#pragma omp parallel num_threads(batch->threads)
  {
#pragma omp single
    team.emplace(omp_get_num_threads());
    step.run(*team, omp_get_thread_num());
  }
  return 0;
}

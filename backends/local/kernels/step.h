// One step of the int8 decoder over a mixed batch of prefill chunks and decodes.
//
// Equal to the pure PyTorch path of backends/local/model.py bit for bit: integers are summed as
// integers, floats in the order that reference.py fixes, so neither threads nor batch nor chunking
// changes a result. Sizes are checked by steps.py; nothing here allocates.
#pragma once

#include "plan.h"
#include "team.h"

namespace greenroom {

// Everything below is run by all threads of a team at once; each `share` is one phase.
class Step {
 public:
  Step(const Model& model, const Batch& batch)
      : m_(model),
        b_(batch),
        s_(carve(model, batch)),
        split_(splits(model, batch)),
        alone_(alone(batch)),
        coarse_(m_.coarse.blocks && b_.read && b_.wanted <= kLooks) {
    s_.first_item[0] = 0;
    for (int q = 0; q < b_.sequences; ++q) {
      int count = b_.starts[q + 1] - b_.starts[q];
      for (int t = b_.starts[q]; t < b_.starts[q + 1]; ++t) s_.sequence[t] = q;
      s_.first_item[q + 1] = s_.first_item[q] + group_tiles(m_, count) * m_.kv_heads;
    }
  }

  void run(Team& team, int thread) const {
    Mine mine = s_.mine;
    int64_t bytes = s_.each * thread;
    mine.work = moved(mine.work, bytes);
    if (alone_) {
      mine.x = moved(mine.x, bytes);
      mine.mixed = moved(mine.mixed, bytes);
      mine.row_scale = moved(mine.row_scale, bytes);
      mine.codes = moved(mine.codes, bytes);
    }
    rows(team, b_.tokens, m_.layers[0].qkv, [&](int t) {
      embed(mine, t);
      normalise(mine, t, t, m_.layers[0].before_attention, m_.layers[0].qkv);
    });
    for (int i = 0; i < m_.layer_count; ++i) layer(team, mine, i);
    rows(team, b_.wanted, m_.head,
         [&](int i) { normalise(mine, i, b_.wanted_rows[i], m_.norm, m_.head); });
    auto emit = [&](int n, int r, int rows, float(*out)[kBlock]) {
      for (int i = 0; i < rows; ++i) store(n, r + i, out[i]);
    };
    if (coarse_)
      likeliest(team, mine, emit);
    else
      matmul(team, mine, m_.head, b_.wanted, emit);
    _mm_sfence();
  }

 private:
  // work(i) for i in [0, count): shared out, or all of it by every thread for its own copy.
  template <typename Work>
  void rows(Team& team, int count, Work work) const {
    if (!alone_) return team.share(count, 1, work);
    for (int i = 0; i < count; ++i) work(i);
  }

  // The same for the rows of a product, whose first weights come meanwhile.
  template <typename Work>
  void rows(Team& team, int count, const Linear& next, Work work) const {
    const int8_t* weight = next.weight + int64_t(team.first_of(units(next) * chunks(count))) %
                                             units(next) * kUnitBlocks * kBlock * next.k;
    if (coarse_ && &next == &m_.head)
      weight = m_.coarse.blocks + team.first_of(padded(m_.vocab) / kBlock) * coarse_bytes(next.k);
    for (int i = -kAhead; i < 0; i += 64) ask_ahead<_MM_HINT_NTA>(weight + i);
    rows(team, count, work);
  }

  static int units(const Linear& linear) {
    return (padded(linear.n) / kBlock + kUnitBlocks - 1) / kUnitBlocks;
  }
  static int chunks(int rows) { return (rows + kRowChunk - 1) / kRowChunk; }

  void embed(const Mine& mine, int t) const {
    const Linear& e = m_.embedding;
    int id = b_.ids[t];
    float* x = mine.x + int64_t(t) * m_.hidden;
    for (int d = 0; d < m_.hidden; ++d)
      x[d] = float(weight_at(e, id, d)) * e.scale[id] * m_.embed_factor[d];
  }

  // Row `to` of the activation codes: row t normed, then quantised for `next`.
  void normalise(const Mine& mine, int to, int t, const float* weight, const Linear& next) const {
    float* out = mine.work + power_of_two(m_.hidden);
    rms_norm(mine.x + int64_t(t) * m_.hidden, weight, out, m_.hidden, m_.eps, mine.work);
    quantise(mine, to, out, next);
  }

  void quantise(const Mine& mine, int t, const float* x, const Linear& next) const {
    mine.row_scale[t] = quantize_for(next, x, mine.codes + t * code_bytes(next));
  }

  // emit(first output, first row, rows, results) for every block of outputs and tile of rows.
  template <typename Emit>
  void matmul(Team& team, const Mine& mine, const Linear& linear, int count, Emit emit) const {
    const int every = units(linear), piece = std::clamp(every / (team.size() * 8), 1, 64);
    team.share(every * chunks(count), piece, [&](int u) {
      int row = u / every * kRowChunk;
      Rows x{mine.codes + row * code_bytes(linear), mine.row_scale + row,
             std::min(kRowChunk, count - row)};
      blocks(linear, u % every * kUnitBlocks, x,
             [&](int index, int first, int rows, float (*out)[kBlock]) {
               emit(index * kBlock, row + first, rows, out);
             });
    });
  }

  void matmul_to(Team& team, const Mine& mine, const Linear& linear, int count, float* to,
                 int64_t stride) const {
    matmul(team, mine, linear, count, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        std::memcpy(to + (r + i) * stride + n, out[i], sizeof(out[i]));
    });
  }

  void layer(Team& team, const Mine& mine, int index) const {
    const Layer& l = m_.layers[index];
    const Layer* next = index + 1 < m_.layer_count ? &l + 1 : nullptr;
    int heads = m_.q_heads + (l.owns ? 2 * m_.kv_heads : 0), mixed = m_.q_heads * m_.head_dim;
    project_heads(team, mine, l, heads);
    const bool fused = attends_by_row();
    if (!fused)
      team.share(b_.tokens * heads, 4,
                 [&](int i) { head(l, i / heads, i % heads, heads, mine.work); });
    // Behind its keys and values, the last layer goes on with the rows that are looked at alone.
    const int count = next ? b_.tokens : b_.wanted;
    auto row = [&](int i) { return next ? i : b_.wanted_rows[i]; };
    const float* attended =
        split_ ? attend_by_span(team, mine, l) : attend(team, mine, l, fused ? heads : 0, !next);
    rows(team, count, l.out,
         [&](int i) { quantise(mine, i, attended + int64_t(row(i)) * mixed, l.out); });
    matmul_to(team, mine, l.out, count, s_.narrow, m_.hidden);
    rows(team, count, l.gate_up, [&](int i) {
      add(mine, i, row(i), l.after_attention);
      normalise(mine, i, row(i), l.before_mlp, l.gate_up);
    });
    // Blocks of gate_up hold eight gates and their eight ups.
    matmul(team, mine, l.gate_up, count, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        _mm256_storeu_ps(s_.gated + int64_t(r + i) * m_.inner + n / 2,
                         gate8(_mm256_load_ps(out[i]), _mm256_load_ps(out[i] + 8), m_.gelu));
    });
    rows(team, count, l.down,
         [&](int i) { quantise(mine, i, s_.gated + int64_t(i) * m_.inner, l.down); });
    matmul_to(team, mine, l.down, count, s_.narrow, m_.hidden);
    rows(team, count, next ? next->qkv : m_.head, [&](int i) {
      add(mine, i, row(i), l.after_mlp);
      if (next) normalise(mine, i, i, next->before_attention, next->qkv);
    });
  }

  // A block of logits of row i, from output n on, and its largest.
  void store(int n, int i, const float* block) const {
    const int64_t blocks = padded(m_.vocab) / kBlock;
    b_.largest[i * blocks + n / kBlock] = store_logits(
        block, std::min(kBlock, m_.vocab - n), b_.logits + int64_t(i) * m_.vocab + n);
  }

  // The logits that may be a row's largest; all others are -inf.
  template <typename Emit>
  void likeliest(Team& team, const Mine& mine, Emit emit) const {
    alignas(64) float none[kBlock];
    std::fill_n(none, kBlock, -INFINITY);
    greenroom::likeliest(
        team, m_.coarse, m_.head, {mine.codes, mine.row_scale, b_.wanted}, b_.largest, s_.floors,
        b_.read,
        [&](int b, int r, int rows, float(*out)[kBlock]) { emit(b * kBlock, r, rows, out); },
        [&](int b) {
          for (int i = 0; i < b_.wanted; ++i) store(b * kBlock, i, none);
        });
  }

  // Queries, keys and values; where attention is split by span, what this thread's begins with is
  // asked for meanwhile.
  void project_heads(Team& team, const Mine& mine, const Layer& l, int heads) const {
    const int64_t stride = int64_t(heads) * m_.head_dim;
    if (!split_) return matmul_to(team, mine, l.qkv, b_.tokens, s_.wide, stride);
    const Piece first = piece(l, team.first_of(pieces()));
    Ahead ahead = first.is_real() ? before(l, first.item, first.span) : Ahead{};
    const int lines = ahead.lines() / std::max(1, padded(l.qkv.n) / kBlock / team.size()) + 1;
    matmul(team, mine, l.qkv, b_.tokens, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        std::memcpy(s_.wide + (r + i) * stride + n, out[i], sizeof(out[i]));
      ahead.ask(lines);
    });
  }

  // x += h, or x += norm(h), for row t of x and row `from` of h. Other threads may read h too.
  void add(const Mine& mine, int from, int t, const float* norm) const {
    const float* h = s_.narrow + int64_t(from) * m_.hidden;
    float* x = mine.x + int64_t(t) * m_.hidden;
    if (norm) {
      float* normed = mine.work + power_of_two(m_.hidden);
      rms_norm(h, norm, normed, m_.hidden, m_.eps, mine.work);
      h = normed;
    }
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
      s_.q_scale[at] = quantize_query(x, dim, s_.q_codes + at * dim) * m_.attention_scale;
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
    int64_t first_span() const { return first_page / kSpanPages; }
    int64_t last_span() const { return last_page / kSpanPages; }
    int64_t first_in(int64_t span) const { return std::max(span * kSpanPages, first_page); }
    int64_t last_in(int64_t span) const {
      return std::min((span + 1) * kSpanPages - 1, last_page);
    }
  };

  // The first position that a row sees.
  int64_t low(const Layer& l, int row) const {
    return l.window ? std::max<int64_t>(0, int64_t(b_.positions[row]) + 1 - l.window) : 0;
  }

  // The queries of an item that see keys of span p; their number.
  static int seeing(const Item& item, int64_t p, int* which) {
    int count = 0;
    for (int q = 0; q < item.q.count; ++q)
      if (item.q.low[q] < (p + 1) * kSpan && item.q.high[q] > p * kSpan) which[count++] = q;
    return count;
  }

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
      out.q.low[i] = low(l, row);
    }
    out.first_page = out.q.low[0] / kPage;
    out.last_page = (out.q.high[out.q.count - 1] - 1) / kPage;
  }

  // A page of the item's KV head, by its absolute number.
  PageView view(const Layer& l, const Item& item, int64_t index) const {
    return page_view(page(l, item.sequence, index * kPage), l.row, m_.kv_heads, m_.head_dim,
                     item.kv_head);
  }

  // What span p of an item gives, for the queries in `which`; returns their number.
  int attend_to(const Layer& l, const Item& item, int64_t p, Ahead& ahead, int* which,
                const Partial& out) const {
    PageView pages[kSpanPages];
    for (int64_t i = item.first_in(p); i <= item.last_in(p); ++i)
      pages[i % kSpanPages] = view(l, item, i);
    int count = seeing(item, p, which);
    attend_span(item.q, which, count, pages, p * kSpan, ahead, out);
    return count;
  }

  // What to ask for before span p of an item is read.
  Ahead before(const Layer& l, const Item& item, int64_t p) const {
    Ahead ahead;
    int64_t bytes = row_bytes(m_.kv_heads, m_.head_dim);
    for (int64_t i = item.first_in(p); i <= item.last_in(p); ++i)
      ahead.add(page(l, item.sequence, i * kPage) + l.row * bytes, bytes);
    return ahead;
  }

  // The online softmax of one item's queries.
  struct Running {
    float largest[kQueries], sum[kQueries];
    float* out;  // [queries, D]
  };

  // Whether logits are wanted of any row that an item has a query of.
  bool is_wanted(const Item& item) const {
    auto end = b_.wanted_rows + b_.wanted;
    auto row = std::lower_bound(b_.wanted_rows, end, int(item.at[0] / m_.q_heads));
    return row != end && *row <= item.at[item.q.count - 1] / m_.q_heads;
  }

  // How many KV heads go through a span together.
  int together() const { return std::min(m_.kv_heads, kMaxDim / m_.head_dim); }

  // Whether nobody but a row's own attention needs its heads: each sequence has one row, and all of
  // the row's heads are one piece of work.
  bool attends_by_row() const {
    return !split_ && b_.tokens == b_.sequences && together() == m_.kv_heads &&
           group_tiles(m_, 1) == 1;
  }

  // [tokens, Hq, D] of attention, for all threads, of all rows or all that are `wanted`. The KV
  // heads of a tile go through a span one after the other, since they take turns in its pages'
  // memory. `heads_left`: those of a row that are still to be made ready, or 0.
  const float* attend(Team& team, const Mine& mine, const Layer& l, int heads_left,
                      bool wanted) const {
    const int dim = m_.head_dim, most = together();
    const int groups = (m_.kv_heads + most - 1) / most;
    team.share_ahead(s_.first_item[b_.sequences] / m_.kv_heads * groups, [&](int u, int then) {
      const int first = u % groups * most, heads = std::min(most, m_.kv_heads - first);
      for (int h = 0; h < heads_left; ++h) head(l, u, h, heads_left, mine.work);
      Item items[kMaxDim / kBlock];
      Running running[kMaxDim / kBlock];
      alignas(64) float out[kQueries * kMaxDim], span_out[kQueries * kMaxDim];
      float span_largest[kQueries], span_sum[kQueries];
      for (int h = 0; h < heads; ++h) {
        find(u / groups * m_.kv_heads + first + h, l, items[h]);
        if (wanted && !is_wanted(items[h])) return;
        running[h].out = out + h * kQueries * dim;
        std::fill_n(running[h].largest, kQueries, -INFINITY);
        std::fill_n(running[h].sum, kQueries, 0.0f);
        std::fill_n(running[h].out, items[h].q.count * dim, 0.0f);
      }
      for (int64_t p = items[0].first_span(); p <= items[0].last_span(); ++p) {
        Ahead ahead;
        if (p < items[0].last_span()) {
          ahead = before(l, items[0], p + 1);
        } else if (then != u) {
          Item next;
          find(then / groups * m_.kv_heads, l, next);
          ahead = before(l, next, next.first_span());
        }
        for (int h = 0; h < heads; ++h) {
          int which[kQueries];
          int count = attend_to(l, items[h], p, ahead, which, {span_largest, span_sum, span_out});
          Running& r = running[h];
          for (int j = 0; j < count; ++j)
            merge(r.largest + which[j], r.sum + which[j], r.out + which[j] * dim, span_largest[j],
                  span_sum[j], span_out + j * dim, dim);
        }
        ahead.ask_for_rest();
      }
      for (int h = 0; h < heads; ++h)
        for (int q = 0; q < items[h].q.count; ++q)
          divide(running[h].out + q * dim, running[h].sum[q],
                 s_.mine.mixed + items[h].at[q] * dim, dim);
    });
    return s_.mine.mixed;
  }

  // A span of an item, where attention is split so: the KV heads of a span one after the other,
  // since they lie side by side.
  struct Piece {
    Item item;
    int64_t span;
    int at;  // the span, counted from the item's first
    bool is_real() const { return span <= item.last_span(); }
  };

  int pieces() const { return s_.first_item[b_.sequences] * int(most_spans(b_)); }

  Piece piece(const Layer& l, int u) const {
    const int spans = int(most_spans(b_)), heads = m_.kv_heads;
    Piece out;
    find(u / (spans * heads) * heads + u % heads, l, out.item);
    out.at = u / heads % spans;
    out.span = out.item.first_span() + out.at;
    return out;
  }

  // Few rows of few sequences: every span is a piece of work, then every head is. [tokens, Hq, D].
  const float* attend_by_span(Team& team, const Mine& mine, const Layer& l) const {
    int dim = m_.head_dim, spans = int(most_spans(b_));
    int64_t record = dim + 2, one = spans * record;  // partials of one query head
    team.share_ahead(pieces(), [&](int u, int then) {
      const Piece here = piece(l, u);
      const Item& item = here.item;
      if (!here.is_real()) return;
      Ahead ahead;
      if (then / m_.kv_heads != u / m_.kv_heads) {
        const Piece next = piece(l, then);
        if (next.is_real()) ahead = before(l, next.item, next.span);
      }
      alignas(64) float span_out[kQueries * kMaxDim];
      float largest[kQueries], sum[kQueries];
      int which[kQueries];
      int count = attend_to(l, item, here.span, ahead, which, {largest, sum, span_out});
      ahead.ask_for_rest();
      for (int j = 0; j < count; ++j) {
        float* to = s_.partial + item.at[which[j]] * one + here.at * record;
        to[0] = largest[j];
        to[1] = sum[j];
        std::memcpy(to + 2, span_out + j * dim, sizeof(float) * dim);
      }
    });
    rows(team, b_.tokens * m_.q_heads, [&](int h) {
      int row = h / m_.q_heads;
      int64_t begin = low(l, row) / kSpan;
      int64_t first = low(l, b_.starts[s_.sequence[row]]) / kSpan;  // of the row's item
      const float* from = s_.partial + h * one + (begin - first) * record;
      float largest = -INFINITY, sum = 0.0f;
      alignas(64) float out[kMaxDim] = {};
      for (int64_t p = begin; p <= b_.positions[row] / kSpan; ++p, from += record)
        merge(&largest, &sum, out, from[0], from[1], from + 2, dim);
      divide(out, sum, mine.mixed + int64_t(h) * dim, dim);
    });
    return mine.mixed;
  }

  const Model& m_;
  const Batch& b_;
  const Buffers s_;
  const bool split_, alone_, coarse_;
};

}  // namespace greenroom

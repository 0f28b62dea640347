// Decoding of a small Llama-style decoder on a CPU: all layers of some rows, or of some prompts, in one call.
//
// A small model's step is hundreds of operators of a few microseconds each, and most of its time goes into
// calling them. Here tokens go through all layers in chunks that stay in the cache. Every token is computed alone
// and in the same order whatever its neighbours are. Sums are in fp32; with `half` what torch rounds to bf16 is
// rounded here too, at the same places (nanov2/model/layers.py).
//
// Layouts, all fp32 and contiguous; P prompt slots, R rows, rooms in multiples of 16. Keys lie in blocks of 16
// positions, those of a block last, so that scores are sums of whole vectors.
//   prompt_kv    [layers, 2, P, kv_heads, prompt_room · head_dim]   keys [blocks, head_dim, 16], values [room, head_dim]
//   own_kv       [layers, 2, R, kv_heads, own_room · head_dim]      the same
//   a matrix W [N, K] in panels of 32 outputs: [N/32, K, 32], zeros where N ends

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef float V __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
constexpr int W = 16, PANEL = 2 * W, ROWS = 8, CHUNK = 64;

struct Layer {
    const float *norm1, *qkv, *output, *norm2, *gate_up, *down;
};

struct Decoder {
    // the model
    int64_t layers, dim, heads, kv_heads, head_dim, hidden, convolution, half;
    float epsilon;
    const Layer* layer;
    const float *embeddings, *convolved, *norm;  // [vocabulary, dim], [convolution, dim], [dim]
    // the cache
    int64_t prompts, prompt_room, rows, own_room;
    float *prompt_kv, *own_kv;
    const int64_t *prompt_lengths, *group;  // [P], [R]
    int64_t *lengths, *recent;              // [R], [R, convolution], oldest first
    const float *cosines, *sines;           // [positions, head_dim]
    // a call: `count` of the rows or of the new prompts, `which`
    const int64_t* which;
    int64_t count;
    const int64_t *tokens, *starts, *slots;  // see step and prefill
    float* out;                              // hidden states [R or A, dim]
};

// A token on its way: a row's newest, or one of a prompt (row < 0).
struct Token {
    int64_t id, slot, row, at;  // at: its place among the row's own tokens, or in its prompt
    const int64_t* before;      // the `convolution` tokens before it, oldest first; −1: none
    float* out;                 // where its hidden state goes, or null
};

static inline V load(const float* p) { V v; std::memcpy(&v, p, sizeof v); return v; }
static inline void store(float* p, V v) { std::memcpy(p, &v, sizeof v); }
static inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

typedef float V8 __attribute__((vector_size(32)));
typedef float V4 __attribute__((vector_size(16)));

static inline V4 quarter(V v, bool largest) {
    V8 a, b;
    std::memcpy(&a, &v, sizeof a);
    std::memcpy(&b, (const char*)&v + sizeof a, sizeof b);
    const V8 h = largest ? (a > b ? a : b) : a + b;
    V4 c, d;
    std::memcpy(&c, &h, sizeof c);
    std::memcpy(&d, (const char*)&h + sizeof c, sizeof d);
    return largest ? (c > d ? c : d) : c + d;
}

static inline float sum(V v) {
    const V4 q = quarter(v, false);
    return (q[0] + q[1]) + (q[2] + q[3]);
}

static inline float largest(V v) {
    const V4 q = quarter(v, true);
    const float a = q[0] > q[1] ? q[0] : q[1], b = q[2] > q[3] ? q[2] : q[3];
    return a > b ? a : b;
}

// To the nearest number of bf16, ties to even.
static inline V rounded(V v) {
    I bits = (I)v;
    return (V)((bits + 0x7fff + ((bits >> 16) & 1)) & (int32_t)0xffff0000);
}

// e^x to a few units of the last place: 2^n · e^f with |f| ≤ ln 2 / 2, e^f by its series.
static inline V exp(V x) {
    x = x < -87.0f ? V{} - 87.0f : x;
    x = x > 88.0f ? V{} + 88.0f : x;
    I n = __builtin_convertvector(x * 1.44269504f + (x < 0.0f ? V{} - 0.5f : V{} + 0.5f), I);
    V m = __builtin_convertvector(n, V), f = (x - m * 0.693359375f) + m * 2.12194440e-4f;
    V p = f * 1.98412698e-4f + 1.38888889e-3f;
    p = p * f + 8.33333333e-3f;
    p = p * f + 4.16666667e-2f;
    p = p * f + 1.66666667e-1f;
    p = p * f + 0.5f;
    p = (p * f + 1.0f) * f + 1.0f;
    return p * (V)((n + 127) << 23);
}

// y [rows, N] = x [rows, K] · Wᵀ, rows in eights: x has room for all of them. y's rows are padded(N, PANEL) apart.
static void product(const float* x, int64_t rows, int64_t K, const float* panels, int64_t N, float* y, bool half) {
    const int64_t width = padded(N, PANEL);
    for (int64_t at = 0; at < width; at += PANEL, panels += K * PANEL)
        for (int64_t r = 0; r < rows; r += ROWS) {
            V sums[ROWS][2] = {};
            const float* a = x + r * K;
            for (int64_t k = 0; k < K; k++) {
                const V left = load(panels + k * PANEL), right = load(panels + k * PANEL + W);
                for (int i = 0; i < ROWS; i++) {
                    sums[i][0] += a[i * K + k] * left;
                    sums[i][1] += a[i * K + k] * right;
                }
            }
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < 2; j++)
                    store(y + (r + i) * width + at + j * W, half ? rounded(sums[i][j]) : sums[i][j]);
        }
}

static void normed(const float* x, int64_t dim, const float* weight, float epsilon, float* y, bool half) {
    V squares = {};
    for (int64_t i = 0; i < dim; i += W) squares += load(x + i) * load(x + i);
    const float inverse = 1.0f / std::sqrt(sum(squares) / dim + epsilon);
    for (int64_t i = 0; i < dim; i += W) {
        const V v = load(x + i) * inverse * load(weight + i);
        store(y + i, half ? rounded(v) : v);
    }
}

// The two halves of a head as coordinates, turned by their position's angles.
static void rotate(float* x, const float* cosines, const float* sines, int64_t d, float scale) {
    for (int64_t i = 0; i < d / 2; i++) {
        const float a = x[i], b = x[i + d / 2];
        x[i] = (a * cosines[i] - b * sines[i]) * scale;
        x[i + d / 2] = (b * cosines[i] + a * sines[i]) * scale;
    }
}

// Scores of one query with `n` keys in blocks; −inf up to the end of the last.
static void score(const float* q, const float* keys, int64_t d, int64_t n, float* scores) {
    const int64_t blocks = padded(n, W) / W, block = d * W;
    int64_t at = 0;
    for (; at + 4 <= blocks; at += 4) {
        V sums[4] = {};
        for (int64_t i = 0; i < d; i++)
            for (int j = 0; j < 4; j++) sums[j] += q[i] * load(keys + (at + j) * block + i * W);
        for (int j = 0; j < 4; j++) store(scores + (at + j) * W, sums[j]);
    }
    for (; at < blocks; at++) {
        V sums[4] = {};
        for (int64_t i = 0; i < d; i += 4)
            for (int j = 0; j < 4; j++) sums[j] += q[i + j] * load(keys + at * block + (i + j) * W);
        store(scores + at * W, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
    for (int64_t i = n; i < blocks * W; i++) scores[i] = -INFINITY;
}

template <int D>  // head_dim in vectors
static void weighted(const float* weights, const float* values, int64_t n, float* out) {
    V sums[D];
    for (int j = 0; j < D; j++) sums[j] = load(out + j * W);
    for (int64_t p = 0; p < n; p++)
        for (int j = 0; j < D; j++) sums[j] += weights[p] * load(values + (p * D + j) * W);
    for (int j = 0; j < D; j++) store(out + j * W, sums[j]);
}

static void weighted_sum(const float* weights, const float* values, int64_t n, int64_t d, float* out) {
    switch (d / W) {
        case 1: return weighted<1>(weights, values, n, out);
        case 2: return weighted<2>(weights, values, n, out);
        case 4: return weighted<4>(weights, values, n, out);
        case 8: return weighted<8>(weights, values, n, out);
    }
    for (int64_t p = 0; p < n; p++)
        for (int64_t j = 0; j < d; j += W) store(out + j, load(out + j) + weights[p] * load(values + p * d + j));
}

// Where the keys (kind 0) or values (1) of a head begin: of a prompt, or of a row's own tokens.
static inline float* of_prompt(const Decoder& s, int64_t l, int64_t kind, int64_t slot, int64_t head) {
    return s.prompt_kv + (((l * 2 + kind) * s.prompts + slot) * s.kv_heads + head) * s.head_dim * s.prompt_room;
}

static inline float* of_row(const Decoder& s, int64_t l, int64_t kind, int64_t row, int64_t head) {
    return s.own_kv + (((l * 2 + kind) * s.rows + row) * s.kv_heads + head) * s.head_dim * s.own_room;
}

static void keep(const Decoder& s, int64_t l, const Token& t, int64_t head, const float* k, const float* v) {
    const int64_t d = s.head_dim;
    float* keys = t.row < 0 ? of_prompt(s, l, 0, t.slot, head) : of_row(s, l, 0, t.row, head);
    float* values = t.row < 0 ? of_prompt(s, l, 1, t.slot, head) : of_row(s, l, 1, t.row, head);
    for (int64_t j = 0; j < d; j++) keys[(t.at / W * d + j) * W + t.at % W] = k[j];
    std::memcpy(values + t.at * d, v, d * sizeof(float));
}

// One query to its prompt, as far as it is there, and to its row's own tokens, the newest among them.
static void attend(const Decoder& s, int64_t l, const Token& t, int64_t head, const float* q, float* scores, float* out) {
    const int64_t d = s.head_dim, P = t.row < 0 ? t.at + 1 : s.prompt_lengths[t.slot], own = t.row < 0 ? 0 : t.at + 1;
    const int64_t first = padded(P, W), n = first + padded(own, W);
    score(q, of_prompt(s, l, 0, t.slot, head), d, P, scores);
    if (own) score(q, of_row(s, l, 0, t.row, head), d, own, scores + first);
    V most = V{} - INFINITY, total = {};
    for (int64_t i = 0; i < n; i += W) { const V v = load(scores + i); most = v > most ? v : most; }
    const float top = largest(most);
    for (int64_t i = 0; i < n; i += W) {
        const V v = load(scores + i), e = v == -INFINITY ? V{} : exp(v - top);
        store(scores + i, e);
        total += e;
    }
    std::memset(out, 0, d * sizeof(float));
    weighted_sum(scores, of_prompt(s, l, 1, t.slot, head), P, d, out);
    if (own) weighted_sum(scores + first, of_row(s, l, 1, t.row, head), own, d, out);
    const float inverse = 1.0f / sum(total);
    for (int64_t i = 0; i < d; i += W) store(out + i, load(out + i) * inverse);
}

// Tokens through all layers; of one sequence in their order, so that each finds the keys of those before it.
static void through(const Decoder& s, const Token* tokens, int64_t n, std::vector<float>& room) {
    const int64_t D = s.dim, d = s.head_dim, H = s.heads, K = s.kv_heads, F = s.hidden, n8 = padded(n, ROWS);
    const int64_t q_width = padded((H + 2 * K) * d, PANEL), up_width = padded(2 * F, PANEL), x_width = padded(D, PANEL);
    const bool half = s.half;
    const int64_t wide = up_width > q_width ? up_width : q_width, inner = F > H * d ? F : H * d;
    const size_t needed = n8 * (2 * D + wide + inner + x_width) + s.prompt_room + s.own_room;
    if (room.size() < needed) room.resize(needed);
    float *x = room.data(), *y = x + n8 * D, *big = y + n8 * D, *in = big + n8 * wide, *back = in + n8 * inner;
    float* scores = back + n8 * x_width;

    for (int64_t i = 0; i < n; i++) {
        std::memcpy(x + i * D, s.embeddings + tokens[i].id * D, D * sizeof(float));
        for (int64_t c = 0; c < s.convolution; c++) {
            const int64_t id = tokens[i].before[s.convolution - 1 - c];
            if (id < 0) continue;
            for (int64_t j = 0; j < D; j += W)
                store(x + i * D + j,
                      load(x + i * D + j) + load(s.embeddings + id * D + j) * load(s.convolved + c * D + j));
        }
    }
    for (int64_t l = 0; l < s.layers; l++) {
        const Layer& w = s.layer[l];
        for (int64_t i = 0; i < n; i++) normed(x + i * D, D, w.norm1, s.epsilon, y + i * D, half);
        product(y, n, D, w.qkv, (H + 2 * K) * d, big, half);
        for (int64_t i = 0; i < n; i++) {
            const Token& t = tokens[i];
            const int64_t position = t.at + (t.row < 0 ? 0 : s.prompt_lengths[t.slot]);
            const float *cosines = s.cosines + position * d, *sines = s.sines + position * d;
            float *q = big + i * q_width, *k = q + H * d, *v = k + K * d;
            for (int64_t h = 0; h < H; h++) rotate(q + h * d, cosines, sines, d, 1.0f / std::sqrt((float)d));
            for (int64_t h = 0; h < K; h++) {
                rotate(k + h * d, cosines, sines, d, 1.0f);
                keep(s, l, t, h, k + h * d, v + h * d);
            }
            for (int64_t h = 0; h < H; h++) attend(s, l, t, h / (H / K), q + h * d, scores, in + i * H * d + h * d);
        }
        if (half)
            for (int64_t i = 0; i < n * H * d; i += W) store(in + i, rounded(load(in + i)));
        product(in, n, H * d, w.output, D, back, half);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < D; j += W) store(x + i * D + j, load(x + i * D + j) + load(back + i * x_width + j));
            normed(x + i * D, D, w.norm2, s.epsilon, y + i * D, half);
        }
        product(y, n, D, w.gate_up, 2 * F, big, half);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < F; j += W) {
                const V g = load(big + i * up_width + j), u = load(big + i * up_width + F + j);
                const V a = g / (1.0f + exp(-g));
                store(in + i * F + j, half ? rounded(rounded(a) * u) : a * u);
            }
        product(in, n, F, w.down, D, back, half);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < D; j += W) store(x + i * D + j, load(x + i * D + j) + load(back + i * x_width + j));
    }
    for (int64_t i = 0; i < n; i++)
        if (tokens[i].out) normed(x + i * D, D, s.norm, s.epsilon, tokens[i].out, false);
}

// One new token of each of the rows `which`: tokens [R], out [R, dim].
extern "C" void step(const Decoder* decoder) {
    const Decoder& s = *decoder;
    std::vector<float> room;
    Token tokens[CHUNK];
    for (int64_t at = 0; at < s.count; at += CHUNK) {
        const int64_t n = s.count - at < CHUNK ? s.count - at : CHUNK;
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = s.which[at + i];
            tokens[i] = {s.tokens[row], s.group[row], row, s.lengths[row], s.recent + row * s.convolution, s.out + row * s.dim};
        }
        through(s, tokens, n, room);
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = tokens[i].row;
            int64_t* before = s.recent + row * s.convolution;
            for (int64_t c = 0; c + 1 < s.convolution; c++) before[c] = before[c + 1];
            if (s.convolution) before[s.convolution - 1] = tokens[i].id;
            s.lengths[row]++;
        }
    }
}

// The new prompts `which` of A into their slots [A]: prompt p is tokens[starts[p]…starts[p + 1]], of which the first
// `convolution` are −1. out [A, dim] is of the last token of each.
extern "C" void prefill(const Decoder* decoder) {
    const Decoder& s = *decoder;
    std::vector<float> room;
    Token tokens[CHUNK];
    for (int64_t i = 0; i < s.count; i++) {
        const int64_t p = s.which[i], *line = s.tokens + s.starts[p];
        const int64_t length = s.starts[p + 1] - s.starts[p] - s.convolution;
        for (int64_t at = 0; at < length; at += CHUNK) {
            const int64_t n = length - at < CHUNK ? length - at : CHUNK;
            for (int64_t j = 0; j < n; j++) {
                const bool last = at + j == length - 1;
                const int64_t* before = line + at + j;
                tokens[j] = {before[s.convolution], s.slots[p], -1, at + j, before, last ? s.out + p * s.dim : nullptr};
            }
            through(s, tokens, n, room);
        }
    }
}

// A token of each of the rows `which`, by inverting the distribution of its logits at a uniform number in double
// precision, as nanov2/model/sampler.py does; at temperature 0 the likeliest. With its log-prob.
struct Draw {
    int64_t dim, vocabulary, count, limit;
    float temperature;
    const float *hidden, *panels;     // [R, dim]; the output weights in panels
    const double* uniforms;           // [R, limit], of which a row takes the one at its length
    const int64_t *which, *lengths;   // [count], [R]
    int64_t* tokens;                  // [R]
    float* logprobs;                  // [R]
};

extern "C" void draw(const Draw* draw) {
    const Draw& s = *draw;
    const int64_t width = padded(s.vocabulary, PANEL);
    std::vector<float> x(ROWS * s.dim), logits(ROWS * width), weights(width);
    for (int64_t at = 0; at < s.count; at += ROWS) {
        const int64_t n = s.count - at < ROWS ? s.count - at : ROWS;
        for (int64_t i = 0; i < n; i++)
            std::memcpy(x.data() + i * s.dim, s.hidden + s.which[at + i] * s.dim, s.dim * sizeof(float));
        product(x.data(), n, s.dim, s.panels, s.vocabulary, logits.data(), false);
        for (int64_t i = 0; i < n; i++) {
            const int64_t row = s.which[at + i];
            float* z = logits.data() + i * width;
            int64_t best = 0;
            for (int64_t v = 0; v < s.vocabulary; v++) {
                if (s.temperature > 0) z[v] /= s.temperature;
                if (z[v] > z[best]) best = v;
            }
            const float top = z[best];
            for (int64_t v = 0; v < width; v += W) store(weights.data() + v, exp(load(z + v) - top));
            double total = 0, so_far = 0;
            for (int64_t v = 0; v < s.vocabulary; v++) total += weights[v];
            int64_t token = best;
            if (s.temperature > 0) {
                const double target = s.uniforms[row * s.limit + s.lengths[row]] * total;
                for (int64_t v = 0; v < s.vocabulary; v++) {
                    if (z[v] - top < -87.0f) continue;  // of probability 0 in fp32
                    token = v;
                    if ((so_far += weights[v]) > target) break;
                }
            }
            s.tokens[row] = token;
            s.logprobs[row] = (float)(z[token] - top - std::log(total));
        }
    }
}

// W [N, K] into panels.
extern "C" void pack(const float* weight, int64_t N, int64_t K, int64_t half, float* panels) {
    for (int64_t at = 0; at < padded(N, PANEL); at++)
        for (int64_t k = 0; k < K; k++) {
            const float w = at < N ? weight[at * K + k] : 0.0f;
            panels[(at / PANEL * K + k) * PANEL + at % PANEL] = half ? rounded(V{} + w)[0] : w;
        }
}

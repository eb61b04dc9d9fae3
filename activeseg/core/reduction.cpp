// The sums of core/reduction.py over a band of rows of one image, on one thread.
//
// Coarse logits (classes, rows, columns) are enlarged a row at a time, columns first; a row's pixels are taken in pieces
// whose logits stay in the first-level cache. Logits are finite (the caller sees to it) and so is everything here.

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace {

constexpr int PIECE = 128;    // pixels
constexpr float LOWEST = -87; // exp of less is taken for 0: it would be subnormal

struct Taps { // pixel i lies between coarse positions first[i] and second[i], `weight[i]` of the way
    const int32_t *first, *second;
    const float *weight;
};

// Cephes' expf for x <= 0, to about 2 units in the last place; branch-free, so that loops over it become vector code.
inline float exponential(float x) {
    const float shifter = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer
    const float clamped = x > LOWEST ? x : LOWEST;
    const float power = (clamped * 1.44269504088896341f + shifter) - shifter;
    float rest = clamped - power * 0.693359375f;
    rest += power * 2.12194440e-4f;
    float series = 1.9875691500e-4f;
    series = series * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    series = series * rest * rest + rest + 1.0f;
    const int32_t bits = ((int32_t)power + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return x > LOWEST ? series * scale : 0.0f;
}

// log(1 + x) for 0 <= x <= 1 as 2 artanh(x / (2 + x)), whose series loses nothing where x is small.
inline float log_of_one_and(float x) {
    const float root = x / (2.0f + x), square = root * root;
    float series = 1.0f / 17;
    series = series * square + 1.0f / 15;
    series = series * square + 1.0f / 13;
    series = series * square + 1.0f / 11;
    series = series * square + 1.0f / 9;
    series = series * square + 1.0f / 7;
    series = series * square + 1.0f / 5;
    series = series * square + 1.0f / 3;
    return 2.0f * (root + root * square * series);
}

// log(1 + x) for 0 <= x < 256: 1 + x = 2^power * (1 + rest), 0 <= rest < 1; power is 0 below 1, and rest is x itself.
inline float logarithm(float x) {
    const float sum = 1.0f + x;
    int32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    const int32_t power = (bits >> 23) - 127;
    const int32_t mantissa = (bits & 0x7fffff) | 0x3f800000;
    float one_to_two;
    memcpy(&one_to_two, &mantissa, sizeof one_to_two);
    const float rest = power == 0 ? x : one_to_two - 1.0f;
    return (float)power * 0.693147180559945309f + log_of_one_and(rest);
}

// The two coarse rows that the present row lies between, enlarged to all columns: (classes, width) each.
struct Lines {
    const float *coarse;
    int classes, rows, columns, width;
    Taps across;
    float *line[2];
    int held[2];

    const float *at(int row) {
        const int slot = row & 1;
        if (held[slot] != row) {
            for (int channel = 0; channel < classes; channel++) {
                const float *source = coarse + ((int64_t)channel * rows + row) * columns;
                float *target = line[slot] + (int64_t)channel * width;
                for (int x = 0; x < width; x++) {
                    const float weight = across.weight[x];
                    target[x] = (1.0f - weight) * source[across.first[x]] + weight * source[across.second[x]];
                }
            }
            held[slot] = row;
        }
        return line[slot];
    }
};

// Logits of one pixel piece between two lines.
inline void between(const float *above, const float *below, float weight, float *result, int count) {
    for (int j = 0; j < count; j++) result[j] = (1.0f - weight) * above[j] + weight * below[j];
}

struct Sums {
    double *columns; // (width), entropy of each column of the band
    double *pixels;  // (3): pixels above the threshold, 1 - (first - second), 1 - first
    double *classes; // (classes, 4): entropy of the channel; pixels, entropy and confidence of its region
};

struct Piece { // working memory of a piece: (classes, PIECE) each
    float *one, *two;
};

// The number of pixels is PIXELS or, where that is 0, `some`: loops of a fixed length, nearly all, have no rest to look after.
template <int PIXELS>
void softmax_piece(int classes, const float *above, const float *below, int width, float weight, int some, float threshold,
                   Piece piece, Sums sums, uint8_t *labels) {
    const int count = PIXELS ? PIXELS : some;
    float best[PIECE], second[PIECE], others[PIECE], product[PIECE], share[PIECE], mixed[PIECE], entropy[PIECE];
    int32_t winner[PIECE];
    between(above, below, weight, piece.one, count);
    for (int j = 0; j < count; j++) best[j] = piece.one[j], second[j] = -3e38f, winner[j] = 0;
    for (int channel = 1; channel < classes; channel++) {
        float *logits = piece.one + channel * PIECE;
        between(above + (int64_t)channel * width, below + (int64_t)channel * width, weight, logits, count);
        for (int j = 0; j < count; j++) {
            const float logit = logits[j], before = best[j];
            const bool better = logit > before;
            const float lower = better ? before : logit;
            second[j] = lower > second[j] ? lower : second[j];
            best[j] = better ? logit : before;
            winner[j] = better ? channel : winner[j];
        }
    }
    // exp(logit - best) is 1 for the winner; the sum of the others keeps its digits where they are small.
    for (int j = 0; j < count; j++) others[j] = product[j] = 0;
    for (int channel = 0; channel < classes; channel++) {
        float *below_best = piece.one + channel * PIECE, *exponentials = piece.two + channel * PIECE;
        for (int j = 0; j < count; j++) {
            const float distance = below_best[j] - best[j], value = exponential(distance);
            // An exponential of 0 times a distance without bound must stay 0.
            const float term = value * (distance > LOWEST ? distance : LOWEST);
            exponentials[j] = value;
            below_best[j] = term;
            others[j] += winner[j] == channel ? 0.0f : value;
            product[j] += term;
        }
    }
    float above_threshold = 0, margin = 0, least = 0;
#pragma omp simd reduction(+ : above_threshold, margin, least)
    for (int j = 0; j < count; j++) {
        const float inverse = 1.0f / (1.0f + others[j]), log_sum = logarithm(others[j]);
        share[j] = inverse;
        mixed[j] = log_sum * inverse;
        entropy[j] = log_sum - product[j] * inverse;
        above_threshold += entropy[j] > threshold ? 1.0f : 0.0f;
        margin += (others[j] + exponential(second[j] - best[j])) * inverse;
        least += others[j] * inverse;
    }
    sums.pixels[0] += above_threshold;
    sums.pixels[1] += margin;
    sums.pixels[2] += least;
    for (int channel = 0; channel < classes; channel++) {
        const float *terms = piece.one + channel * PIECE, *exponentials = piece.two + channel * PIECE;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < count; j++) sum += exponentials[j] * mixed[j] - terms[j] * share[j];
        sums.classes[4 * channel] += sum;
    }
    for (int j = 0; j < count; j++) {
        double *region = sums.classes + 4 * winner[j];
        region[1] += 1;
        region[2] += entropy[j];
        region[3] += share[j];
        sums.columns[j] += entropy[j];
    }
    if (labels)
        for (int j = 0; j < count; j++) labels[j] = (uint8_t)winner[j];
}

template <int PIXELS>
void sigmoid_piece(int classes, const float *above, const float *below, int width, float weight, int some, float threshold,
                   Piece piece, Sums sums, uint8_t *labels, int64_t plane) {
    const int count = PIXELS ? PIXELS : some;
    float entropy[PIECE], doubt[PIECE], odds[PIECE]; // doubt: 1 - p of the likeliest outcome; odds: of the next one to it
    for (int j = 0; j < count; j++) entropy[j] = doubt[j] = odds[j] = 0;
    for (int channel = 0; channel < classes; channel++) {
        float *logits = piece.one + channel * PIECE, *surer = piece.two + channel * PIECE;
        between(above + (int64_t)channel * width, below + (int64_t)channel * width, weight, logits, count);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < count; j++) {
            const float away = logits[j] < 0 ? logits[j] : -logits[j], value = exponential(away);
            const float inverse = 1.0f / (1.0f + value), unsure = value * inverse;
            const float binary = log_of_one_and(value) - unsure * (away > LOWEST ? away : LOWEST);
            surer[j] = inverse;
            sum += binary;
            entropy[j] += binary;
            doubt[j] += unsure - doubt[j] * unsure;
            odds[j] = value > odds[j] ? value : odds[j];
        }
        sums.classes[4 * channel] += sum;
    }
    float above_threshold = 0, margin = 0, least = 0;
#pragma omp simd reduction(+ : above_threshold, margin, least)
    for (int j = 0; j < count; j++) {
        above_threshold += entropy[j] > threshold ? 1.0f : 0.0f;
        margin += doubt[j] + (1.0f - doubt[j]) * odds[j];
        least += doubt[j];
    }
    sums.pixels[0] += above_threshold;
    sums.pixels[1] += margin;
    sums.pixels[2] += least;
    for (int channel = 0; channel < classes; channel++) {
        const float *logits = piece.one + channel * PIECE, *surer = piece.two + channel * PIECE;
        float members = 0, region = 0, confidence = 0;
#pragma omp simd reduction(+ : members, region, confidence)
        for (int j = 0; j < count; j++) {
            const float member = logits[j] > 0 ? 1.0f : 0.0f;
            members += member;
            region += member * entropy[j];
            confidence += member * surer[j];
        }
        double *table = sums.classes + 4 * channel;
        table[1] += members, table[2] += region, table[3] += confidence;
        if (labels)
            for (int j = 0; j < count; j++) labels[channel * plane + j] = logits[j] > 0;
    }
    for (int j = 0; j < count; j++) sums.columns[j] += entropy[j];
}

} // namespace

// Rows `from` to `to` (excluded) of an image. `labels`: the whole class map, (height, width) or, sigmoid, (classes, height,
// width); or null. Sums are added to what the arrays hold. Returns 0, or 1 where there is no memory.
extern "C" int reduce_band(const float *coarse, int classes, int rows, int columns, const int32_t *down_first,
                           const int32_t *down_second, const float *down_weight, const int32_t *across_first,
                           const int32_t *across_second, const float *across_weight, int from, int to, int height, int width,
                           int sigmoid, float threshold, double *column_sums, double *pixel_sums, double *class_sums,
                           uint8_t *labels) {
    const int64_t line = (int64_t)classes * width, piece_size = (int64_t)classes * PIECE;
    float *memory = (float *)malloc(sizeof(float) * (size_t)(2 * line + 2 * piece_size));
    if (!memory) return 1;
    const Taps across = {across_first, across_second, across_weight};
    Lines lines = {coarse, classes, rows, columns, width, across, {memory, memory + line}, {-1, -1}};
    const Piece piece = {memory + 2 * line, memory + 2 * line + piece_size};
    const int64_t plane = (int64_t)height * width;
    for (int y = from; y < to; y++) {
        const float weight = down_weight[y], *above = lines.at(down_first[y]), *below = lines.at(down_second[y]);
        for (int x = 0; x < width; x += PIECE) {
            const int count = width - x < PIECE ? width - x : PIECE;
            const Sums sums = {column_sums + x, pixel_sums, class_sums};
            uint8_t *here = labels ? labels + (int64_t)y * width + x : nullptr;
            if (sigmoid) {
                const auto reduce = count == PIECE ? sigmoid_piece<PIECE> : sigmoid_piece<0>;
                reduce(classes, above + x, below + x, width, weight, count, threshold, piece, sums, here, plane);
            } else {
                const auto reduce = count == PIECE ? softmax_piece<PIECE> : softmax_piece<0>;
                reduce(classes, above + x, below + x, width, weight, count, threshold, piece, sums, here);
            }
        }
    }
    free(memory);
    return 0;
}

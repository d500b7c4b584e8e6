/* Intervals of tokens from their logits, as `ciar.head_output` has them, in one pass over each.

   In torch this is a dozen calls, and behind a large centre head each of them finds neither its
   code nor its data in the caches. Compiled and called by `ciar_edge.kernel`, without errno and
   traps; only the sums marked as reductions are reordered. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define LEAST_EXPONENT -87.0f /* below, e^x is less than the smallest normal float */

/* e^x for LEAST_EXPONENT <= x <= 0 to 2 roundings: 2^n e^f with |f| <= log(2) / 2, by the
   polynomial of the Cephes library. log 2 is in two parts, the first of which is exact in n times
   it. In steps that a compiler can do for many x at once, which a call of expf is not. */
static inline float exp_of(float x) {
  float n = rintf(x * 1.44269504f);
  float f = x - n * 0.693359375f + n * 2.12194440e-4f;
  float y = 1.9875691500e-4f;
  y = y * f + 1.3981999507e-3f;
  y = y * f + 8.3334519073e-3f;
  y = y * f + 4.1665795894e-2f;
  y = y * f + 1.6666665459e-1f;
  y = y * f + 5.0000001201e-1f;
  y = y * f * f + f + 1.0f;
  union {
    int32_t bits;
    float value;
  } power = {((int32_t)n + 127) << 23};
  return y * power.value;
}

/* centre [num_tokens, num_codes]: logits, rows `stride` floats apart.
   reach [num_tokens, num_codes]: x with t = sigmoid(x), becomes t, at most max_reach.
   mid, width [num_tokens, num_codes]: p and upper - lower.
   sums [num_tokens, 2]: sum and population standard deviation of the widths. */
void ciar_intervals(const float *restrict centre, ptrdiff_t stride, ptrdiff_t num_tokens,
                    ptrdiff_t num_codes, float max_reach, float *restrict reach,
                    float *restrict mid, float *restrict width, float *restrict sums) {
  for (ptrdiff_t token = 0; token < num_tokens; token++) {
    float top = -INFINITY;
#pragma omp simd reduction(max : top)
    for (ptrdiff_t i = 0; i < num_codes; i++) top = centre[i] > top ? centre[i] : top;

    float others = 0.0f, num_tops = 0.0f; /* sum of e^(c - top) below the top, and how many at it */
#pragma omp simd reduction(+ : others, num_tops)
    for (ptrdiff_t i = 0; i < num_codes; i++) {
      float c = centre[i] - top;
      float e = c < LEAST_EXPONENT ? 0.0f : exp_of(c < LEAST_EXPONENT ? LEAST_EXPONENT : c);
      mid[i] = e;
      others += c < 0.0f ? e : 0.0f;
      num_tops += c < 0.0f ? 0.0f : 1.0f;
    }

    float scale = 1.0f / (others + num_tops);
    float rest = others * scale; /* 1 - p of a code above one half: where p rounds to 1, too */
    float total = 0.0f;
#pragma omp simd reduction(+ : total)
    for (ptrdiff_t i = 0; i < num_codes; i++) {
      float x = reach[i], down = -fabsf(x);
      float e = exp_of(down < LEAST_EXPONENT ? LEAST_EXPONENT : down);
      float t = (x < 0.0f ? e : 1.0f) / (1.0f + e);
      t = t > max_reach ? max_reach : t;
      float p = mid[i] * scale;
      float s = t * p * (p > 0.5f ? rest : 1.0f - p); /* t q */
      float w = s / (0.25f + t * (s - 0.25f * t));
      reach[i] = t;
      mid[i] = p;
      width[i] = w;
      total += w;
    }

    float mean = total / (float)num_codes, square = 0.0f;
#pragma omp simd reduction(+ : square)
    for (ptrdiff_t i = 0; i < num_codes; i++) square += (width[i] - mean) * (width[i] - mean);
    sums[0] = total;
    sums[1] = sqrtf(square / (float)num_codes);

    centre += stride;
    reach += num_codes, mid += num_codes, width += num_codes;
    sums += 2;
  }
}

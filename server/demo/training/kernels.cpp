// The two parts of a Mamba-2 layer that are memory traffic in plain PyTorch:
// the causal convolution with its SiLU, and the recurrence. Token by token, as
// in serving; single-threaded, since training runs one process per core.
//
// The loops are written for the compiler to vectorise: the innermost index is
// always contiguous, and its length a constant in the recurrence.

#include <torch/extension.h>

#include <cmath>
#include <vector>

namespace {

constexpr int kWidth = 32;  // mamba_head_dim
constexpr int kState = 32;  // ssm_state_size

torch::Tensor dense(const torch::Tensor& t) {
  TORCH_CHECK(t.scalar_type() == torch::kFloat32, "float32 only");
  return t.contiguous();
}

// in [B, L, C], taps [K, C] (the last multiplies the current token), bias [C].
void preactivation(const float* in, const float* taps, const float* bias, int t, int kernel, int channels, float* out) {
  for (int c = 0; c < channels; c++) out[c] = bias[c];
  for (int j = 0; j < kernel; j++) {
    const int from = t - (kernel - 1) + j;
    if (from < 0) continue;
    const float* row = in + static_cast<int64_t>(from) * channels;
    const float* tap = taps + j * channels;
    for (int c = 0; c < channels; c++) out[c] += tap[c] * row[c];
  }
}

torch::Tensor conv_forward(torch::Tensor in, torch::Tensor taps, torch::Tensor bias) {
  in = dense(in), taps = dense(taps), bias = dense(bias);
  const int batch = in.size(0), length = in.size(1), channels = in.size(2), kernel = taps.size(0);
  auto out = torch::empty_like(in);
  for (int b = 0; b < batch; b++) {
    const int64_t base = static_cast<int64_t>(b) * length * channels;
    for (int t = 0; t < length; t++) {
      float* y = out.data_ptr<float>() + base + static_cast<int64_t>(t) * channels;
      preactivation(in.data_ptr<float>() + base, taps.data_ptr<float>(), bias.data_ptr<float>(), t, kernel, channels, y);
      for (int c = 0; c < channels; c++) y[c] = y[c] / (1 + std::exp(-y[c]));
    }
  }
  return out;
}

std::vector<torch::Tensor> conv_backward(torch::Tensor grad, torch::Tensor in, torch::Tensor taps, torch::Tensor bias) {
  grad = dense(grad), in = dense(in), taps = dense(taps), bias = dense(bias);
  const int batch = in.size(0), length = in.size(1), channels = in.size(2), kernel = taps.size(0);
  auto grad_in = torch::zeros_like(in), grad_taps = torch::zeros_like(taps), grad_bias = torch::zeros_like(bias);
  std::vector<float> pre(channels);
  float* g = pre.data();
  for (int b = 0; b < batch; b++) {
    const int64_t base = static_cast<int64_t>(b) * length * channels;
    const float* rows = in.data_ptr<float>() + base;
    for (int t = 0; t < length; t++) {
      preactivation(rows, taps.data_ptr<float>(), bias.data_ptr<float>(), t, kernel, channels, g);
      const float* up = grad.data_ptr<float>() + base + static_cast<int64_t>(t) * channels;
      float* bias_sum = grad_bias.data_ptr<float>();
      for (int c = 0; c < channels; c++) {
        const float s = 1 / (1 + std::exp(-g[c]));
        g[c] = up[c] * s * (1 + g[c] * (1 - s));
        bias_sum[c] += g[c];
      }
      for (int j = 0; j < kernel; j++) {
        const int from = t - (kernel - 1) + j;
        if (from < 0) continue;
        const float* tap = taps.data_ptr<float>() + j * channels;
        const float* row = rows + static_cast<int64_t>(from) * channels;
        float* to = grad_in.data_ptr<float>() + base + static_cast<int64_t>(from) * channels;
        float* tap_sum = grad_taps.data_ptr<float>() + j * channels;
        for (int c = 0; c < channels; c++) {
          to[c] += tap[c] * g[c];
          tap_sum[c] += row[c] * g[c];
        }
      }
    }
  }
  return {grad_in, grad_taps, grad_bias};
}

// One head of one row: pointers to its first token, and what a token is apart.
struct Head {
  const float *x, *b, *c, *dt;
  int64_t row, dt_row;
  float a, d;
};

Head head_of(const torch::Tensor& xbc, const torch::Tensor& dt, const torch::Tensor& a, const torch::Tensor& d, int batch,
             int head, int groups) {
  const int heads = dt.size(2);
  const int64_t length = xbc.size(1), row = xbc.size(2);
  const float* first = xbc.data_ptr<float>() + batch * length * row;
  const int group = head / (heads / groups);
  const float* b = first + heads * kWidth + group * kState;
  return {first + head * kWidth, b, b + groups * kState, dt.data_ptr<float>() + batch * length * heads + head, row, heads,
          a.data_ptr<float>()[head], d.data_ptr<float>()[head]};
}

// S = exp(a dt) S + B (dt x)^T, stored [state][width].
float advance(const Head& h, int t, const float* from, float* to) {
  const float dt = h.dt[t * h.dt_row], keep = std::exp(h.a * dt);
  const float *x = h.x + t * h.row, *b = h.b + t * h.row;
  for (int n = 0; n < kState; n++) {
    const float add = dt * b[n];
    for (int p = 0; p < kWidth; p++) to[n * kWidth + p] = keep * from[n * kWidth + p] + add * x[p];
  }
  return keep;
}

// xbc [B, L, H*P + 2*G*N], dt [B, L, H], a and d [H] -> y [B, L, H*P].
torch::Tensor scan_forward(torch::Tensor xbc, torch::Tensor dt, torch::Tensor a, torch::Tensor d, int64_t groups) {
  xbc = dense(xbc), dt = dense(dt), a = dense(a), d = dense(d);
  const int batch = dt.size(0), length = dt.size(1), heads = dt.size(2);
  TORCH_CHECK(xbc.size(2) == heads * kWidth + 2 * groups * kState, "head_dim and state must be 32");
  auto out = torch::empty({batch, length, heads * kWidth}, xbc.options());
  alignas(64) float state[kState * kWidth];
  for (int row = 0; row < batch; row++) {
    for (int head = 0; head < heads; head++) {
      const Head h = head_of(xbc, dt, a, d, row, head, groups);
      std::fill_n(state, kState * kWidth, 0.f);
      for (int t = 0; t < length; t++) {
        advance(h, t, state, state);
        const float *x = h.x + t * h.row, *c = h.c + t * h.row;
        alignas(64) float sum[kWidth];
        for (int p = 0; p < kWidth; p++) sum[p] = h.d * x[p];
        for (int n = 0; n < kState; n++)
          for (int p = 0; p < kWidth; p++) sum[p] += c[n] * state[n * kWidth + p];
        std::copy_n(sum, kWidth, out.data_ptr<float>() + ((row * static_cast<int64_t>(length) + t) * heads + head) * kWidth);
      }
    }
  }
  return out;
}

// States are computed again, one head of one row at a time, so that they stay
// in the cache instead of in memory.
std::vector<torch::Tensor> scan_backward(torch::Tensor grad, torch::Tensor xbc, torch::Tensor dt, torch::Tensor a,
                                         torch::Tensor d, int64_t groups) {
  grad = dense(grad), xbc = dense(xbc), dt = dense(dt), a = dense(a), d = dense(d);
  const int batch = dt.size(0), length = dt.size(1), heads = dt.size(2);
  constexpr int kSize = kState * kWidth;
  auto grad_xbc = torch::zeros_like(xbc), grad_dt = torch::empty_like(dt);
  auto grad_a = torch::zeros_like(a), grad_d = torch::zeros_like(d);
  std::vector<float> states(static_cast<size_t>(length + 1) * kSize), keeps(length);
  alignas(64) float back[kSize];
  for (int row = 0; row < batch; row++) {
    for (int head = 0; head < heads; head++) {
      const Head h = head_of(xbc, dt, a, d, row, head, groups);
      std::fill_n(states.begin(), kSize, 0.f);
      for (int t = 0; t < length; t++) keeps[t] = advance(h, t, &states[t * kSize], &states[(t + 1) * kSize]);
      std::fill_n(back, kSize, 0.f);
      for (int t = length - 1; t >= 0; t--) {
        const int64_t token = row * static_cast<int64_t>(length) + t;
        const float* dy = grad.data_ptr<float>() + (token * heads + head) * kWidth;
        const float *x = h.x + t * h.row, *b = h.b + t * h.row, *c = h.c + t * h.row;
        float* to = grad_xbc.data_ptr<float>() + token * h.row;
        float *to_x = to + head * kWidth, *to_b = to + (h.b - (h.x - head * kWidth)), *to_c = to_b + (h.c - h.b);
        const float *before = &states[t * kSize], *after = before + kSize;
        const float step = h.dt[t * h.dt_row];
        alignas(64) float by_x[kWidth] = {}, by_keep[kWidth] = {};
        for (int n = 0; n < kState; n++) {
          float by_b = 0, by_c = 0;
          for (int p = 0; p < kWidth; p++) {
            const int i = n * kWidth + p;
            back[i] += c[n] * dy[p];
            by_c += dy[p] * after[i];
            by_b += back[i] * x[p];
            by_x[p] += back[i] * b[n];
            by_keep[p] += back[i] * before[i];
            back[i] *= keeps[t];
          }
          to_b[n] += step * by_b;
          to_c[n] += by_c;
        }
        float keep_sum = 0, step_sum = 0, skip_sum = 0;
        for (int p = 0; p < kWidth; p++) {
          to_x[p] = step * by_x[p] + h.d * dy[p];
          keep_sum += by_keep[p];
          step_sum += by_x[p] * x[p];
          skip_sum += dy[p] * x[p];
        }
        grad_dt.data_ptr<float>()[token * heads + head] = step_sum + keep_sum * keeps[t] * h.a;
        grad_a.data_ptr<float>()[head] += keep_sum * keeps[t] * step;
        grad_d.data_ptr<float>()[head] += skip_sum;
      }
    }
  }
  return {grad_xbc, grad_dt, grad_a, grad_d};
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("conv_forward", &conv_forward);
  m.def("conv_backward", &conv_backward);
  m.def("scan_forward", &scan_forward);
  m.def("scan_backward", &scan_backward);
}

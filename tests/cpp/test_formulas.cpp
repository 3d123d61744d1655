// Rules in float64 against formulas written down from their papers (torch.optim's conventions for eps), several steps
// with a mask: an oracle that shares no code with csrc except the keep bits.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <numeric>

#include "check.h"
#include "lists.h"

namespace lrt::test {
namespace {

// One element's history and its direction at step t.
struct Moments {
  double m = 0, v = 0, extra = 0;
  std::deque<double> last = {};  // gradients
};
using Formula = double (*)(double grad, double t, Moments& s);

double sgd(double grad, double, Moments&) { return grad; }

double sgd_momentum(double grad, double t, Moments& s) {
  return s.m = t == 1 ? grad : kSgd.momentum * s.m + (1 - kSgd.dampening) * grad;
}

double sgd_nesterov(double grad, double t, Moments& s) { return grad + kSgd.momentum * sgd_momentum(grad, t, s); }

void advance(const AdamHyper& h, double grad, Moments& s) {
  s.m = h.beta1 * s.m + (1 - h.beta1) * grad;
  s.v = h.beta2 * s.v + (1 - h.beta2) * grad * grad;
}

double adam(double grad, double t, Moments& s) {
  advance(kAdam, grad, s);
  const double m_hat = s.m / (1 - std::pow(kAdam.beta1, t)), v_hat = s.v / (1 - std::pow(kAdam.beta2, t));
  return m_hat / (std::sqrt(v_hat) + kAdam.eps);
}

double amsgrad(double grad, double t, Moments& s) {
  advance(kAdam, grad, s);
  s.extra = std::fmax(s.extra, s.v);
  const double m_hat = s.m / (1 - std::pow(kAdam.beta1, t)), v_hat = s.extra / (1 - std::pow(kAdam.beta2, t));
  return m_hat / (std::sqrt(v_hat) + kAdam.eps);
}

template <bool kCentered, bool kMomentum>
double rmsprop(double grad, double, Moments& s) {
  const RMSpropHyper& h = kRmsprop;
  s.v = h.alpha * s.v + (1 - h.alpha) * grad * grad;
  if (kCentered) s.m = h.alpha * s.m + (1 - h.alpha) * grad;
  const double update = grad / (std::sqrt(s.v - s.m * s.m) + h.eps);
  return kMomentum ? s.extra = h.momentum * s.extra + update : update;
}

// Liu et al. 2020, Algorithm 2.
double radam(double grad, double t, Moments& s) {
  const RAdamHyper& h = kRadam;
  advance({h.beta1, h.beta2, h.eps}, grad, s);
  const double m_hat = s.m / (1 - std::pow(h.beta1, t)), power = std::pow(h.beta2, t);
  const double rho_inf = 2 / (1 - h.beta2) - 1, rho = rho_inf - 2 * t * power / (1 - power);
  if (rho <= 5) return m_hat;
  const double r = std::sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho));
  return r * m_hat * std::sqrt(1 - power) / (std::sqrt(s.v) + h.eps);
}

// Zhuang et al. 2020, Algorithm 2.
double adabelief(double grad, double t, Moments& s) {
  const AdaBeliefHyper& h = kAdabelief;
  s.m = h.beta1 * s.m + (1 - h.beta1) * grad;
  s.v = h.beta2 * s.v + (1 - h.beta2) * (grad - s.m) * (grad - s.m) + h.eps;
  const double m_hat = s.m / (1 - std::pow(h.beta1, t)), v_hat = s.v / (1 - std::pow(h.beta2, t));
  return m_hat / (std::sqrt(v_hat) + h.eps);
}

// Dozat 2016, with torch.optim's schedule of the momentum.
double nadam(double grad, double t, Moments& s) {
  const auto mu = [](double t) { return kNadam.beta1 * (1 - 0.5 * std::pow(kNadam.decay, t)); };
  s.m = kNadam.beta1 * s.m + (1 - kNadam.beta1) * grad;
  s.v = kNadam.beta2 * s.v + (1 - kNadam.beta2) * grad * grad;
  s.extra = (t == 1 ? 1 : s.extra) * mu(t);
  const double m_hat = mu(t + 1) * s.m / (1 - s.extra * mu(t + 1)) + (1 - mu(t)) * grad / (1 - s.extra);
  return m_hat / (std::sqrt(s.v / (1 - std::pow(kNadam.beta2, t))) + kNadam.eps);
}

// Chen et al. 2023, Algorithm 2.
double lion(double grad, double, Moments& s) {
  const double update = kLion.beta1 * s.m + (1 - kLion.beta1) * grad;
  s.m = kLion.beta2 * s.m + (1 - kLion.beta2) * grad;
  return static_cast<double>(update > 0) - static_cast<double>(update < 0);
}

// Lin et al. 2022, Eq. 10.
double average_sgd(double grad, double, Moments& s) {
  s.last.push_back(grad);
  if (static_cast<int64_t>(s.last.size()) > kAverageSgd.window) s.last.pop_front();
  return std::accumulate(s.last.begin(), s.last.end(), 0.0) / static_cast<double>(s.last.size());
}

const std::map<std::string, Formula> kFormulas = {{"sgd", sgd},
                                                  {"sgd momentum", sgd_momentum},
                                                  {"sgd nesterov", sgd_nesterov},
                                                  {"adam", adam},
                                                  {"amsgrad", amsgrad},
                                                  {"rmsprop", rmsprop<false, false>},
                                                  {"rmsprop momentum", rmsprop<false, true>},
                                                  {"rmsprop centered", rmsprop<true, false>},
                                                  {"rmsprop centered momentum", rmsprop<true, true>},
                                                  {"radam", radam},
                                                  {"adabelief", adabelief},
                                                  {"nadam", nadam},
                                                  {"lion", lion},
                                                  {"average sgd", average_sgd}};

double value(const Bytes& bytes, int64_t i) {
  double x;
  memcpy(&x, bytes.data() + i * sizeof(x), sizeof(x));
  return x;
}

// One naive step, section 6 of the design: scale, coupled decay, rule, decoupled decay, keep.
void naive_step(const Call& call, Formula formula, const TestTensor& tensor, std::vector<double>& params,
                std::vector<Moments>& moments) {
  const StepScalars& s = call.scalars;
  const KeepStream key = {call.seed, static_cast<uint32_t>(tensor.step), tensor.param_index};
  for (int64_t i = 0; i < tensor.count; ++i) {
    double grad = value(tensor.grad, i) * s.grad_factor;
    if (!s.decoupled_weight_decay) grad += s.weight_decay * params[i];
    double direction = formula(grad, tensor.step, moments[i]);
    if (s.decoupled_weight_decay) direction += s.weight_decay * params[i];
    if (keep_bits(key, i) < call.threshold) params[i] -= s.lr * direction;
  }
}

void follows_formula(const Call& call, cpu::Isa isa) {
  constexpr DtypePair doubles = {Dtype::kDouble, Dtype::kDouble};
  constexpr int64_t count = 1100;
  const Formula formula = kFormulas.at(call.variant.name);
  Random random = {79};
  TestList list = {random_tensor(call.variant, doubles, count, 0, random)};
  TestTensor& tensor = list[0];
  tensor.param_index = 5;
  for (Bytes& state : tensor.states) std::fill(state.begin(), state.end(), uint8_t{0});
  std::vector<double> params(count);
  for (int64_t i = 0; i < count; ++i) params[i] = value(tensor.param, i);
  std::vector<Moments> moments(count);
  tensor.scalar = 1;
  for (tensor.step = 1; tensor.step <= 10; ++tensor.step) {
    if (call.variant.advance) tensor.scalar = call.variant.advance(call.variant.hyper, tensor.step, tensor.scalar);
    for (int64_t i = 0; i < count; ++i) {
      const double grad = random.sign() * (0.1 + random.uniform());
      memcpy(tensor.grad.data() + i * sizeof(grad), &grad, sizeof(grad));
    }
    naive_step(call, formula, tensor, params, moments);
    run_native(call, isa, list);
    for (int64_t i = 0; i < count; ++i) {
      const double got = value(tensor.param, i), error = std::fabs(got - params[i]);
      require(error <= 1e-12 * std::fmax(1, std::fabs(params[i])), "step ", tensor.step, ", element ", i, ": ", got,
              " not ", params[i], ", off by ", error);
    }
  }
}

}  // namespace

void test_formulas() {
  for (const Variant& variant : variants()) {
    for (const DecayMode& mode : kDecayModes) {
      for (const uint32_t threshold : {32768u, kKeepAll}) {
        for (const cpu::Isa isa : available_isas()) {
          const std::string of = text(variant.name, ", ", mode.name, ", ", threshold, ", ", cpu::isa_name(isa));
          run_case("formula: " + of, [&] { follows_formula({variant, mode.scalars, threshold}, isa); });
        }
      }
    }
  }
}

}  // namespace lrt::test

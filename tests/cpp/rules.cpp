// The inventory: of every rule its hyper-parameters, a formula in float64 that is written down from its paper
// (torch.optim's conventions for eps) and shares no code with csrc, and its variants.
#include <cmath>
#include <numeric>

#include "make_variant.h"
#include "rules/all.h"

namespace lrt::test {
namespace {

// No default of torch.optim among them.
constexpr SGDHyper kSgd = {0.85, 0.3};
constexpr AdamHyper kAdam = {0.8, 0.95, 1e-6};
constexpr RMSpropHyper kRmsprop = {0.95, 1e-6, 0.7};
constexpr RAdamHyper kRadam = {0.8, 0.95, 1e-6};
constexpr AdaBeliefHyper kAdabelief = {0.8, 0.95, 1e-6};
constexpr NAdamHyper kNadam = {0.8, 0.95, 1e-6, 0.98};
constexpr LionHyper kLion = {0.8, 0.95};
constexpr AverageSGDHyper kAverageSgd = {3};

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

}  // namespace

const std::vector<Variant>& variants() {
  static const std::vector<Variant> all = {
      variant<SGDRule, false, false>("sgd", 0b0, kSgd, sgd),
      variant<SGDRule, true, false>("sgd momentum", 0b0, kSgd, sgd_momentum),
      variant<SGDRule, true, true>("sgd nesterov", 0b0, kSgd, sgd_nesterov),
      variant<AdamRule, false>("adam", 0b110, kAdam, adam),
      variant<AdamRule, true>("amsgrad", 0b110, kAdam, amsgrad),
      variant<RMSpropRule, false, false>("rmsprop", 0b1, kRmsprop, rmsprop<false, false>),
      variant<RMSpropRule, false, true>("rmsprop momentum", 0b1, kRmsprop, rmsprop<false, true>),
      variant<RMSpropRule, true, false>("rmsprop centered", 0b1, kRmsprop, rmsprop<true, false>),
      variant<RMSpropRule, true, true>("rmsprop centered momentum", 0b1, kRmsprop, rmsprop<true, true>),
      variant<RAdamRule>("radam", 0b10, kRadam, radam),
      variant<AdaBeliefRule>("adabelief", 0b10, kAdabelief, adabelief),
      variant<NAdamRule>("nadam", 0b10, kNadam, nadam),
      variant<LionRule>("lion", 0b0, kLion, lion),
      variant<AverageSGDRule>("average sgd", 0b0, kAverageSgd, average_sgd),
  };
  return all;
}

}  // namespace lrt::test

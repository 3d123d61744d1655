// Rules in float64 against the formulas of rules.cpp, several steps with a mask.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "check.h"
#include "lists.h"

namespace lrt::test {
namespace {

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
  const Formula formula = call.variant.formula;
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

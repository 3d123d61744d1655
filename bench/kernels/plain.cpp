// See plain.h.
#include "plain.h"

#include <cmath>

#include "cpu/isa.h"

namespace lrt::bench {
namespace {

const float* floats(const void* memory) { return static_cast<const float*>(memory); }
float* floats(void* memory) { return static_cast<float*>(memory); }

}  // namespace

template <class Isa>
void Plain<Isa>::copy(const Tensors& tensors) {
  float* __restrict param = floats(tensors.param);
  const float* __restrict grad = floats(tensors.grad);
  for (int64_t i = 0; i < tensors.count; ++i) param[i] = grad[i] * 0.5f;  // a multiplication, or it would be a memcpy
}

template <class Isa>
template <bool kAmsgrad>
void Plain<Isa>::adam(const Tensors& tensors) {
  float *__restrict param = floats(tensors.param), *__restrict mean = floats(tensors.states[0]),
        *__restrict square = floats(tensors.states[1]), *__restrict maximum = floats(tensors.states[2]);
  const float* __restrict grad = floats(tensors.grad);
  for (int64_t i = 0; i < tensors.count; ++i) {
    mean[i] = 0.9f * mean[i] + 0.1f * grad[i];
    square[i] = 0.999f * square[i] + 0.001f * grad[i] * grad[i];
    if constexpr (kAmsgrad) maximum[i] = maximum[i] > square[i] ? maximum[i] : square[i];
    const float divisor = kAmsgrad ? maximum[i] : square[i];
    param[i] = param[i] - 1e-3f * mean[i] / (std::sqrt(divisor) * 1.01f + 1e-8f);
  }
}

template <class Isa>
void Plain<Isa>::sgd(const Tensors& tensors) {
  float* __restrict param = floats(tensors.param), * __restrict momentum = floats(tensors.states[0]);
  const float* __restrict grad = floats(tensors.grad);
  for (int64_t i = 0; i < tensors.count; ++i) {
    momentum[i] = 0.9f * momentum[i] + grad[i];
    param[i] = param[i] - 1e-3f * momentum[i];
  }
}

template struct Plain<cpu::LRT_ISA>;
template void Plain<cpu::LRT_ISA>::adam<false>(const Tensors&);
template void Plain<cpu::LRT_ISA>::adam<true>(const Tensors&);

}  // namespace lrt::bench

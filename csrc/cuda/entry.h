// CUDA entry of every rule: a call over a table of device addresses, checked, to the launchers of step.h.
#pragma once

#include <functional>

#include "call.h"
#include "cuda/step.h"

namespace lrt::cuda {

// Checks the call, and launches what `launch` says of it; that returns the error's text, or null.
void run(const ListCall& call, const std::function<const char*(const Step&)>& launch);

template <class Record>
void step(const ListCall& call, const typename Record::Hyper& hyper, const Flags<Record>& flags) {
  run(call, [&](const Step& step) { return launch<Record>(step, hyper, flags); });
}

// Copies int64 words from the CPU to the device of `target`, in stream order (see upload.h).
void upload_words(Tensor target, Tensor words);

}  // namespace lrt::cuda

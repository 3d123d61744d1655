// See lossgrad.h.
#include "cpu/lossgrad.h"

#include "core/lossgrad.h"

namespace lrt::cpu {
namespace {

void write_scalar(const Tensor& tensor, double value) {
  if (dtype_of(tensor) == Dtype::kFloat) {
    *static_cast<float*>(tensor.mutable_data_ptr()) = static_cast<float>(value);
  } else {
    *static_cast<double*>(tensor.mutable_data_ptr()) = value;
  }
}

}  // namespace

void adapt_lrs(Tensor loss, Tensor trial, Tensor slope, Tensor ratio, std::vector<Tensor> lrs, double c,
               double resolution) {
  const LossGrad decided =
      lossgrad(read_scalar(loss, "loss"), read_scalar(trial, "trial"), read_scalar(slope, "slope"), c, resolution);
  read_scalar(ratio, "ratio");  // all are checked before any is written
  std::vector<double> adapted;
  for (const Tensor& lr : lrs) adapted.push_back(read_scalar(lr, "lrs") * decided.factor);
  for (size_t i = 0; i < lrs.size(); ++i) write_scalar(lrs[i], adapted[i]);
  write_scalar(ratio, decided.ratio);
}

}  // namespace lrt::cpu

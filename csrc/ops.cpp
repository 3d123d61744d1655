// Registers the ops of every rule (see ops.h), and those that are no rule's.
#include "ops.h"

#include "cpu/entry.h"
#include "cpu/isa.h"
#include "cpu/lossgrad.h"
#include "cpu/norms.h"
#include "rules/all.h"
#if defined(LRT_CUDA_ARCHS)
#include "cuda/entry.h"
#include "cuda/upload.h"
#endif

namespace lrt {
namespace {

#if defined(LRT_CUDA_ARCHS)
std::string cuda_archs() { return LRT_CUDA_ARCHS; }
int64_t cuda_version() { return cuda::toolkit_version(); }
#else
std::string cuda_archs() { return ""; }
int64_t cuda_version() { return 0; }
#endif

std::string cpu_isa() { return cpu::isa_name(cpu::active_isa()); }

}  // namespace
}  // namespace lrt

STABLE_TORCH_LIBRARY(lrtricks_fused, m) {
  lrt::for_each_rule([&]<class Record>() {
    for (const bool table : {false, true}) m.def(lrt::schema_of<Record>(table).c_str());
  });
  m.def("cpu_isa() -> str");
  m.def("cuda_archs() -> str");
  m.def("cuda_version() -> int");
  m.def(
      "lossgrad_(Tensor loss, Tensor trial, Tensor slope, Tensor(a!) ratio, Tensor(b!)[] lrs, float c,"
      " float resolution) -> ()");
  m.def("check_table(Tensor table) -> ()");
  m.def("squared_norms_(Tensor[] grads, Tensor(a!) squares) -> ()");
  m.def(
      "table_squared_norms_(Tensor table, Tensor(a!) squares, Tensor? chunk_tensors, Tensor? scratch,"
      " int param_dtype) -> ()");
  m.def("write_clip_(Tensor(a!) squares, Tensor(b!) norm, Tensor(c!) clip, Tensor? grad_scale, float max_norm) -> ()");
  m.def("upload_(Tensor(a!) target, Tensor words) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CPU, m) {
  lrt::for_each_rule([&]<class Record>() {
    m.impl(lrt::op_name<Record>(false).c_str(), lrt::list_op<Record, lrt::cpu::step<Record>>);
    m.impl(lrt::op_name<Record>(true).c_str(), lrt::table_op<Record, lrt::cpu::step<Record>>);
  });
  m.impl("check_table", TORCH_BOX(&lrt::cpu::check_table));
  m.impl("lossgrad_", TORCH_BOX(&lrt::cpu::adapt_lrs));
  m.impl("squared_norms_", TORCH_BOX(&lrt::cpu::squared_norms));
  m.impl("table_squared_norms_", TORCH_BOX(&lrt::cpu::table_squared_norms));
  m.impl("write_clip_", TORCH_BOX(&lrt::cpu::write_clip));
}

STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&lrt::cpu_isa));
  m.impl("cuda_archs", TORCH_BOX(&lrt::cuda_archs));
  m.impl("cuda_version", TORCH_BOX(&lrt::cuda_version));
}

#if defined(LRT_CUDA_ARCHS)
STABLE_TORCH_LIBRARY_IMPL(lrtricks_fused, CUDA, m) {
  lrt::for_each_rule([&]<class Record>() {
    m.impl(lrt::op_name<Record>(true).c_str(), lrt::table_op<Record, lrt::cuda::step<Record>>);
  });
  m.impl("upload_", TORCH_BOX(&lrt::cuda::upload_words));
  m.impl("table_squared_norms_", TORCH_BOX(&lrt::cuda::table_squared_norms));
  m.impl("write_clip_", TORCH_BOX(&lrt::cuda::write_clip));
}
#endif

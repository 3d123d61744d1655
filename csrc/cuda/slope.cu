// The launches of a slope that come after the step's, of whatever rule.
#include "cuda/slope.cuh"

namespace lrt::cuda {
namespace {

__global__ void add_slope(Step call, double* chunks, bool columns) {
  if (columns) return sum_column(chunks, call.chunks);
  if (call.arguments.skips()) return;
  const double sum = columns_sum(chunks, call.chunks);
  if (leads_warp()) *call.slope = *call.slope + sum * call.arguments.inverse_grad_scale();
}

}  // namespace

const char* load_slope(Dtype param) {
  return with_dtype(param, [&]<class Param>() {
    static Loaded loaded;
    return loaded.load(sum_chunks<Param>, add_slope);
  });
}

const char* launch_slope(const Step& call) {
  return with_dtype(call.param, [&]<class Param>() {
    double* const chunks = slope_chunks<Param>(call);
    const char* error = LAUNCH((sum_chunks<Param>), blocks_of_warps(call.chunks), kListThreads, call.stream, call);
    if (!error && call.chunks > kSlopeColumns)
      error = LAUNCH(add_slope, 1, static_cast<int>(kSlopeColumns), call.stream, call, chunks, true);
    return error ? error : LAUNCH(add_slope, 1, kWarp, call.stream, call, chunks, false);
  });
}

}  // namespace lrt::cuda

// CUTLASS's float32 implicit GEMM without tensor cores, forward, NHWC, for simulated_cycles.py: compiled to PTX, the kernel;
// compiled to a program, its launch on a layer, N C H K R stride, padded by R / 2: grid, block, shared bytes, parameters.
// Addresses of x, w, y and semaphores are numbers that nobody else would use.
// -DTILE_M -DTILE_N of a block, -DWARP_M -DWARP_N of a warp, as CUTLASS's own library combines them.

#include <cstdio>
#include <cstdlib>

#include "cutlass/conv/kernel/default_conv2d_fprop.h"
// after it
#include "cutlass/conv/device/implicit_gemm_convolution.h"

using NHWC = cutlass::layout::TensorNHWC;
using Kernel = typename cutlass::conv::kernel::DefaultConv2dFprop<
    float, NHWC, float, NHWC, float, NHWC, float, cutlass::arch::OpClassSimt, cutlass::arch::Sm50,
    cutlass::gemm::GemmShape<TILE_M, TILE_N, 8>, cutlass::gemm::GemmShape<WARP_M, WARP_N, 8>,
    cutlass::gemm::GemmShape<1, 1, 1>, cutlass::epilogue::thread::LinearCombination<float, 1, float, float>,
    cutlass::gemm::threadblock::GemmIdentityThreadblockSwizzle<1>, 2, cutlass::arch::OpMultiplyAdd,
    cutlass::conv::IteratorAlgorithm::kOptimized>::Kernel;
template __global__ void cutlass::Kernel<Kernel>(Kernel::Params);

int main(int, char** argv)
{
    int size[6];
    for (int i = 0; i < 6; ++i) size[i] = std::atoi(argv[i + 1]);
    const auto [N, C, H, K, R, stride] = size;
    const int pad = R / 2, P = (H + 2 * pad - R) / stride + 1;
    const cutlass::conv::Conv2dProblemSize problem({N, H, H, C}, {K, R, R, C}, {pad, pad, pad, pad}, {stride, stride},
                                                   {1, 1}, cutlass::conv::Mode::kCrossCorrelation);
    const auto at = [](long long i) { return reinterpret_cast<float*>(0x1234567800000000 + i * 0x1000000); };
    const auto y = NHWC::packed({N, P, P, K});
    const Kernel::Arguments arguments{problem, {at(0), NHWC::packed({N, H, H, C})}, {at(1), NHWC::packed({K, R, R, C})},
                                      {at(2), y}, {at(2), y}, {1.f, 0.f}};
    using Device = cutlass::conv::device::ImplicitGemmConvolution<Kernel>;
    if (Device::can_implement(arguments) != cutlass::Status::kSuccess) return 1;
    const Kernel::Params params(arguments, reinterpret_cast<int*>(at(3)));
    const dim3 grid = Kernel::ThreadblockSwizzle().get_grid_shape(params.grid_tiled_shape);
    std::printf("%u %u %u %d 1 1 %zu ", grid.x, grid.y, grid.z, 32 * Device::kWarpCount, sizeof(Kernel::SharedStorage));
    for (size_t i = 0; i < sizeof params; ++i) std::printf("%02x", reinterpret_cast<const unsigned char*>(&params)[i]);
}

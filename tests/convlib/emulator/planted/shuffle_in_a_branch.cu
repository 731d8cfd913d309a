// fault: missing threads at a warp barrier
// The mask names lanes that wait at another shuffle.
extern "C" __global__ void planted(const float* x, float* y)
{
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) value += __shfl_xor_sync(~0u, value, 1);  // here
    else y[threadIdx.x + 0] = 0.f, value = __shfl_down_sync(~0u, value * 3.f, 2);
    y[threadIdx.x] = value;
}

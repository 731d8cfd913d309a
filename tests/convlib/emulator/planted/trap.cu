// fault: trap
extern "C" __global__ void planted(const float* x, float* y)
{
    if (x[threadIdx.x] > 1e30f) __trap();  // here
    y[threadIdx.x] = x[threadIdx.x];
}

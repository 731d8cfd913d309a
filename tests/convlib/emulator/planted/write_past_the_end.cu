// fault: out of bounds
// blocks: 2
extern "C" __global__ void planted(const float* x, float* y)
{
    y[64 * blockIdx.x + threadIdx.x + 1] = x[threadIdx.x];  // here
}

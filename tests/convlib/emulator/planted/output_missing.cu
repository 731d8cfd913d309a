// fault: never written
// The last output is left out, as when a grid is rounded down.
extern "C" __global__ void planted(const float* x, float* y)
{
    if (threadIdx.x < 63) y[threadIdx.x] = x[threadIdx.x];
}

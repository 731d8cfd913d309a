// fault: out of bounds
extern "C" __global__ void planted(const float* x, float* y)
{
    y[threadIdx.x] = x[(int)threadIdx.x - 1];  // here
}

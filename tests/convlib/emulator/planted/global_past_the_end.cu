// fault: out of bounds
// One element too far, as with a bound relaxed by one.
extern "C" __global__ void planted(const float* x, float* y)
{
    y[threadIdx.x] = x[threadIdx.x + 65];  // here
}

// fault: uninitialised read
// It adds to an output that nobody has set to zero.
extern "C" __global__ void planted(const float* x, float* y)
{
    y[threadIdx.x] += x[threadIdx.x];  // here
}

// fault: race: write after write
// Every block writes the same 64 outputs.
// blocks: 2
extern "C" __global__ void planted(const float* x, float* y)
{
    y[threadIdx.x] = x[64 * blockIdx.x + threadIdx.x];  // here
}

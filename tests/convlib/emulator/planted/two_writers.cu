// fault: race: write after write
// Pairs of threads write one element; which value stays is chance.
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    tile[threadIdx.x / 2] = x[threadIdx.x];  // here
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x / 2];
}

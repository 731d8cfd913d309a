// fault: divergent barrier
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    if (threadIdx.x >= 60) return;
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // here
    y[threadIdx.x] = tile[59 - threadIdx.x];
}

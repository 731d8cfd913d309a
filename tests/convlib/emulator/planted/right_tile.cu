// fault: none
extern "C" __global__ void planted(const float* x, float* y)
{
    __shared__ float tile[64];
    float sum = 0.f;
    for (int round = 0; round < 2; ++round) {
        __syncthreads();
        tile[threadIdx.x] = x[64 * round + threadIdx.x];
        __syncthreads();
        sum += tile[63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}

// fault: written twice
extern "C" __global__ void planted(const float* x, float* y)
{
    y[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 5) *(volatile float*)&y[5] = 1.f;
}
